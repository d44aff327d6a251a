"""Keywords about types, fixed values, numbers and strings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from accelplug._errors import ConstraintError
from accelplug.constrained.regex.backtracking import backtracking
from accelplug.constrained.regex.parse import UnsupportedPatternError, parse
from accelplug.constrained.regex.tree import alt, length, literal, without
from accelplug.constrained.schema.atoms import Bound, Fractional, Inexact, Integer, Multiple, Size, Text, Values, kind_of
from accelplug.constrained.schema.clauses import FALSE, TRUE, Alternative, Alternatives, Clause, Place, always
from accelplug.constrained.schema.formats import FORMATS
from accelplug.constrained.schema.numbers import MOST_SIZE
from accelplug.constrained.schema.shapes import TYPES

MOST_LENGTH: Final = 100_000
_finite: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_ALWAYS: Final = always(TRUE)
_NEVER: Final = always(FALSE)


def type_(place: Place) -> Iterator[Clause]:
    """``type``."""
    if place.value == place.kind:  # most are: the other types never ask
        yield _ALWAYS
        return
    types = [place.value] if isinstance(place.value, str) else place.value
    if place.document.draft == 3:
        if any(isinstance(name, dict) for name in types):
            yield place.unknown()
            return
        types = TYPES if "any" in types else types
        if unknown := [one for one in types if one not in TYPES]:
            raise ConstraintError(f"{place.name} is {json.dumps(unknown[0]):.60}; the types are any, {', '.join(TYPES)}")
    if place.kind in types:
        yield _ALWAYS
    elif place.kind == "number" and "integer" in types:
        yield Clause([[Integer()]], [[Fractional(place.name)]])
    else:
        yield _NEVER


def constant(place: Place) -> Iterator[Clause]:
    """``const``."""
    if place.document.draft >= 6:
        yield _one_of(place, [place.value])


def enumeration(place: Place) -> Iterator[Clause]:
    """``enum``."""
    yield _one_of(place, place.value)


def _one_of(place: Place, values: list[Any]) -> Clause:
    mine = _said(value for value in values if kind_of(value) == place.kind)
    if not mine:
        return always(FALSE)
    return Clause([[Values(tuple(mine))]], lambda: _other_than(place, list(mine.values())))


def _said(values: Iterable[Any]) -> dict[str, Any]:
    """Return values by their texts, without those that have none: numbers beyond floats, and halves of pairs of surrogates."""
    found = dict[str, Any]()
    for value in values:
        with suppress(ValueError):
            text = _finite(value)
            text.encode()
            found[text] = value
    return found


def _other_than(place: Place, values: list[Any]) -> Alternatives:
    if place.kind == "string":
        return [[Text(without(alt(*map(literal, values))))]]
    if place.kind == "number":
        return _around(place, sorted(set(values)))
    if place.kind == "boolean":
        return [[Values((text,))] for text, value in (("true", True), ("false", False)) if value not in values]
    if place.kind == "null":
        return FALSE
    return [[Size(1, None)]] if not any(values) else [[Inexact(place.name)]]


def _around(place: Place, values: list[Any]) -> Alternatives:
    """Return the gaps between numbers."""
    lower: list[Any] = [[], *([Bound(value, lower=True, exclusive=True), *_rounded(place, value)] for value in values)]
    upper: list[Any] = [*([Bound(value, lower=False, exclusive=True), *_rounded(place, value)] for value in values), []]
    return [[*low, *high] for low, high in zip(lower, upper, strict=True)]


def _rounded(place: Place, value: Any) -> Alternative:
    """Say that a bound of this size is rounded, where it is."""
    return [] if value == 0 or 1 / MOST_SIZE <= abs(value) <= MOST_SIZE else [Inexact(place.name)]


def _bound(place: Place, *, lower: bool, exclusive: bool) -> Clause:
    rounded = _rounded(place, place.value)
    return Clause([[Bound(place.value, lower, exclusive), *rounded]], [[Bound(place.value, not lower, not exclusive), *rounded]])


def _flags(place: Place) -> bool:
    """Whether a bound beside these is made exclusive by a truth value: in drafts to 4, and where none is named."""
    return place.document.draft < 6 or not place.document.names_draft


def bound(place: Place) -> Iterator[Clause]:
    """``minimum`` and ``maximum``, which in draft 4 a truth value beside them makes exclusive."""
    if place.kind == "number":
        lower = place.keyword == "minimum"
        beside = place.node.value.get("exclusiveMinimum" if lower else "exclusiveMaximum", False)
        yield _bound(place, lower=lower, exclusive=_flags(place) and isinstance(beside, int) and bool(beside))


def exclusive_bound(place: Place) -> Iterator[Clause]:
    """``exclusiveMinimum`` and ``exclusiveMaximum``."""
    if place.kind == "number" and place.document.draft >= 6 and not (_flags(place) and isinstance(place.value, bool)):
        yield _bound(place, lower=place.keyword == "exclusiveMinimum", exclusive=True)


def multiple_of(place: Place) -> Iterator[Clause]:
    """``multipleOf``."""
    if place.kind == "number":
        yield Clause([[Multiple(place.value)]], [[Inexact(place.name)]])


def min_length(place: Place) -> Iterator[Clause]:
    """``minLength``. What no text reaches in practice is not counted."""
    if place.kind == "string":
        low = int(place.value)
        if low > MOST_LENGTH:
            yield place.unknown()
        else:
            yield Clause([[Text(length(low, None))]], [[Text(length(0, low - 1))]] if low else FALSE)


def max_length(place: Place) -> Iterator[Clause]:
    """``maxLength``. What no text reaches in practice is not counted."""
    if place.kind == "string":
        high = int(place.value)
        if high > MOST_LENGTH:
            yield place.unknown()
        else:
            yield Clause([[Text(length(0, high))]], [[Text(length(high + 1, None))]])


def pattern(place: Place) -> Iterator[Clause]:
    """``pattern``, as far as it is regular."""
    if place.kind == "string":
        try:
            found = parse(place.value)
        except (UnsupportedPatternError, RecursionError):
            backtracking(place.value)
            yield place.unknown()
        else:
            yield Clause([[Text(found)]], lambda: [[Text(without(found))]])


def format_(place: Place) -> Iterator[Clause]:
    """``format``, where it is asserted and known."""
    known = FORMATS.get(place.value) if isinstance(place.value, str) else None
    if place.kind != "string" or not place.document.asserted or known is None:
        return
    found = parse(known.pattern)
    if known.exact:
        yield Clause([[Text(found)]], [[Text(without(found))]])
    else:
        yield Clause([[Text(found), Inexact(place.name)]], [[Inexact(place.name)]])
