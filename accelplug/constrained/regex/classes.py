"""Character classes and escapes of ECMA 262 expressions."""

from __future__ import annotations

import sys
import unicodedata
from functools import cache, lru_cache
from itertools import groupby
from typing import Final

from accelplug.constrained.regex.tree import ANY, SURROGATES, Ranges, common, inverted, normal

DIGIT: Final[Ranges] = ((0x30, 0x39),)
WORD: Final[Ranges] = normal([*DIGIT, (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)])
SPACE: Final[Ranges] = normal(
    [
        (9, 13),
        (32, 32),
        (160, 160),
        (0x1680, 0x1680),
        (0x2000, 0x200A),
        (0x2028, 0x2029),
        (0x202F, 0x202F),
        (8287, 8287),
        (12288, 12288),
        (0xFEFF, 0xFEFF),
    ]
)
NO_LINE_END: Final[Ranges] = inverted(normal([(10, 10), (13, 13), (0x2028, 0x2029)]))
_SIMPLE: Final = {"d": DIGIT, "D": inverted(DIGIT), "w": WORD, "W": inverted(WORD), "s": SPACE, "S": inverted(SPACE)}
_CONTROL: Final = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_LONG: Final = {"Letter": "L", "Number": "N", "Punctuation": "P", "Symbol": "S", "Separator": "Z", "Mark": "M", "Uppercase_Letter": "Lu"}
_LONG_TOO: Final = {
    "Lowercase_Letter": "Ll",
    "Decimal_Number": "Nd",
    "digit": "Nd",
    "Alphabetic": "L",
    "Uppercase": "Lu",
    "Lowercase": "Ll",
}
_BINARY: Final[dict[str, Ranges]] = {"ASCII": ((0, 0x7F),), "Any": ((0, sys.maxunicode),), "ASCII_Hex_Digit": normal([*DIGIT, (0x41, 0x46), (0x61, 0x66)])}


def inverse(ranges: list[tuple[int, int]]) -> Ranges:
    """Return all other code points."""
    return inverted(normal(ranges))


def in_both_cases(ranges: Ranges) -> Ranges:
    """Return ranges with the other case of each letter of ASCII."""
    ranges = normal(ranges)
    lower, upper = common(ranges, ((0x61, 0x7A),)), common(ranges, ((0x41, 0x5A),))
    return normal([*ranges, *((low - 32, high - 32) for low, high in lower), *((low + 32, high + 32) for low, high in upper)])


def scalar(ranges: Ranges) -> Ranges:
    """Return ranges without surrogates, which no JSON text has."""
    return common(ranges, ANY.ranges) if any(low <= SURROGATES[1] and high >= SURROGATES[0] for low, high in ranges) else ranges


def escaped(pattern: str, at: int, *, inside: bool) -> tuple[Ranges | None, int]:
    """Read what stands behind a backslash; return it, None if that is no set of characters, and where it ends."""
    char = pattern[at : at + 1]
    if char in _SIMPLE and char:
        return _SIMPLE[char], at + 1
    if char in _CONTROL and char:
        return _one(_CONTROL[char]), at + 1
    if char == "b" and inside:
        return _one(8), at + 1
    if char in {"p", "P"} and pattern[at + 1 : at + 2] == "{":
        return _property(pattern, at, negated=char == "P")
    if char in {"x", "u", "c"}:
        return _by_number(pattern, at)
    if not char or char.isalnum():  # a back reference, a word boundary, or nothing known
        return None, at
    return _one(ord(char)), at + 1


def _one(point: int) -> Ranges:
    return ((point, point),)


def _property(pattern: str, at: int, *, negated: bool) -> tuple[Ranges | None, int]:
    end = pattern.find("}", at)
    name = pattern[at + 2 : end].rpartition("=")[2]
    ranges = _BINARY.get(name) or _category(_LONG.get(name, _LONG_TOO.get(name, name)))
    if end < 0 or not ranges:
        return None, at
    return (inverted(ranges) if negated else ranges), end + 1


@lru_cache(maxsize=256)
def _category(name: str) -> Ranges:
    """Return the code points of a general category such as ``L`` or ``Lu``; nothing for names that are none."""
    return normal((low, high) for kind, low, high in _categories() if kind.startswith(name) and kind != "Cs") if 0 < len(name) <= 2 else ()


@cache
def _categories() -> list[tuple[str, int, int]]:
    """Return all code points in ranges of one general category: looking at each takes a quarter of a second."""
    found, low = list[tuple[str, int, int]](), 0
    for kind, same in groupby(map(unicodedata.category, map(chr, range(sys.maxunicode + 1)))):
        high = low + sum(1 for _ in same)
        found.append((kind, low, high - 1))
        low = high
    return found


def _by_number(pattern: str, at: int) -> tuple[Ranges | None, int]:
    if pattern[at] == "c":
        return (_one(ord(pattern[at + 1]) % 32), at + 2) if pattern[at + 1 : at + 2].isalpha() else (None, at)
    if pattern[at : at + 2] == "u{":
        end = pattern.find("}", at)
        digits, behind = pattern[at + 2 : end], end + 1
    else:
        width = 2 if pattern[at] == "x" else 4
        digits, behind = pattern[at + 1 : at + 1 + width], at + 1 + width
        if len(digits) != width:
            return None, at
    try:
        point = int(digits, 16)
    except ValueError:
        return None, at
    if 0xD800 <= point <= 0xDBFF and pattern[behind : behind + 2] == "\\u":  # a pair of surrogates is one character
        try:
            low = int(pattern[behind + 2 : behind + 6], 16)
        except ValueError:
            return None, at
        if 0xDC00 <= low <= 0xDFFF:
            return _one(0x10000 + ((point - 0xD800) << 10) + low - 0xDC00), behind + 6
    return (_one(point), behind) if point <= 0x10FFFF else (None, at)
