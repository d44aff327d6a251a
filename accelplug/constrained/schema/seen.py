"""One look at every object in a schema, whether it is a subschema or not; and how JSON pointers write a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

NAMING: Final = frozenset({"$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor"})
"""Keywords by which a schema may name itself, or a part of it."""
_PARTS: Final = (dict, list)


class Seen:
    """What one look at every object in a schema finds, whether it is a subschema or not.

    :param depth: of nesting.
    :param keywords: all names in it.
    :param beside_references: those that stand beside a ``$ref``, it included.
    :param references: what stands as ``$ref``.
    :param formats: what stands as ``format``.
    :param naming: the objects that may name themselves.
    :param lists_items: whether ``items`` is a list somewhere.
    """

    def __init__(self, schema: Any) -> None:
        self.keywords, self.beside_references = set[str](), set[str]()
        self.references: list[Any] = []
        self.formats: list[Any] = []
        self.naming: list[dict[str, Any]] = []
        self.lists_items = False
        self.depth, level = 0, [schema]
        while level:
            self.depth += 1
            parts = [self._parts(one) for one in level]
            level = [child for children in parts for child in children if isinstance(child, _PARTS)]

    def _parts(self, one: Any) -> Iterable[Any]:
        if not isinstance(one, dict):
            return one if isinstance(one, list) else ()
        self.keywords.update(one)
        if "$ref" in one:
            self.beside_references.update(one)
            self.references.append(one["$ref"])
        if not NAMING.isdisjoint(one):
            self.naming.append(one)
        if "format" in one:
            self.formats.append(one["format"])
        if "items" in one and isinstance(one["items"], list):
            self.lists_items = True
        return one.values()


def escaped(step: str | int) -> str:
    """Return a step as JSON pointers write it."""
    text = str(step)
    return text.replace("~", "~0").replace("/", "~1") if "~" in text or "/" in text else text
