r"""ECMA 262 expressions, as JSON Schema's ``pattern`` has them, read into trees that match whole texts.

Understood: everything but back references, what looks around (look-ahead, look-behind, ``\b``) within groups, and what looks back behind a
look-ahead; at the top level it becomes an intersection with what lies before or behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple

from accelplug.constrained.regex import classes
from accelplug.constrained.regex.tree import ANY, EMPTY, EVERY, NOTHING, Ranges, Regex, alt, both, cat, chars, inverted, rep, without

MOST_REPEATS: Final = 100_000
MOST_BEFORE: Final = 1000
SIGN: Final = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|.", re.DOTALL)
"""An escape, a class, or one more character: what an expression is made of at a glance."""
_DASH: Final = (0x2D, 0x2D)
_ANCHORS: Final = frozenset("AZz")
_BEGINNING: Final = re.compile(r"\^|\\A")
_WORD: Final = chars(classes.WORD)
_WORD_FIRST: Final = cat(_WORD, EVERY)
_OTHER_FIRST: Final = cat(chars(inverted(classes.WORD)), EVERY)
_WORD_LAST: Final = cat(EVERY, _WORD)
_SOME: Final = rep(ANY, 1)


class UnsupportedPatternError(ValueError):
    """The expression is none, or says something that is not regular."""


class Looks(IntEnum):
    """What may look around in a sequence."""

    NOTHING = 0
    AHEAD = 1
    AROUND = 2


class Piece(NamedTuple):
    """A part of an expression: what it matches, whether that must begin or end the text, and whether a character of a word must follow or must not."""

    regex: Regex
    begins: bool = False
    ends: bool = False
    word: bool | None = None


@lru_cache(maxsize=4096)
def parse(pattern: str) -> Regex:
    """Return the texts in which `pattern` is found, as `search` finds it.

    :raises UnsupportedPatternError: the expression cannot be read, or is not regular.
    """
    reader = Reader(pattern)
    pieces = reader.alternatives(Looks.AROUND)
    if reader.at < len(pattern):
        raise UnsupportedPatternError(f"unbalanced ')' in {pattern!r:.80}")
    return alt(*(_opened(piece) for piece in pieces))


def _opened(piece: Piece) -> Regex:
    if piece.ends:
        return NOTHING if piece.word else _until(piece)
    return cat(_until(piece), {None: EVERY, True: _WORD_FIRST, False: without(_WORD_FIRST)}[piece.word])


def _joined(left: list[Piece], right: list[Piece]) -> list[Piece]:
    """Put two parts one after the other; what lies before a beginning or behind an end must be empty."""
    found = []
    for one in left:
        for other in right:
            if (other.begins and not one.regex.nullable) or (one.ends and not other.regex.nullable):
                continue
            before = EMPTY if other.begins else one.regex
            for behind, word in _following(EMPTY if one.ends else other.regex, one.word):
                found.append(Piece(cat(before, behind), one.begins or other.begins, one.ends or other.ends, word))
    return _merged(found)


def _following(regex: Regex, word: bool | None) -> Iterator[tuple[Regex, bool | None]]:
    """Yield what may follow where a character of a word must come or must not, and what is still to be met behind that."""
    if word is None:
        yield regex, None
        return
    yield both(regex, _WORD_FIRST if word else _OTHER_FIRST), None
    if regex.nullable:
        yield EMPTY, word


def _merged(pieces: list[Piece]) -> list[Piece]:
    kinds: dict[tuple[bool, bool, bool | None], list[Regex]] = {}
    for regex, begins, ends, word in pieces:
        kinds.setdefault((begins, ends, word), []).append(regex)
    return [Piece(alt(*regexes), *kind) for kind, regexes in kinds.items()]


def _until(piece: Piece) -> Regex:
    """Return the text from its beginning to where a part ends."""
    return cat(EMPTY if piece.begins else EVERY, piece.regex)


def _behind(pieces: list[Piece], *, first: bool) -> Regex:
    """Return the texts that begin with one of several parts, which may say that nothing lies before them if they are the first."""
    return alt(*(cat(piece.regex, EMPTY if piece.ends else EVERY) for piece in pieces if first or not piece.begins))


def _divided(before: list[Piece], *, first: bool | None) -> Iterator[tuple[Piece, bool]]:
    """Yield what may lie before a place, with and without that being nothing at all.

    :param first: whether nothing lies before all this, None if that is to be said by the pieces.
    """
    for piece in before:
        if first is False:
            yield piece, False
            continue
        if piece.regex.nullable:
            yield piece._replace(regex=EMPTY, begins=True), True
        until = _until(piece) if first is None else piece.regex
        yield piece._replace(regex=both(until, _SOME), begins=True), False


class Reader:
    """Recursive descent over one expression."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0
        self.caseless = False
        self.first: bool | None = None
        """Whether nothing lies before the sequence that is being read, None at the top, where its pieces say that."""

    def fail(self, why: str) -> UnsupportedPatternError:
        return UnsupportedPatternError(f"{why} at {self.at} of {self.pattern!r:.80}")

    def peek(self, text: str) -> bool:
        return self.pattern.startswith(text, self.at)

    def take(self, text: str) -> bool:
        if not self.peek(text):
            return False
        self.at += len(text)
        return True

    def alternatives(self, looks: Looks = Looks.NOTHING) -> list[Piece]:
        found = self.sequence(looks)
        while self.take("|"):
            found = found + self.sequence(looks)
        return _merged(found)

    def sequence(self, looks: Looks) -> list[Piece]:
        found = [Piece(EMPTY)]
        while self.at < len(self.pattern) and not self.peek("|") and not self.peek(")"):
            if self.take("(?=") or self.take("(?!"):
                return self.ahead(found, looks)
            if self.take("(?<=") or self.take("(?<!"):
                found = self.after(found, looks)
            elif self.take(r"\b") or self.take(r"\B"):
                found = self.boundary(found, looks)
            else:
                found = _joined(found, self.repeated())
        return found

    def ahead(self, before: list[Piece], looks: Looks) -> list[Piece]:
        """Read a look-ahead and the rest of the sequence, which both begin where `before` ends."""
        negative = self.pattern[self.at - 1] == "!"
        if not looks:
            raise self.fail("a look-ahead inside a group")
        inside = self.enclosed()
        asks = self.first is not False and (any(piece.begins for piece in inside) or _BEGINNING.search(self.pattern, self.at) is not None)
        rests, found = self.rests(asks=asks), list[Piece]()
        for piece, first in _divided(before, first=self.first if asks else False):
            look = _behind(inside, first=first)
            behind = both(without(look) if negative else look, _behind(rests[first], first=first))
            found += _joined([piece], [Piece(behind, ends=True)])
        return _merged(found)

    def rests(self, *, asks: bool) -> dict[bool, list[Piece]]:
        """Read the rest of a sequence behind a look-ahead, as it is where nothing lies before it, if that is asked for, and where something does."""
        start, before, caseless, found = self.at, self.first, self.caseless, dict[bool, list[Piece]]()
        for first in (False, True) if asks else (False,):
            self.at, self.first, self.caseless = start, first, caseless
            found[first] = self.sequence(Looks.AHEAD)
        self.first = before
        return found

    def after(self, before: list[Piece], looks: Looks) -> list[Piece]:
        """Read a look-behind; return what lies before it, from the beginning of the text on."""
        negative = self.pattern[self.at - 1] == "!"
        if looks < Looks.AROUND:
            raise self.fail("a look-behind inside a group or behind a look-ahead")
        inside = self.enclosed()
        if any(piece.ends for piece in inside):
            raise self.fail("'$' in a look-behind")
        look = alt(*map(_until, inside))
        return [piece._replace(regex=both(_until(piece), without(look) if negative else look), begins=True) for piece in before]

    def boundary(self, before: list[Piece], looks: Looks) -> list[Piece]:
        r"""Read ``\b`` or ``\B``: of what lies before and behind it one is a character of a word, or both or neither are."""
        at_edge = self.pattern[self.at - 1] == "b"
        if looks < Looks.AROUND:
            raise self.fail("a word boundary inside a group or behind a look-ahead")
        if sum(piece.regex.size for piece in before) > MOST_BEFORE:  # each boundary says twice what lies before it
            raise self.fail("a word boundary behind so much")
        found = []
        for piece in before:
            for ends_word in (True, False):
                word = ends_word != at_edge
                if piece.word in (None, word):
                    until = both(_until(piece), _WORD_LAST if ends_word else without(_WORD_LAST))
                    found.append(Piece(until, begins=True, ends=piece.ends, word=word))
        return _merged(found)

    def enclosed(self) -> list[Piece]:
        """Read the inside of a group and its end."""
        caseless, found = self.caseless, self.alternatives()
        if not self.take(")"):
            raise self.fail("an unclosed group")
        self.caseless = caseless
        return found

    def set_of(self, ranges: Ranges) -> Ranges:
        """Return characters, with the other case of those of ASCII where the case does not count."""
        return classes.in_both_cases(ranges) if self.caseless else ranges

    def repeated(self) -> list[Piece]:
        pieces = self.atom()
        while self.at < len(self.pattern):
            bounds = self.bounds()
            if bounds is None:
                break
            self.take("?")  # lazy or not, the same texts match
            anchored = any(piece.begins or piece.ends for piece in pieces)
            if anchored and bounds != (0, 1):
                raise self.fail("a repeated anchor")
            pieces = [*pieces, Piece(EMPTY)] if anchored else [Piece(rep(alt(*(piece.regex for piece in pieces)), *bounds))]
        return pieces

    def bounds(self) -> tuple[int, int | None] | None:
        for sign, found in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take(sign):
                return found
        end = self.pattern.find("}", self.at)
        if not self.peek("{") or end < 0:
            return None
        low, comma, high = self.pattern[self.at + 1 : end].partition(",")
        if not low.isdigit() or not (high.isdigit() or not high):
            return None
        self.at = end + 1
        bounds = int(low), (int(high) if high else None) if comma else int(low)
        if max(bounds[0], bounds[1] or 0) > MOST_REPEATS or (bounds[1] is not None and bounds[1] < bounds[0]):
            raise self.fail("a repetition out of bounds")
        return bounds

    def atom(self) -> list[Piece]:
        if self.take("("):
            return self.group()
        if self.take("["):
            return [Piece(chars(classes.scalar(self.bracket())))]
        char = self.pattern[self.at]
        if char in "*+?":
            raise self.fail("nothing to repeat")
        self.at += 1
        if char in "^$" or (char == "\\" and self.pattern[self.at : self.at + 1] in _ANCHORS):
            return [self.anchor(char)]
        if char == ".":
            return [Piece(chars(classes.NO_LINE_END))]
        if char == "\\":
            return [Piece(chars(classes.scalar(self.set_of(self.escape()))))]
        return [Piece(chars(self.set_of(((ord(char), ord(char)),))))]

    def anchor(self, char: str) -> Piece:
        """Read an anchor, behind a backslash one that other dialects have: in ECMA 262 it is a letter, which nobody means."""
        if char == "\\":
            char = self.pattern[self.at]
            self.at += 1
        begins = char in "^A"
        return Piece(EMPTY, begins=begins, ends=not begins)

    def group(self) -> list[Piece]:
        if self.take("?i)"):  # of other dialects; it counts to the end of the group that it stands in
            self.caseless = True
            return [Piece(EMPTY)]
        outside = self.caseless
        if self.take("?i:"):
            self.caseless = True
        elif self.take("?:"):
            pass
        elif self.take("?<") or self.take("?P<"):
            self.at = self.pattern.index(">", self.at) + 1 if ">" in self.pattern[self.at :] else len(self.pattern)
        elif self.peek("?"):
            raise self.fail("an unknown kind of group")
        found = self.enclosed()
        self.caseless = outside
        return found or [Piece(NOTHING)]

    def escape(self, *, inside: bool = False) -> tuple[tuple[int, int], ...]:
        found, self.at = classes.escaped(self.pattern, self.at, inside=inside)
        if found is None:
            raise self.fail("an escape that is not regular")
        return found

    def bracket(self) -> tuple[tuple[int, int], ...]:
        negated, found = self.take("^"), list[tuple[int, int]]()
        while not self.take("]"):
            low = self.member()
            dashed = self.peek("-") and not self.peek("-]") and self.at + 1 < len(self.pattern)
            if dashed and len(low) == 1 and low[0][0] == low[0][1]:
                self.at += 1
                high = self.member()
                if len(high) != 1 or high[0][0] != high[0][1]:  # "[.-\\w]": a class is no end of a range, and the dash is one
                    low = (*low, _DASH, *high)
                elif high[0][1] < low[0][0]:
                    raise self.fail("a range out of order")
                else:
                    low = ((low[0][0], high[0][1]),)
            found.extend(low)
        ranges = self.set_of(tuple(found))
        return classes.inverse(list(ranges)) if negated else ranges

    def member(self) -> tuple[tuple[int, int], ...]:
        if self.at >= len(self.pattern):
            raise self.fail("an unclosed class")
        if self.take("\\"):
            return self.escape(inside=True)
        self.at += 1
        return ((ord(self.pattern[self.at - 1]), ord(self.pattern[self.at - 1])),)
