"""Texts as JSON writes them: an expression over characters becomes one over the source of a JSON string.

Every character has one spelling: itself, or behind a backslash where it must be escaped, in the form that `json.dumps` writes.
Two spellings would let a forbidden text through under its other name.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from accelplug.constrained.regex.tree import ANY, Ranges, Regex, alt, both, cat, chars, common, inverted, literal, rep, without

_SHORT: Final = {0x22: '\\"', 0x5C: "\\\\", 8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r"}
_ESCAPED: Final[Ranges] = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))
_PLAIN: Final = inverted(_ESCAPED)


@lru_cache(maxsize=4096)
def _character(ranges: Ranges) -> Regex:
    escaped = [point for low, high in common(ranges, _ESCAPED) for point in range(low, high + 1)]
    return alt(chars(common(ranges, _PLAIN)), cat(literal("\\"), alt(*_escapes(escaped))))


def _escapes(points: list[int]) -> Iterator[Regex]:
    """Yield what stands behind the backslash, as few expressions as possible: they come again in most terminals."""
    yield chars([(ord(_SHORT[point][1]),) * 2 for point in points if point in _SHORT])
    for first in ("0", "1"):
        digits = [f"{point:02x}"[1] for point in points if point not in _SHORT and f"{point:02x}"[0] == first]
        yield cat(literal(f"u00{first}"), chars([(ord(digit),) * 2 for digit in digits]))


def _body(regex: Regex) -> Regex:
    if regex.op == "set":
        return _character(regex.ranges)
    parts = [_body(part) for part in regex.parts]
    if regex.op == "rep":
        return rep(parts[0], regex.low, regex.high)
    if regex.op == "not":
        return both(rep(_character(ANY.ranges)), without(parts[0]))
    return {"cat": cat, "alt": alt, "and": both}[regex.op](*parts)


def quoted(regex: Regex) -> Regex:
    """Return the JSON strings, with their quotes, whose value matches.

    Intersections and complements are of whole strings then: with a quote behind each, llguidance's masks take ten times as long.
    """
    if regex.op == "and":
        return both(*map(quoted, regex.parts))
    if regex.op == "not":
        return both(_STRING, without(quoted(regex.parts[0])))
    return cat(literal('"'), _body(regex), literal('"'))


_STRING: Final = cat(literal('"'), rep(_character(ANY.ranges)), literal('"'))
