r"""ECMA 262 expressions, as JSON Schema's ``pattern`` has them, read into trees that match whole texts.

Understood: everything regular but back references, ``\b`` inside, look-behind and look-ahead in the middle of groups; a look-ahead
at the top level becomes an intersection.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

from accelplug.constrained.regex import classes
from accelplug.constrained.regex.tree import EMPTY, EVERY, NOTHING, Regex, alt, both, cat, chars, rep, without

MOST_REPEATS: Final = 100_000
SIGN: Final = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|.", re.DOTALL)
"""An escape, a class, or one more character: what an expression is made of at a glance."""
_DASH: Final = (0x2D, 0x2D)
_ANCHORS: Final = frozenset("AZz")


class UnsupportedPatternError(ValueError):
    """The expression is none, or says something that is not regular."""


class Piece(NamedTuple):
    """A part of an expression: what it matches, and whether that must begin or end the text."""

    regex: Regex
    begins: bool = False
    ends: bool = False


@lru_cache(maxsize=4096)
def parse(pattern: str) -> Regex:
    """Return the texts in which `pattern` is found, as `search` finds it.

    :raises UnsupportedPatternError: the expression cannot be read, or is not regular.
    """
    reader = Reader(pattern)
    pieces = reader.alternatives(top=True)
    if reader.at < len(pattern):
        raise UnsupportedPatternError(f"unbalanced ')' in {pattern!r:.80}")
    return alt(*(_opened(piece) for piece in pieces))


def _opened(piece: Piece) -> Regex:
    return cat(EMPTY if piece.begins else EVERY, piece.regex, EMPTY if piece.ends else EVERY)


def _joined(left: list[Piece], right: list[Piece]) -> list[Piece]:
    """Put two parts one after the other; what lies before a beginning or behind an end must be empty."""
    found = []
    for one in left:
        for other in right:
            if (other.begins and not one.regex.nullable) or (one.ends and not other.regex.nullable):
                continue
            before = EMPTY if other.begins else one.regex
            behind = EMPTY if one.ends else other.regex
            found.append(Piece(cat(before, behind), one.begins or other.begins, one.ends or other.ends))
    return _merged(found)


def _merged(pieces: list[Piece]) -> list[Piece]:
    kinds: dict[tuple[bool, bool], list[Regex]] = {}
    for piece in pieces:
        kinds.setdefault((piece.begins, piece.ends), []).append(piece.regex)
    return [Piece(alt(*regexes), *kind) for kind, regexes in kinds.items()]


class Reader:
    """Recursive descent over one expression."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0

    def fail(self, why: str) -> UnsupportedPatternError:
        return UnsupportedPatternError(f"{why} at {self.at} of {self.pattern!r:.80}")

    def peek(self, text: str) -> bool:
        return self.pattern.startswith(text, self.at)

    def take(self, text: str) -> bool:
        if not self.peek(text):
            return False
        self.at += len(text)
        return True

    def alternatives(self, *, top: bool = False) -> list[Piece]:
        found = self.sequence(top=top)
        while self.take("|"):
            found = found + self.sequence(top=top)
        return _merged(found)

    def sequence(self, *, top: bool) -> list[Piece]:
        found = [Piece(EMPTY)]
        while self.at < len(self.pattern) and not self.peek("|") and not self.peek(")"):
            if self.peek("(?=") or self.peek("(?!"):
                return self.ahead(found, top=top)
            found = _joined(found, self.repeated())
        return found

    def ahead(self, before: list[Piece], *, top: bool) -> list[Piece]:
        """Read a look-ahead and the rest of the sequence, which both begin where `before` ends."""
        if not top:
            raise self.fail("a look-ahead inside a group")
        negative = self.pattern[self.at + 2] == "!"
        self.at += 3
        inside = alt(*(cat(piece.regex, EMPTY if piece.ends else EVERY) for piece in self.alternatives() if not piece.begins))
        if not self.take(")"):
            raise self.fail("an unclosed group")
        rest = self.sequence(top=True)
        if any(piece.begins for piece in rest):
            raise self.fail("'^' behind a look-ahead")
        behind = alt(*(cat(piece.regex, EMPTY if piece.ends else EVERY) for piece in rest))
        return _joined(before, [Piece(both(without(inside) if negative else inside, behind), ends=True)])

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
            return [Piece(chars(self.bracket()))]
        char = self.pattern[self.at]
        if char in "*+?":
            raise self.fail("nothing to repeat")
        self.at += 1
        if char in "^$" or (char == "\\" and self.pattern[self.at : self.at + 1] in _ANCHORS):
            return [self.anchor(char)]
        if char == ".":
            return [Piece(chars(classes.NO_LINE_END))]
        if char == "\\":
            return [Piece(chars(self.escape()))]
        return [Piece(chars([(ord(char), ord(char))]))]

    def anchor(self, char: str) -> Piece:
        """Read an anchor, behind a backslash one that other dialects have: in ECMA 262 it is a letter, which nobody means."""
        if char == "\\":
            char = self.pattern[self.at]
            self.at += 1
        begins = char in "^A"
        return Piece(EMPTY, begins=begins, ends=not begins)

    def group(self) -> list[Piece]:
        if self.take("?:"):
            pass
        elif self.take("?<") or self.take("?P<"):
            if self.pattern[self.at : self.at + 1] in {"=", "!"}:
                raise self.fail("a look-behind")
            self.at = self.pattern.index(">", self.at) + 1 if ">" in self.pattern[self.at :] else len(self.pattern)
        elif self.peek("?"):
            raise self.fail("an unknown kind of group")
        found = self.alternatives()
        if not self.take(")"):
            raise self.fail("an unclosed group")
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
        return classes.inverse(found) if negated else tuple(found)

    def member(self) -> tuple[tuple[int, int], ...]:
        if self.at >= len(self.pattern):
            raise self.fail("an unclosed class")
        if self.take("\\"):
            return self.escape(inside=True)
        self.at += 1
        return ((ord(self.pattern[self.at - 1]), ord(self.pattern[self.at - 1])),)
