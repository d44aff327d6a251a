"""The types of which a value may satisfy a node, as far as that is seen at sight: most alternatives fall away by them."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from accelplug.constrained.schema.atoms import KINDS, kind_of, kinds_named
from accelplug.constrained.schema.document import Document, Node, State

ALL: Final = frozenset(KINDS)
_NONE: Final = frozenset[str]()
_COMBINING: Final = frozenset({"allOf", "anyOf", "oneOf"})


@cache
def in_order(kinds: frozenset[str]) -> tuple[str, ...]:
    """Return types in the order in which they are written."""
    return tuple([kind for kind in KINDS if kind in kinds])


class Kinds:
    """The types of a document's nodes, each looked for once."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._found: dict[int, frozenset[str]] = {}

    def of(self, node: Node) -> frozenset[str]:
        """Return the types that a node leaves, or more than those."""
        found = self._found.get(node.number)
        if found is None:
            self._found[node.number] = ALL  # while it is being worked out: references may go in circles
            found = self._found[node.number] = self._at_sight(node)
        return found

    def left_by(self, state: State) -> tuple[str, ...]:
        """Return the types that no schema of a state rules out by what is seen at sight, in the order in which types are written."""
        left = ALL
        for sign, node in state:
            if sign:
                left = self.of(node) & left
        return in_order(left)

    def _at_sight(self, node: Node) -> frozenset[str]:
        schema = node.value
        if not isinstance(schema, dict):
            return ALL if schema else _NONE
        left = ALL
        if "$ref" in schema:
            target = self._document.target(node, "$ref")
            left = ALL if target is None else self.of(target)
            if self._document.draft <= 7:
                return left
        left &= kinds_named(schema.get("type"))  # what no type is, its keyword refuses
        listed = schema.get("enum")
        if isinstance(listed, list):
            left = left.intersection(map(kind_of, listed))
        return left if self._document.draft <= 3 or _COMBINING.isdisjoint(schema) else left & self._combined(node, schema)

    def _combined(self, node: Node, schema: dict[str, Any]) -> frozenset[str]:
        """Return the types that combinations leave."""
        left = ALL
        for keyword in ("allOf", "anyOf", "oneOf"):
            parts = schema.get(keyword)
            if isinstance(parts, list) and parts:
                of_parts = [self.of(self._document.below(node, keyword, index)) for index in range(len(parts))]
                left &= ALL.intersection(*of_parts) if keyword == "allOf" else _NONE.union(*of_parts)
        return left
