"""Brzozowski derivatives: does a text match, does any, and which.

Source: J. A. Brzozowski, Derivatives of regular expressions, 1964; S. Owens, J. Reppy, A. Turon, Regular-expression
derivatives re-examined, 2009.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from heapq import heappop, heappush
from operator import attrgetter
from typing import Final

from accelplug.constrained.regex.tree import ANY, EMPTY, NOTHING, Ranges, Regex, alt, both, cat, rep, without
from accelplug.constrained.time_limit import seconds_left

_BY_SIZE: Final = attrgetter("size")
MOST_STATES: Final = 3000
MOST_WORK: Final = 600_000
"""Nodes of all derivatives that one search may come to; what is not decided by then counts as not empty."""
_SMALL: Final = 60
_AHEAD: Final = 12
MOST_GROWTH: Final = 1000
"""Nodes by which an expression may grow within the first characters of a text, for an engine to keep up with it."""


def contains(ranges: Ranges, point: int) -> bool:
    """Whether a code point is in sorted ranges."""
    at = bisect_right(ranges, (point, 0x110000)) - 1
    return at >= 0 and ranges[at][0] <= point <= ranges[at][1]


@lru_cache(maxsize=1 << 15)
def derivative(regex: Regex, point: int) -> Regex:
    """Return what must follow once the character `point` was read."""
    if regex.op == "set":
        return EMPTY if contains(regex.ranges, point) else NOTHING
    if regex.op == "alt":
        return _first(alt(*[derivative(part, point) for part in regex.parts]))
    if regex.op == "and":
        return _first(_of_intersection(regex, point))
    if regex.op == "not":
        return _first(without(derivative(regex.parts[0], point)))
    return _first((_of_repeat if regex.op == "rep" else _of_sequence)(regex, point))


@lru_cache(maxsize=1 << 14)
def _first(regex: Regex) -> Regex:
    """Return the first of equal expressions: derivatives come back to few, which are then told by their identity, not part by part."""
    return regex


def _of_intersection(regex: Regex, point: int) -> Regex:
    found = []
    for part in regex.parts:
        following = derivative(part, point)
        if following.op == "set" and not following.ranges:
            return NOTHING  # whatever the others are
        found.append(following)
    return both(*found)


def _of_repeat(regex: Regex, point: int) -> Regex:
    high = None if regex.high is None else regex.high - 1
    return cat(derivative(regex.parts[0], point), rep(regex.parts[0], max(0, regex.low - 1), high))


def _of_sequence(regex: Regex, point: int) -> Regex:
    found = []
    for at, part in enumerate(regex.parts):
        found.append(cat(derivative(part, point), *regex.parts[at + 1 :]))
        if not part.nullable:
            break
    return alt(*found)


def matches(regex: Regex, text: str, what: str = "an expression") -> bool:
    """Whether the whole text matches.

    :param what: for the sentence.
    :raises OutOfTimeError: the derivatives grow so that this takes too long.
    """
    if regex.op == "not":
        return not matches(regex.parts[0], text, what)
    if regex.op == "and":
        return all(matches(part, text, what) for part in regex.parts)
    if regex.op == "alt":
        return text in regex.literals or any(matches(part, text, what) for part in regex.unwritten)
    if regex.op == "set":
        return len(text) == 1 and contains(regex.ranges, ord(text))
    for char in text:
        seconds_left(what)
        regex = derivative(regex, ord(char))
        if regex.op == "set" and not regex.ranges:
            return False
    return regex.nullable


def matching(regex: Regex, texts: Iterable[str]) -> list[str]:
    """Return those of several texts that match."""
    refused = regex.parts[0].texts if regex.op == "not" else None
    return [text for text in texts if matches(regex, text)] if refused is None else [text for text in texts if text not in refused]


def _sets(regex: Regex) -> Iterator[Ranges]:
    if regex.op == "set":
        yield regex.ranges
    for part in regex.parts:
        yield from _sets(part)


def representatives(regex: Regex) -> list[int]:
    """Return one code point of every class that the expression tells apart, printable ones where there are any."""
    edges = {0x61: 0, 0x20: 0}  # where sets begin or end, with the bits of those
    for number, ranges in enumerate(dict.fromkeys(_sets(regex))):
        for low, high in ranges:
            edges[low] = edges.get(low, 0) ^ 1 << number
            edges[high + 1] = edges.get(high + 1, 0) ^ 1 << number
    found: dict[int, int] = {}
    inside = 0  # the bits of the sets that a point is in
    for point in sorted(edges):
        inside ^= edges[point]
        if point <= 0x10FFFF and not 0xD800 <= point <= 0xDFFF and (
            inside not in found or _printable(point) > _printable(found[inside])
        ):
            found[inside] = point
    return list(found.values())


def _printable(point: int) -> int:
    return 2 if 0x61 <= point < 0x7B else 1 if 0x20 <= point < 0x7F and point not in (0x22, 0x5C) else 0


@lru_cache(maxsize=4096)
def shortest(regex: Regex, most: int = MOST_STATES) -> str | None:
    """Return a shortest text that matches, None if none does.

    :raises OverflowError: not decided within `most` derivatives.
    """
    seen, waiting = {regex}, deque([(regex, "")])
    points = representatives(regex)
    while waiting:
        state, text = waiting.popleft()
        if state.nullable:
            return text
        for point in points:
            following = derivative(state, point)
            if (following.op != "set" or following.ranges) and following not in seen:
                seen.add(following)
                waiting.append((following, text + chr(point)))
        if len(seen) > most:
            raise OverflowError("too many derivatives")
    return None


def is_empty(regex: Regex) -> bool:
    """Whether certainly no text matches; False also where that is not decided in reasonable time."""
    return is_empty_if_decided(regex) is True


def is_empty_if_decided(regex: Regex) -> bool | None:
    """Whether no text matches, None where that is not decided in reasonable time."""
    if regex.nullable or regex.op == "set":
        return not regex.nullable and not regex.ranges  # as most are
    try:
        return not _plainly_has_some(regex) and (_is_empty_of_any_length(regex) or not _has_some(regex))
    except (OverflowError, RecursionError):
        return None


def _is_empty_of_any_length(regex: Regex) -> bool:
    """Whether an intersection is seen to match no text of whatever length, which takes no counting."""
    others = [part for part in regex.parts if part.op != "rep" or part.parts[0] != ANY] if regex.op == "and" else []
    return 0 < len(others) < len(regex.parts) and is_empty(both(*others))


def grows_far(regex: Regex) -> bool:
    """Whether some text soon leaves so many ways open that every further character takes an engine long."""
    if regex.size < _SMALL:
        return False
    state, points, most = regex, representatives(regex), regex.size + MOST_GROWTH
    for _ in range(_AHEAD):
        state = max((derivative(state, point) for point in points), key=_BY_SIZE)
        if state.size > most:
            return True
    return False


def is_tangled(regex: Regex) -> bool:
    """Whether several expressions must match that each look around: llguidance gave up the complement of one beside another in texts of three characters."""
    return regex.op == "and" and sum(map(_looks_around, regex.parts)) > 1


def _looks_around(regex: Regex) -> bool:
    """Whether an intersection or a complement is followed or preceded by something."""
    return regex.is_algebraic and (regex.op in {"cat", "rep"} or any(map(_looks_around, regex.parts)))


@lru_cache(maxsize=1 << 14)
def _plainly_has_some(regex: Regex) -> bool:
    """Whether some text matches, seen without derivatives; False where intersections or complements hide that."""
    if regex.nullable:
        return True
    if regex.op == "set":
        return bool(regex.ranges)
    if regex.op in {"and", "not"}:
        return _is_endless_but_for_few(regex.parts if regex.op == "and" else (regex,))
    return (any if regex.op == "alt" else all)(_plainly_has_some(part) for part in regex.parts)


def _is_endless_but_for_few(parts: tuple[Regex, ...]) -> bool:
    """Whether an intersection is one endless set of texts without finitely many."""
    wanted = [part for part in parts if part.op != "not"]
    few = all(_is_finite(part.parts[0]) for part in parts if part.op == "not")
    return few and len(wanted) < 2 and all(map(_is_endless, wanted))


def _is_finite(regex: Regex) -> bool:
    """Whether certainly no more than finitely many texts match."""
    if regex.op in {"and", "not"} or (regex.op == "rep" and regex.high is None):
        return False
    return all(map(_is_finite, regex.parts))


def _is_endless(regex: Regex) -> bool:
    """Whether certainly no end of texts match."""
    if regex.op == "alt":
        return any(map(_is_endless, regex.parts))
    if regex.op == "cat":
        return any(map(_is_endless, regex.parts)) and all(map(_plainly_has_some, regex.parts))
    return regex.op == "rep" and regex.high is None and regex.parts[0].op == "set" and bool(regex.parts[0].ranges)


@lru_cache(maxsize=1 << 14)
def _has_some(regex: Regex) -> bool:
    """Search derivatives for one that is seen to match something, those first of which the least is left, and of these the longest texts."""
    seen, waiting, work = {regex}, [(_left(regex), 0, regex)], 0
    points = representatives(regex)
    while waiting:
        state = heappop(waiting)[-1]
        if _plainly_has_some(state):
            return True
        for point in reversed(points):
            following = derivative(state, point)
            work += following.size
            if (following.op != "set" or following.ranges) and following not in seen:
                seen.add(following)
                heappush(waiting, (_left(following), -len(seen), following))
        if len(seen) > MOST_STATES or work > MOST_WORK:
            raise OverflowError("too many derivatives")
    return False


def _left(regex: Regex) -> float:
    """Return how far a search still has to go, as a guess: what every part of an intersection still needs."""
    return sum(part.least for part in regex.parts) if regex.op == "and" else regex.least
