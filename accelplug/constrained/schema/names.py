"""What a schema calls itself and its parts, and where plain pointers lead in it."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any, Final

from accelplug.constrained.schema.seen import NAMING, Seen

_POINTER: Final = re.compile("#(/[^%/]*)*")
_GIVEN: Final = (str, bool)
_ANCHORS: Final = NAMING - {"$id", "id"}


class Names:
    """The names in one document."""

    def __init__(self, schema: Any, seen: Seen) -> None:
        self._schema, self._naming = schema, seen.naming

    @cached_property
    def exist(self) -> bool:
        """Whether the document names parts of itself or the whole, so that a reference may mean what it does by where it stands."""
        return any(map(_names_itself, self._naming))

    @cached_property
    def inside(self) -> bool:
        """Whether it names more than the whole: where ``$id`` of the whole is all, every pointer means the same as without it."""
        return any(not _ANCHORS.isdisjoint(one) if one is self._schema else _names_itself(one) for one in self._naming)

    @cached_property
    def is_one_resource(self) -> bool:
        """Whether nothing inside the document has an identity of its own, so that the whole is the only place to come back to."""
        inside = (one for one in self._naming if one is not self._schema)
        outermost = isinstance(self._schema, dict) and self._schema.get("$recursiveAnchor") is True
        return outermost and not any(isinstance(one.get("$id"), str) for one in inside)

    def is_plain(self, reference: Any) -> bool:
        """Whether a reference is a plain pointer that means the same wherever it stands, and so names a place itself."""
        return isinstance(reference, str) and not self.inside and _POINTER.fullmatch(reference) is not None

    def anchors(self, reference: Any) -> int:
        """Return how many schemas a dynamic reference may come back to; one that may be any counts twice."""
        name = str(reference).rpartition("#")[2]
        named = [one for one in self._naming if one.get("$dynamicAnchor") == name or "$recursiveAnchor" in one]
        return len(named) + any("$recursiveAnchor" in one for one in named)

    def pointed(self, reference: Any) -> Any:
        """Return what a plain pointer into a document that names nothing leads to, None where `referencing` should say."""
        return None if self.exist else self.at(reference)

    def at(self, reference: Any) -> Any:
        """Return what a plain pointer leads to in a document that names no more than the whole, None where it is none, or leads nowhere."""
        if not isinstance(reference, str) or not _POINTER.fullmatch(reference):
            return None
        found: Any = self._schema
        for step in reference.split("/")[1:]:
            if not isinstance(found, dict):
                return None
            found = found.get(step.replace("~1", "/").replace("~0", "~"))
        return found


def is_name(reference: Any) -> bool:
    """Whether a reference may be a name, which is none of a pointer."""
    return isinstance(reference, str) and reference != "#" and "/" not in reference


def has_anchor(value: Any, name: str) -> bool:
    """Whether a schema is one to which a dynamic reference may come back."""
    return isinstance(value, dict) and value.get("$dynamicAnchor") == name


def _names_itself(one: dict[str, Any]) -> bool:
    return any(isinstance(one.get(name), _GIVEN) for name in NAMING)
