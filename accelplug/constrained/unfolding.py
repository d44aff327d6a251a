"""How large a schema becomes where each reference is replaced by what it leads to, as engines do that write alternatives out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any, Final
from urllib.parse import unquote

from accelplug.constrained.statements import HOLDING, children, stepped
from accelplug.constrained.tags.older import as_format
from accelplug.hooks import GrammarSpec

MOST_UNFOLDED: Final = 250
"""Schemas in a schema. xgrammar takes up to half a second for so many, and eight times as long for twice as many, where alternatives are nested."""
_DEFINITIONS: Final = frozenset({"$defs", "definitions"})


def unfolds_far(spec: GrammarSpec) -> bool:
    """Whether a schema, or one in a structural tag, is large or becomes so."""
    if spec.kind not in ("json_schema", "structural_tag") or len(spec.text) < MOST_UNFOLDED:
        return False
    value = spec.value()
    try:
        return any(_Unfolding(schema).size(schema) > MOST_UNFOLDED for schema in ([value] if spec.kind == "json_schema" else _within(as_format(value))))
    except RecursionError:
        return True


def _within(value: Any) -> Iterator[Any]:
    """Return the schemas in a structural tag."""
    if isinstance(value, list | dict):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from [one] if key in ("schema", "json_schema") else _within(one)


class _Unfolding:
    """The sizes of the schemas in one document, each worked out once: a reference that comes back to where it stands ends there."""

    def __init__(self, document: Any) -> None:
        self._document = document
        self._sizes: dict[int, int] = {}

    def size(self, schema: Any) -> int:
        """Return how many schemas one becomes."""
        if not isinstance(schema, dict):
            return 0
        found = self._sizes.get(id(schema))
        if found is None:
            self._sizes[id(schema)] = 1
            found = self._sizes[id(schema)] = 1 + sum(map(self.size, self._below(schema)))
        return found

    def _below(self, schema: dict[str, Any]) -> Iterator[Any]:
        for keyword, value in schema.items():
            if keyword == "$ref":
                yield self._at(value)
            elif keyword in HOLDING and keyword not in _DEFINITIONS and isinstance(value, dict | list):
                yield from [child for _, child in children(keyword, value, "")]

    def _at(self, reference: Any) -> Any:
        """Return what a pointer leads to, None where it is none, or leads nowhere."""
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            return None
        try:
            return reduce(stepped, map(unquote, reference.split("/")[1:]), self._document)
        except (LookupError, ValueError, TypeError):
            return None
