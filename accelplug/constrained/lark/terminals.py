"""Expressions written as terminals of llguidance's Lark: ``/.../``, sequences, ``|``, ``&`` and ``~``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from accelplug.constrained.regex.tree import EMPTY, Ranges, Regex


def terminal(regex: Regex) -> str:
    """Write an expression that matches something."""
    if not regex.is_algebraic:
        return f"/{plain(regex)}/" if regex != EMPTY else '""'
    parts = [terminal(part) for part in regex.parts]
    if regex.op == "rep":
        return f"({parts[0]}){{{regex.low},{'' if regex.high is None else regex.high}}}"
    if regex.op == "not":
        return f"~({parts[0]})"
    return "(" + {"cat": " ", "alt": " | ", "and": " & "}[regex.op].join(parts) + ")"


@lru_cache(maxsize=1 << 13)
def plain(regex: Regex) -> str:
    """Write an expression without intersections and complements as Rust's regex crate reads it."""
    if regex.op == "set":
        return _set(regex.ranges)
    if regex.op == "cat":
        return "".join(f"(?:{plain(part)})" if part.op == "alt" else plain(part) for part in regex.parts)
    if regex.op == "alt":
        return "|".join(plain(part) for part in regex.parts)
    part = regex.parts[0]
    return (plain(part) if part.op == "set" else f"(?:{plain(part)})") + _times(regex.low, regex.high)


def _times(low: int, high: int | None) -> str:
    if high is None:
        return {0: "*", 1: "+"}.get(low, f"{{{low},}}")
    return "?" if (low, high) == (0, 1) else f"{{{low}}}" if low == high else f"{{{low},{high}}}"


def _set(ranges: Ranges) -> str:
    if not ranges:
        return r"[^\x00-\x{10FFFF}]"
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _point(ranges[0][0])
    return "[" + "".join(_range(low, high) for low, high in ranges) + "]"


def _range(low: int, high: int) -> str:
    return _point(low) if low == high else f"{_point(low)}-{_point(high)}"


@lru_cache(maxsize=4096)
def _point(point: int) -> str:
    char = chr(point)
    return char if char.isascii() and char.isalnum() else f"\\x{{{point:X}}}"


class _Points(dict[int, str]):
    """Characters as `_point` writes them, for `str.translate`."""

    def __missing__(self, point: int) -> str:
        return _point(point)


_POINTS: Final = _Points((point, _point(point)) for point in range(0x80))


def choice(texts: Iterable[str]) -> str:
    """Write a choice between literal texts as one terminal."""
    return " | ".join(f"/{text.translate(_POINTS)}/" if text else '""' for text in texts)  # "//" begins a comment
