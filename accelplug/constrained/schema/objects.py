"""Keywords about objects."""

from __future__ import annotations

from collections.abc import Iterator

from accelplug.constrained.regex.backtracking import backtracking
from accelplug.constrained.regex.parse import UnsupportedPatternError, parse
from accelplug.constrained.regex.tree import Regex, alt, literal, without
from accelplug.constrained.schema.atoms import Absent, Keys, Property, Required, Size, Some
from accelplug.constrained.schema.clauses import FALSE, Alternative, Alternatives, Clause, Place, just
from accelplug.constrained.schema.document import Node
from accelplug.constrained.schema.texts import texts_of


def properties(place: Place) -> Iterator[Clause]:
    """``properties``."""
    if place.kind == "object":
        nodes = [(name, place.below(name)) for name in place.value]
        if place.document.draft == 3 and (
            needed := [name for name, node in nodes if isinstance(node.value, dict) and node.value.get("required")]
        ):
            yield Clause([list(map(Required, needed))], [[Absent(name)] for name in needed])
        yield Clause(
            [[Property(name, just((True, node))) for name, node in nodes]],
            lambda: [[Required(name), Property(name, just((False, node)))] for name, node in nodes],
        )


def required(place: Place) -> Iterator[Clause]:
    """``required``, a list; draft 3 had a truth value here, which later ones pass over."""
    if place.kind == "object" and place.document.draft > 3 and not isinstance(place.value, bool):
        yield Clause([list(map(Required, place.value))], lambda: [[Absent(name)] for name in place.value])


def pattern_properties(place: Place) -> Iterator[Clause]:
    """``patternProperties``."""
    if place.kind != "object":
        return
    for pattern in place.value:
        try:
            regex = parse(pattern)
        except (UnsupportedPatternError, RecursionError):
            backtracking(pattern)
            yield place.unknown()
        else:
            yield _of_all(place, regex, place.below(pattern))


def additional_properties(place: Place) -> Iterator[Clause]:
    """``additionalProperties``: what neither ``properties`` nor ``patternProperties`` name."""
    if place.kind != "object":
        return
    try:
        regex = others(place)
    except (UnsupportedPatternError, RecursionError):
        yield place.unknown()
        return
    yield _of_all(place, regex, place.below())


def _of_all(place: Place, names: Regex, node: Node) -> Clause:
    """Return that all properties of some names satisfy a node."""
    return Clause([[Keys(names, just((True, node)), place.name)]], lambda: [[Some(names, just((False, node)), place.name)]])


def others(place: Place) -> Regex:
    """Return the names that ``properties`` and ``patternProperties`` beside a keyword leave over."""
    beside = place.node.value
    return without(alt(*map(literal, beside.get("properties", ())), *map(parse, beside.get("patternProperties", ()))))


def property_names(place: Place) -> Iterator[Clause]:
    """``propertyNames``: names that are strings against the schema are forbidden."""
    if place.kind != "object" or place.document.draft < 6:
        return
    node, never = place.below(), just((True, place.document.false))
    good = texts_of(place.document, just((True, node)))
    holds: Alternative = [Keys(without(good.regex), never, place.name), *good.inexact]

    def fails() -> Alternatives:
        bad = texts_of(place.document, just((False, node)))
        return [[Some(bad.regex, frozenset(), place.name), *bad.inexact]]

    yield Clause([holds], fails)


def min_properties(place: Place) -> Iterator[Clause]:
    """``minProperties``."""
    if place.kind == "object":
        low = int(place.value)
        yield Clause([[Size(low, None)]], [[Size(0, low - 1)]] if low else FALSE)


def max_properties(place: Place) -> Iterator[Clause]:
    """``maxProperties``."""
    if place.kind == "object":
        yield Clause([[Size(0, int(place.value))]], [[Size(int(place.value) + 1, None)]])
