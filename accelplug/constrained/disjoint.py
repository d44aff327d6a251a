"""Which alternatives of a ``oneOf`` certainly share no value, seen at sight: then it says no more than ``anyOf``, which engines know better.

By their types, by strings that are fixed, and of objects by a property that one of them requires: the other forbids it, or wants another value.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any, Final, NamedTuple

from accelplug.constrained.schema.atoms import KINDS, kind_of, kinds_named
from accelplug.constrained.schema.document import Document

MOST_PARTS: Final = 30
_DEEPEST: Final = 3
_LONGEST_CHAIN: Final = 8
_ALL: Final = frozenset(KINDS)
_NONE: Final[Mapping[str, list[Any]]] = {}


class Facts(NamedTuple):
    """What every value of a schema certainly is.

    :param kinds: its types.
    :param strings: if it is a string, one of these; None where that is not known.
    :param properties: if it is an object, the schemas of its properties, each name with all of them.
    :param required: the properties that it then has.
    :param closed: sets of names that it then has no other than.
    """

    kinds: frozenset[str] = _ALL
    strings: frozenset[str] | None = None
    properties: Mapping[str, list[Any]] = _NONE
    required: frozenset[str] = frozenset()
    closed: tuple[frozenset[str], ...] = ()


class Disjoint:
    """Looks at the schemas of one document, at each once."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._facts: dict[int, Facts] = {}

    def all_apart(self, parts: list[Any], kinds: frozenset[str] = _ALL) -> bool | None:
        """Whether no value of these types satisfies two of these schemas, None where that is not looked at."""
        if len(parts) > MOST_PARTS or self._document.draft < 4:
            return None
        return all(self.apart(one, other, kinds) for one, other in combinations(parts, 2))

    def apart(self, one: Any, other: Any, kinds: frozenset[str] = _ALL, depth: int = _DEEPEST) -> bool:
        """Whether certainly no value of these types satisfies both schemas."""
        mine, others = self._facts_of(one), self._facts_of(other)
        common = mine.kinds & others.kinds & kinds
        if "string" in common and mine.strings is not None and others.strings is not None and not mine.strings & others.strings:
            common -= {"string"}
        if "object" in common and depth and self._no_object(mine, others, depth):
            common -= {"object"}
        return not common

    def _no_object(self, one: Facts, other: Facts, depth: int) -> bool:
        for name in one.required | other.required:
            if any(name not in names for names in one.closed + other.closed):
                return True
            pairs = ((mine, its) for mine in one.properties.get(name, ()) for its in other.properties.get(name, ()))
            if any(self.apart(mine, its, depth=depth - 1) for mine, its in pairs):
                return True
        return False

    def _facts_of(self, schema: Any) -> Facts:
        found = self._facts.get(id(schema))
        if found is None:
            found = self._facts[id(schema)] = self._read(schema, _LONGEST_CHAIN)
        return found

    def _read(self, schema: Any, left: int) -> Facts:
        if not isinstance(schema, dict) or not left:
            return Facts()
        if "$ref" not in schema:
            return _own(schema, self._document.draft)
        referred = self._read(self._document.names.pointed(schema["$ref"]), left - 1)
        return referred if self._document.draft <= 7 else _together(referred, _own(schema, self._document.draft))


def _together(one: Facts, other: Facts) -> Facts:
    strings = one.strings if other.strings is None else other.strings if one.strings is None else one.strings & other.strings
    names = [*one.properties, *other.properties]
    properties = {name: one.properties.get(name, []) + other.properties.get(name, []) for name in names}
    return Facts(one.kinds & other.kinds, strings, properties, one.required | other.required, one.closed + other.closed)


def _own(schema: dict[str, Any], draft: int) -> Facts:
    """Return what a schema's own keywords say."""
    kinds, strings = kinds_named(schema.get("type")), None
    listed = schema.get("enum")
    values = [schema["const"]] if "const" in schema and draft >= 6 else listed if isinstance(listed, list) else None
    if values is not None:
        kinds &= frozenset(map(kind_of, values))
        strings = frozenset(value for value in values if isinstance(value, str))
    properties, required = schema.get("properties"), schema.get("required")
    known = properties if isinstance(properties, dict) else {}
    closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
    return Facts(
        kinds,
        strings,
        {name: [child] for name, child in known.items()},
        frozenset(name for name in required if isinstance(name, str)) if isinstance(required, list) else frozenset(),
        (frozenset(known),) if closed else (),
    )
