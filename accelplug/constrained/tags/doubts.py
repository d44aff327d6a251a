"""Which keywords of a schema an engine that reads some and drops those beside them was not seen to enforce where they stand.

It enforces each keyword by itself, and not all of them together: a bound beside ``anyOf`` or ``$ref`` is dropped, and what says no type is taken for
the type that its keywords are of. Only plain forms count: a type with keywords that belong together, or one keyword that is all that a schema says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any, Final

from accelplug.constrained.disjoint import Disjoint
from accelplug.constrained.schema.document import Document, Node
from accelplug.constrained.statements import Use

_BY_THEMSELVES: Final = frozenset({"const", "enum", "anyOf", "oneOf", "$ref"})
_BOUNDS: Final = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_TOGETHER: Final = {
    "integer": (_BOUNDS,),
    "number": (_BOUNDS,),
    "array": (frozenset({"items", "minItems", "maxItems"}), frozenset({"prefixItems", "items", "minItems"})),
    "object": (frozenset({"properties", "required", "additionalProperties"}),),
}
"""Type -> what keywords may stand beside it, one or several."""


def beside_others(document: Document, found: list[Use]) -> set[str]:
    """Return the places of keywords that stand beside others with which they may not be enforced.

    :param found: all uses of the document.
    """
    spoken: dict[str, set[str]] = defaultdict(set)
    for use in found:
        spoken[use.place.rpartition("/")[0]].add(use.keyword)
    disjoint, doubtful = Disjoint(document), set[str]()
    for parent, keywords in spoken.items():
        schema = at(document.schema, parent)
        if not _is_plain(document, schema, keywords):
            doubtful.update(f"{parent}/{keyword}" for keyword in keywords)
        if "oneOf" in keywords and disjoint.all_apart(schema["oneOf"]) is not True:
            doubtful.add(f"{parent}/oneOf")
        if "$ref" in keywords and document.names.inside:  # pointers may then begin elsewhere
            doubtful.add(f"{parent}/$ref")
    return doubtful


def check_references(document: Document, found: list[Use]) -> None:
    """Refuse a schema whose final check would look for what is not in it.

    :raises ConstraintError: naming the reference.
    """
    parents = {use.place.rpartition("/")[0] for use in found}
    for use in found:
        if use.keyword == "$ref":
            document.target(_node(document, use.place.rpartition("/")[0], parents), "$ref")


def _node(document: Document, place: str, parents: Collection[str]) -> Node:
    """Return the node at a place, having passed all that name themselves above it."""
    node, steps = document.root, place.split("/")
    for count in range(2, len(steps) + 1):
        above = "/".join(steps[:count])
        if above in parents:
            node = document.node(at(document.schema, above), above, node.resolver)
    return node


def at(schema: Any, place: str) -> Any:
    """Return what stands at a place of a use."""
    for step in place.split("/")[1:]:
        schema = schema[int(step) if isinstance(schema, list) else step.replace("~1", "/").replace("~0", "~")]
    return schema


def _is_plain(document: Document, schema: dict[str, Any], spoken: set[str]) -> bool:
    rest = spoken - {"type"}
    if "type" not in spoken:
        return len(rest) == 1 and rest <= _BY_THEMSELVES
    if rest in ({"const"}, {"enum"}):  # of which the type is dropped
        values = schema["enum"] if "enum" in rest else [schema["const"]]
        return all(document.checking.over({"type": schema["type"]}, asserted=False).is_valid(value) for value in values)
    if not rest or not isinstance(schema["type"], str):
        return not rest
    together = any(rest <= several for several in _TOGETHER.get(schema["type"], ()))
    return together or (len(rest) == 1 and rest.isdisjoint(_BY_THEMSELVES))
