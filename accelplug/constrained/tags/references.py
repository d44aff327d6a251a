"""References in the schemas of a structural tag: the final check has to find what they name."""

from __future__ import annotations

from collections.abc import Collection

from accelplug.constrained.schema.document import Document, Node
from accelplug.constrained.statements import Use, at


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
