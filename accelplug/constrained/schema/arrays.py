"""Keywords about arrays."""

from __future__ import annotations

from collections.abc import Iterator

from accelplug.constrained.schema.atoms import Contains, Inexact, Items, Size, Unique
from accelplug.constrained.schema.clauses import FALSE, TRUE, Alternative, Alternatives, Clause, Place, just
from accelplug.constrained.schema.document import Node


def _each(place: Place) -> Clause:
    """One schema per position."""
    nodes = [place.below(index) for index in range(len(place.value))]
    holds: Alternative = [Items(index, index + 1, just((True, node))) for index, node in enumerate(nodes)]
    return Clause([holds], [[Size(index + 1, None), Items(index, index + 1, just((False, node)))] for index, node in enumerate(nodes)])


def _from(start: int, node: Node) -> Clause:
    """One schema from a position on."""
    no, yes = just((False, node)), just((True, node))
    return Clause([[Items(start, None, yes)]], [[Contains(start, no, yes, 1, None)]])


def prefix_items(place: Place) -> Iterator[Clause]:
    """``prefixItems``."""
    if place.kind == "array" and place.document.draft >= 2020:
        yield _each(place)


def items(place: Place) -> Iterator[Clause]:
    """``items``, a schema or, before 2020-12, a list of them."""
    if place.kind != "array":
        return
    if isinstance(place.value, list):
        yield _each(place)
        return
    before = place.node.value.get("prefixItems", ()) if place.document.draft >= 2020 else ()
    yield _from(len(before), place.below())


def additional_items(place: Place) -> Iterator[Clause]:
    """``additionalItems`` behind a list of ``items``."""
    before = place.node.value.get("items")
    if place.kind == "array" and place.document.draft < 2020 and isinstance(before, list):
        yield _from(len(before), place.below())


def contains(place: Place) -> Iterator[Clause]:
    """``contains`` with ``minContains`` and ``maxContains``."""
    if place.kind != "array" or place.document.draft < 6:
        return
    beside = place.node.value if place.document.draft >= 2019 else {}
    low, high = int(beside.get("minContains", 1)), beside.get("maxContains")
    yes, no = just((True, place.below())), just((False, place.below()))
    fails: Alternatives = [[Contains(0, yes, no, 0, low - 1)]] if low else FALSE
    if high is not None:
        fails = [*fails, [Contains(0, yes, no, int(high) + 1, None)]]
    yield Clause([[Contains(0, yes, no, low, None if high is None else int(high))]] if low or high is not None else TRUE, fails)


def min_items(place: Place) -> Iterator[Clause]:
    """``minItems``."""
    if place.kind == "array":
        low = int(place.value)
        yield Clause([[Size(low, None)]], [[Size(0, low - 1)]] if low else FALSE)


def max_items(place: Place) -> Iterator[Clause]:
    """``maxItems``."""
    if place.kind == "array":
        yield Clause([[Size(0, int(place.value))]], [[Size(int(place.value) + 1, None)]])


def unique_items(place: Place) -> Iterator[Clause]:
    """``uniqueItems``."""
    if place.kind == "array" and place.value is True:
        yield Clause([[Unique(place.name)]], [[Size(2, None), Inexact(place.name)]])
