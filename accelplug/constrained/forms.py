"""What one engine alone enforces of a schema: a keyword only in a form in which that engine was seen to.

An engine that reads one keyword of a schema and drops those beside it enforces each keyword by itself, and not all of them together. With such an
engine only plain forms count: a type with keywords of its own that were probed together, or one keyword that is all that a schema says.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Set
from typing import Any, Final

from accelplug.constrained.disjoint import Disjoint
from accelplug.constrained.engines.known import enforces
from accelplug.constrained.probes import (
    BOUNDS_OF_INTEGERS,
    BOUNDS_OF_NUMBERS,
    FRONT_ITEMS,
    ITEMS,
    LENGTHS,
    OVERLAPPING,
    PROBES,
    PROPERTIES,
    TOGETHER,
)
from accelplug.constrained.schema.document import Document
from accelplug.constrained.schema.vocabulary import SPEAKING, later_than
from accelplug.constrained.statements import BESIDE_OTHERS, WITH_CLASSES, Use, at, is_below, uses

_BOUNDS: Final = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_SEVERAL: Final = {
    "integer": ((BOUNDS_OF_INTEGERS, _BOUNDS),),
    "number": ((BOUNDS_OF_NUMBERS, _BOUNDS),),
    "string": ((LENGTHS, frozenset({"minLength", "maxLength"})),),
    "array": ((ITEMS, frozenset({"items", "minItems", "maxItems"})), (FRONT_ITEMS, frozenset({"prefixItems", "items", "minItems"}))),
    "object": ((PROPERTIES, frozenset({"properties", "required", "additionalProperties"})),),
}
"""Type -> what keywords may stand beside it, one or several, and the feature that an engine needs for them."""
_COUNTS: Final = (("minItems", "maxItems"), ("minLength", "maxLength"))
_BY_THEMSELVES: Final = frozenset({"const", "enum", "anyOf", "oneOf", "allOf", "$ref"})


def stated(name: str, document: Document) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the places of the keywords that an engine enforces in a schema as it is, and of those that are left to the final check."""
    found = uses(document)
    places = list(dict.fromkeys([use.place for use in found]))
    if "x-guidance" in document.seen.keywords:  # which tells llguidance not to take everything seriously
        return (), tuple(places)
    unknown = {use.place: use for use in found if not _knows(name, use)}
    spelled = {place for place, use in unknown.items() if _knows(name, use._replace(feature=use.feature.removesuffix(BESIDE_OTHERS)))}
    dropped = (unknown.keys() - spelled) | doubtful(name, document, places)
    checked = spelled | _with_what_is_below(document, places, dropped)
    return tuple([place for place in places if place not in checked]), tuple([place for place in places if place in checked])


def _knows(name: str, use: Use) -> bool:
    return enforces(name, use.feature) and (not use.feature.endswith(WITH_CLASSES) or enforces(name, use.keyword))


def _with_what_is_below(document: Document, places: list[str], dropped: Set[str]) -> set[str]:
    """Return what stands at or below what is dropped, and where references that are dropped lead."""
    roots, found = dropped, set[str]()
    while True:
        below = {place for place in places if place not in found and is_below(place, roots)}
        if not below:
            return found
        found |= below
        roots = {str(at(document.schema, place)) for place in below if place.endswith("/$ref")}


def doubtful(name: str, document: Document, places: list[str]) -> set[str]:
    """Return the places of keywords in a form that an engine was not seen to enforce.

    :param places: of all uses in the document.
    """
    disjoint, found = Disjoint(document), set[str]()
    reads_all, reads_overlaps = enforces(name, TOGETHER), enforces(name, OVERLAPPING)
    later = later_than(document.draft)  # keywords that engines know and the draft does not
    for parent in dict.fromkeys([place.rpartition("/")[0] for place in places]):
        schema = at(document.schema, parent)
        spoken = SPEAKING.intersection(schema)
        if not later.isdisjoint(spoken) or not (reads_all or _is_plain(name, document, schema, spoken)):
            found.update([f"{parent}/{keyword}" for keyword in spoken])
        if "oneOf" in spoken and not reads_overlaps and disjoint.all_apart(schema["oneOf"]) is not True:
            found.add(f"{parent}/oneOf")
        if "$ref" in spoken and document.names.inside:  # pointers may then begin elsewhere
            found.add(f"{parent}/$ref")
    return found


def _is_plain(name: str, document: Document, schema: dict[str, Any], spoken: Collection[str]) -> bool:
    """Whether a schema is no more than what an engine was seen to enforce together."""
    rest = {keyword for keyword in spoken if keyword != "type"}
    if "type" not in spoken:
        return len(rest) == 1 and rest <= _BY_THEMSELVES
    if not rest:
        return True
    kinds = schema["type"]
    if rest in ({"const"}, {"enum"}):  # of which engines drop the type
        values = schema["enum"] if "enum" in rest else [schema["const"]]
        return all(document.checking.over({"type": kinds}, asserted=False).is_valid(value) for value in values)
    if not isinstance(kinds, str) or kinds not in _SEVERAL or any(schema.get(low, 0) > schema.get(high, math.inf) for low, high in _COUNTS):
        return False
    if any(rest <= several and enforces(name, feature) for feature, several in _SEVERAL[kinds]):
        return True
    probe = PROBES.get(next(iter(rest)))
    return len(rest) == 1 and probe is not None and probe.schema.get("type") == kinds
