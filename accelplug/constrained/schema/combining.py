"""Keywords that combine schemas: references, allOf, anyOf, oneOf, not, if, and those that depend on a property."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from math import comb

from accelplug.constrained.schema.atoms import Absent, Required
from accelplug.constrained.schema.clauses import FALSE, TRUE, Alternative, Alternatives, Clause, Place
from accelplug.constrained.schema.document import Node

MOST_PAIRS = 200


def reference(place: Place) -> Iterator[Clause]:
    """``$ref``, and the dynamic ones where they can only mean one thing."""
    target = place.document.target(place.node, place.keyword)
    yield place.unknown() if target is None else Clause([[(True, target)]], [[(False, target)]])


def _parts(place: Place) -> list[Node]:
    return [place.below(index) for index in range(len(place.value))]


def all_of(place: Place) -> Iterator[Clause]:
    """``allOf``."""
    parts = _parts(place)
    yield Clause([[(True, part) for part in parts]], lambda: [[(False, part)] for part in parts])


def any_of(place: Place) -> Iterator[Clause]:
    """``anyOf``."""
    parts = _parts(place)
    yield Clause([[(True, part)] for part in parts], lambda: [[(False, part) for part in parts]])


def one_of(place: Place) -> Iterator[Clause]:
    """``oneOf``: each alternative with the negation of all others. Branches that cannot meet are told apart elsewhere."""
    parts = _parts(place)
    denied: Alternative = [(False, part) for part in parts]
    holds: Alternatives = [  # told apart by where they stand: `true` is one node, however often it is written
        [(True, part), *denied[:index], *denied[index + 1 :]] for index, part in enumerate(parts)
    ]
    if comb(len(parts), 2) > MOST_PAIRS:
        yield Clause(holds, place.unknown().fails)
        return
    none: Alternatives = [[(False, part) for part in parts]]
    yield Clause(holds, lambda: none + [[(True, one), (True, other)] for one, other in combinations(parts, 2)])


def extends(place: Place) -> Iterator[Clause]:
    """``extends`` of draft 3: one schema or several."""
    parts = _parts(place) if isinstance(place.value, list) else [place.below()]
    yield Clause([[(True, part) for part in parts]], lambda: [[(False, part)] for part in parts])


def disallow(place: Place) -> Iterator[Clause]:
    """``disallow`` of draft 3: types and schemas that a value must not be. Checked at the end."""
    yield place.unknown()


def negation(place: Place) -> Iterator[Clause]:
    """``not``."""
    yield Clause([[(False, place.below())]], [[(True, place.below())]])


def condition(place: Place) -> Iterator[Clause]:
    """``if`` with ``then`` and ``else``."""
    if place.legacy and place.document.draft < 7:
        return
    test, true = place.below(), place.document.truth
    then = place.document.below(place.node, "then") if "then" in place.node.value else true
    other = place.document.below(place.node, "else") if "else" in place.node.value else true
    yield Clause(
        [[(True, test), (True, then)], [(False, test), (True, other)]], [[(True, test), (False, then)], [(False, test), (False, other)]]
    )


def dependent_schemas(place: Place) -> Iterator[Clause]:
    """``dependentSchemas``: a property brings a schema with it."""
    if place.kind == "object":
        for name in place.value:
            yield _depending(place, name)


def dependent_required(place: Place) -> Iterator[Clause]:
    """``dependentRequired``: a property brings others with it."""
    if place.kind == "object":
        for name, others in place.value.items():
            yield _bringing(name, others)


def dependencies(place: Place) -> Iterator[Clause]:
    """``dependencies`` of drafts to 7, both of the above; later ones ask nobody to give it another meaning."""
    if place.kind != "object":
        return
    for name, wanted in place.value.items():
        if isinstance(wanted, dict | bool):
            yield _depending(place, name)
        else:
            yield _bringing(name, [wanted] if isinstance(wanted, str) else wanted)


def _depending(place: Place, name: str) -> Clause:
    part = place.below(name)
    return Clause([[Absent(name)], [Required(name), (True, part)]], [[Required(name), (False, part)]])


def _bringing(name: str, others: list[str]) -> Clause:
    if not others:
        return Clause(TRUE, FALSE)
    brought: Alternatives = [[Absent(name)], [Required(name), *map(Required, others)]]
    return Clause(brought, [[Required(name), Absent(other)] for other in others])
