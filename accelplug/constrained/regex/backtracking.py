r"""What is not regular in ECMA 262 expressions, rewritten for the package `regex`, whose searches can be ended.

What the dialects read differently is written so that only one reading is left: classes and escapes as ranges of code points, ``$`` as the end of the
text, bounds in braces, a reference to a group that took no part as the empty text. One difference stays: ECMA 262 forgets at each round of a
repetition what groups inside it matched.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

from accelplug._errors import ConstraintError
from accelplug.constrained.regex.parse import Reader, UnsupportedPatternError
from accelplug.constrained.regex.tree import Ranges

_GROUPS: Final = ("(?:", "(?=", "(?!", "(?<=", "(?<!")
_NAMED: Final = re.compile(r"\(\?P?<([A-Za-z_]\w*)>")
_REFERENCE: Final = re.compile(r"\\(?:([1-9]\d*)|k<(\w+)>)")
_CASELESS: Final = re.compile(r"\(\?i(?=[:)])")  # of other dialects at the beginning, of ECMA 262 around a group


@lru_cache(maxsize=1024)
def backtracking(pattern: str) -> Any:
    """Return the expression compiled by `regex`.

    :raises ConstraintError: nobody can read it, or `regex` is not installed.
    """
    try:
        import regex
    except ImportError as exc:
        raise ConstraintError("patterns that are not regular need the package regex; install accelplug[grammar]") from exc
    try:
        return regex.compile(rewritten(pattern), regex.ASCII | regex.VERSION0)
    except (UnsupportedPatternError, regex.error, RecursionError, OverflowError) as exc:
        why = re.sub(r" at position \d+$", "", " ".join(str(exc).split()))  # a position in what was rewritten
        raise ConstraintError(f"the pattern {pattern!r:.100} cannot be read: {why:.150}; write a regular expression of ECMA 262") from exc


def rewritten(pattern: str) -> str:
    """Return an expression of ECMA 262 as one for `regex`, without flags but ``ASCII``.

    :raises UnsupportedPatternError: it cannot be read.
    """
    reader, found = Reader(pattern), list[str]()
    while reader.at < len(pattern):
        found.append(_step(reader))
    return "".join(found)


def _step(reader: Reader) -> str:
    """Read and rewrite one sign."""
    bounds = reader.bounds()
    if bounds is not None:
        low, high = bounds
        return f"{{{low},{'' if high is None else high}}}" + "?" * reader.take("?")
    char = reader.pattern[reader.at]
    if char == "(":
        return _group(reader)
    if char == "\\":
        return _escape(reader)
    if reader.take("["):
        return _class(reader.bracket())
    reader.at += 1
    if char == ".":
        return _class(((0, 9), (11, 12), (14, 0x2027), (0x202A, 0x10FFFF)))
    return {"$": r"\Z", "^": "^", "|": "|", ")": ")"}.get(char) or _class(((ord(char), ord(char)),))


def _group(reader: Reader) -> str:
    for sign in _GROUPS:
        if reader.take(sign):
            return sign
    for written, known in ((_NAMED, "(?P<{}>"), (_CASELESS, "(?i")):
        if found := written.match(reader.pattern, reader.at):
            reader.at = found.end()
            return known.format(*found.groups())
    if not reader.take("(") or reader.peek("?"):
        raise reader.fail("an unknown kind of group")
    return "("


def _escape(reader: Reader) -> str:
    if found := _REFERENCE.match(reader.pattern, reader.at):
        reader.at = found.end()
        name = found[1] or found[2]
        return f"(?:(?({name}){f'(?P={name})'}|))"
    reader.at += 1
    char = reader.pattern[reader.at : reader.at + 1]
    if char in ("b", "B", "A", "Z", "z") and char:
        reader.at += 1
        return rf"\{char.upper() if char == 'z' else char}"
    return _class(reader.escape())


def _class(ranges: Ranges) -> str:
    """Write a set of characters; one that is empty matches nothing."""
    return "[" + "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges) + "]" if ranges else "(?!)"
