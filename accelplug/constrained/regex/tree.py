"""Regular expressions as trees over code points, with intersection and complement.

Built through the functions here, which simplify as they build: derivatives then come back to few different trees.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from operator import attrgetter
from typing import Final

Ranges = tuple[tuple[int, int], ...]
LAST: Final = 0x10FFFF
SURROGATES: Final = (0xD800, 0xDFFF)
MOST_CHARACTERS: Final = 32
"""A set of more characters than these is not written out."""
_OPS: Final = {"set": 0, "cat": 1, "alt": 2, "and": 3, "not": 4, "rep": 5}
_ALGEBRAIC: Final = frozenset({"and", "not"})
_BY_HASH: Final = attrgetter("_hash")


class Regex:
    """One node. Never changed once it is made: what is asked of it often is worked out then, from its parts.

    :param op: ``"set"`` (one character of `ranges`), ``"cat"``, ``"alt"``, ``"and"``, ``"not"`` (of `parts`), or ``"rep"``:
        `parts[0]` from `low` to `high` times, None for no end. No text at all is an empty set, the empty text an empty cat.

    ``size`` is how many nodes there are, ``is_algebraic`` whether intersection or complement occur, which a plain expression cannot say,
    ``nullable`` whether the empty text matches.
    """

    __slots__ = ("_hash", "_least", "_literals", "_unwritten", "high", "is_algebraic", "low", "nullable", "op", "parts", "ranges", "size")

    def __init__(self, op: str, parts: tuple[Regex, ...] = (), ranges: Ranges = (), low: int = 0, high: int | None = None) -> None:
        self.op, self.parts, self.ranges, self.low, self.high = op, parts, ranges, low, high
        self._hash = hash((_OPS[op], parts, ranges, low, -1 if high is None else high))  # numbers only: the same in every process
        self._least: float | None = None
        self._literals: frozenset[str] | None = None
        self._unwritten: tuple[Regex, ...] | None = None
        size, algebraic, some, every = 1, op in _ALGEBRAIC, False, op != "set"
        for part in parts:
            size += part.size
            algebraic |= part.is_algebraic
            some |= part.nullable
            every &= part.nullable
        self.size: int = size
        self.is_algebraic: bool = algebraic
        self.nullable: bool = self._is_nullable(some=some, every=every)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, Regex)
            and self._hash == other._hash
            and self.op == other.op
            and self.ranges == other.ranges
            and self.low == other.low
            and self.high == other.high
            and self.parts == other.parts
        )

    def __repr__(self) -> str:
        return f"Regex({self.op!r}, {self.parts}, {self.ranges}, {self.low}, {self.high})"

    @property
    def literals(self) -> frozenset[str]:
        """The texts among the alternatives that are written out, character by character."""
        if self._literals is None:
            self._literals = self._written_out()
        return self._literals

    @property
    def texts(self) -> frozenset[str] | None:
        """All texts that match, None where they are not written out, one by one."""
        if self.op == "alt":
            return None if self.unwritten else self.literals
        return self.literals or (None if self != NOTHING else self.literals)

    @property
    def unwritten(self) -> tuple[Regex, ...]:
        """The alternatives that are not written out."""
        if self._unwritten is None:
            self._unwritten = tuple([part for part in self.parts if not part.literals])
        return self._unwritten

    def _written_out(self) -> frozenset[str]:
        if self.op == "alt":
            return frozenset().union(*(part.literals for part in self.parts))
        if self.op == "set":
            return frozenset(self._characters()) if sum(high - low for low, high in self.ranges) < MOST_CHARACTERS else frozenset()
        parts = self.parts if self.op == "cat" else ()
        if not parts or not all(part.is_character for part in parts):
            return frozenset()
        return frozenset({"".join(chr(part.ranges[0][0]) for part in parts)})

    def _characters(self) -> Iterator[str]:
        for low, high in self.ranges:
            yield from map(chr, range(low, high + 1))

    @property
    def is_character(self) -> bool:
        """Whether this is one certain character."""
        return self.op == "set" and len(self.ranges) == 1 and self.ranges[0][0] == self.ranges[0][1]

    @property
    def least(self) -> float:
        """No text that matches is shorter than this."""
        if self._least is None:
            self._least = self._at_least()
        return self._least

    def _at_least(self) -> float:
        if self.op == "set":
            return 1 if self.ranges else math.inf
        if self.op == "not":
            return 0
        if self.op == "rep":
            return self.low * self.parts[0].least if self.low else 0
        lengths = [part.least for part in self.parts]
        return sum(lengths) if self.op == "cat" else min(lengths) if self.op == "alt" else max(lengths)

    def _is_nullable(self, *, some: bool, every: bool) -> bool:
        """Whether the empty text matches, by whether some and every part matches it."""
        if self.op == "rep":
            return self.low == 0 or some
        if self.op == "not":
            return not some
        return some if self.op == "alt" else every


NOTHING: Final = Regex("set")
EMPTY: Final = Regex("cat")


def normal(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return ranges sorted and merged."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        elif low <= high:
            merged.append((low, high))
    return tuple(merged)


def inverted(ranges: Ranges) -> Ranges:
    """Return every code point that is no surrogate and not in `ranges`."""
    found, start = [], 0
    for low, high in normal([*ranges, SURROGATES]):
        found.append((start, low - 1))
        start = high + 1
    return normal([*found, (start, LAST)])


def common(one: Ranges, other: Ranges) -> Ranges:
    """Return the code points in both."""
    return inverted(normal([*inverted(one), *inverted(other)]))


def chars(ranges: Iterable[tuple[int, int]]) -> Regex:
    """One character out of ranges of code points."""
    return Regex("set", ranges=normal(ranges))


ANY: Final = Regex("set", ranges=inverted(()))


def cat(*parts: Regex) -> Regex:
    """One after the other."""
    flat: list[Regex] = []
    for part in parts:
        if part.op == "set" and not part.ranges:
            return NOTHING
        flat.extend(part.parts if part.op == "cat" else (part,))
    return flat[0] if len(flat) == 1 else Regex("cat", tuple(flat))


def rep(part: Regex, low: int = 0, high: int | None = None) -> Regex:
    """Return `part` from `low` to `high` times."""
    if high == 0 or part == EMPTY or (part == NOTHING and low == 0):
        return EMPTY
    if part == NOTHING or (low == 1 and high == 1):
        return part
    if part.op == "rep" and part.low == 0 and part.high is None:
        return part
    return Regex("rep", (part,), low=low, high=high)


EVERY: Final = rep(ANY)
"""Every text."""


def alt(*parts: Regex) -> Regex:
    """Any of them; single characters are merged into one set."""
    flat: dict[Regex, None] = {}
    single: list[tuple[int, int]] = []
    for part in parts:
        for one in part.parts if part.op == "alt" else (part,):
            if one.op == "set":
                single.extend(one.ranges)
            elif one.op == "rep" and one == EVERY:
                return EVERY
            else:
                flat[one] = None
    if single:
        flat[chars(single)] = None
    return next(iter(flat), NOTHING) if len(flat) < 2 else Regex("alt", tuple(sorted(flat, key=_BY_HASH)))


def both(*parts: Regex) -> Regex:
    """What matches all of them."""
    flat: dict[Regex, None] = {}
    for part in parts:
        if part.op == "and":
            flat.update(dict.fromkeys(part.parts))
        elif part.op != "rep" or part != EVERY:
            flat[part] = None
    if len(flat) < 2:
        return next(iter(flat), EVERY)
    sets = [one for one in flat if one.op == "set"]
    if len(sets) > 1:
        flat = {_in_all(sets): None, **{one: None for one in flat if one.op != "set"}}
    forbidden = [one.parts[0] for one in flat if one.op == "not"]
    wanted = [one for one in flat if one.op != "not"]
    if len(forbidden) > 1:
        forbidden = [alt(*forbidden)]
        flat = dict.fromkeys([*wanted, without(forbidden[0])])
    if any(one.op == "set" and not one.ranges for one in wanted) or (forbidden and _is_one_within(wanted, forbidden[0])):
        return NOTHING
    return next(iter(flat), EVERY) if len(flat) < 2 else Regex("and", tuple(sorted(flat, key=_BY_HASH)))


def _in_all(sets: list[Regex]) -> Regex:
    """Return the characters that are in all of several sets."""
    ranges = sets[0].ranges
    for one in sets[1:]:
        ranges = common(ranges, one.ranges)
    return chars(ranges)


def _is_one_within(several: list[Regex], other: Regex) -> bool:
    """Whether one of several is part of another, as seen from their alternatives, or that is every text."""
    if other.op == "rep" and other == EVERY:
        return True
    alternatives = set(other.parts) if other.op == "alt" else {other}
    return any(alternatives.issuperset(one.parts if one.op == "alt" else (one,)) for one in several)


def without(part: Regex) -> Regex:
    """Every text that `part` does not match."""
    if part.op == "not":
        return part.parts[0]
    if part.op == "set" and not part.ranges:
        return EVERY
    return NOTHING if part.op == "rep" and part == EVERY else Regex("not", (part,))


@lru_cache(maxsize=1 << 12)
def _character(char: str) -> Regex:
    return Regex("set", ranges=((ord(char), ord(char)),))


@lru_cache(maxsize=1 << 14)
def literal(text: str) -> Regex:
    """This text."""
    return _character(text) if len(text) == 1 else Regex("cat", tuple(map(_character, text)))


def length(low: int, high: int | None) -> Regex:
    """Every text of so many characters."""
    return rep(ANY, low, high)
