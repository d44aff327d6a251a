"""Schemas without what constrains nothing and what no mask decides, so that an engine takes more of them as they are."""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Any, Final, NamedTuple

from accelplug.constrained.disjoint import Disjoint
from accelplug.constrained.engines.known import enforces
from accelplug.constrained.engines.on_llguidance import NAME
from accelplug.constrained.lark.terminals import plain as rust
from accelplug.constrained.probes import PROBES
from accelplug.constrained.regex.parse import UnsupportedPatternError, parse
from accelplug.constrained.regex.tree import NOTHING
from accelplug.constrained.schema.atoms import kinds_named
from accelplug.constrained.schema.document import BESIDE_NOTHING, Document
from accelplug.constrained.schema.formats import FORMATS
from accelplug.constrained.schema.seen import Seen, escaped
from accelplug.constrained.schema.vocabulary import MAPS
from accelplug.constrained.statements import HOLDING, IN_A_DIALECT, LISTS, ONES, WITH_CLASSES, Use, is_a_dialect

_TOUCHED: Final = frozenset({"oneOf", "uniqueItems", "multipleOf"})
MAY_CHANGE: Final = _TOUCHED | {"format", "pattern", "patternProperties"}
"""Keywords that may be written otherwise."""
_BESIDE_A_REFERENCE: Final = BESIDE_NOTHING | {"$schema", "$id", "id", "$defs", "definitions"}
_LOOKED_AT: Final = HOLDING | MAY_CHANGE | {"$ref"}
_MANY: Final = frozenset({"string", "number", "integer", "array", "object"})
"""Types of which there are more values than a mask remembers, unless they are listed."""
_FEWER_VALUES: Final = frozenset({"const", "enum", "$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "not", "if"})
_LONGEST_CHAIN: Final = 8
_FEWER_ITEMS: Final = _FEWER_VALUES | {"maxItems", "prefixItems", "contains"}


class Plain(NamedTuple):
    """A schema for an engine.

    :param text: the schema.
    :param features: what the engine must be able to do.
    :param checked: the places of what is left to the final check.
    :param overlaps: whether it has a `oneOf` whose alternatives may share a value.
    """

    text: str
    features: frozenset[str]
    checked: tuple[str, ...]
    overlaps: bool


def plain(document: Document, found: list[Use], text: str) -> Plain:
    """Leave out siblings of references that the draft ignores, formats that say nothing, and `uniqueItems` of what there is too much of.

    A `oneOf` whose alternatives certainly share no value is written as `anyOf`, since engines see less of that.

    Formats that no engine was seen to enforce become expressions. Expressions that engines read in a way of their own are written so that there is one.
    """
    dialects = {use.place: use.feature for use in found if IN_A_DIALECT in use.feature}
    reader = _Reader(document, dialects, keeps_one_of="/oneOf/" in text)
    if reader.may_change(document.seen):
        schema = reader.schema(document.schema, "#")
        if reader.changed:
            text = json.dumps(schema, ensure_ascii=False)
    written = reader.features
    features = frozenset([written.get(use.place, use.feature) for use in found] if written else [use.feature for use in found]) - {""}
    return Plain(text, features, tuple(reader.checked), reader.overlaps)


class _Reader:
    """One pass over a schema.

    :param dialects: the features of expressions that engines read in a way of their own, by their places.
    :param keeps_one_of: `oneOf` keeps its name, since references may lead through it.
    """

    def __init__(self, document: Document, dialects: dict[str, str], *, keeps_one_of: bool) -> None:
        self.document, self.dialects, self.keeps_one_of, self.changed = document, dialects, keeps_one_of, False
        self.disjoint = Disjoint(document)
        self.features: dict[str, str] = {}
        self.checked: list[str] = []
        self.overlaps = False

    def may_change(self, seen: Seen) -> bool:
        """Whether something may be left out or written otherwise: a glance that spares most schemas the rest."""
        if self.dialects or not _TOUCHED.isdisjoint(seen.keywords) or self._ignores(seen.beside_references):
            return True
        return not all(map(self._keeps, seen.formats))

    def _ignores(self, beside: Set[str]) -> bool:
        """Whether a reference has siblings that the draft ignores."""
        return self.document.draft <= 7 and not beside <= _BESIDE_A_REFERENCE

    def _keeps(self, format_name: Any) -> bool:
        feature = f"format {format_name}"
        return self.document.asserted and feature in PROBES and enforces(NAME, feature)

    def schema(self, schema: Any, place: str) -> Any:
        """Return a schema as an engine should see it."""
        if not isinstance(schema, dict) or _LOOKED_AT.isdisjoint(schema):
            return schema
        if "$ref" in schema and self._ignores(schema.keys()):
            self.changed = True
            schema = {keyword: value for keyword, value in schema.items() if keyword in _BESIDE_A_REFERENCE}
        found: dict[str, Any] = {}
        for keyword, value in schema.items():
            here = f"{place}/{keyword}"
            if not self._drops(schema, keyword, here):
                found[keyword] = self._in_one_way(self._below(keyword, value, here) if keyword in HOLDING else value, here)
        if "oneOf" in found and self._is_any_of(schema):
            self.changed = True
            found = {"anyOf" if keyword == "oneOf" else keyword: value for keyword, value in found.items()}
        if "multipleOf" in schema and self.features.get(f"{place}/multipleOf") == "":
            found["type"] = "integer"
        if "format" in schema and "format" not in found:
            self._other_format(found, schema["format"], f"{place}/format")
        return found

    def _drops(self, schema: dict[str, Any], keyword: str, place: str) -> bool:
        """Whether a keyword is left out, or will be written by another."""
        if keyword == "uniqueItems":
            return self._drops_unique(schema, place)
        if keyword == "multipleOf":
            return self._drops_ones(schema, place)
        return keyword == "format" and not self._keeps(schema[keyword])

    def _is_any_of(self, schema: dict[str, Any]) -> bool:
        """Whether ``anyOf`` may stand in the place of ``oneOf``."""
        parts = schema["oneOf"]
        apart = isinstance(parts, list) and self.disjoint.all_apart(parts, kinds_named(schema.get("type")))
        self.overlaps |= apart is False
        return apart is True and not self.keeps_one_of and "anyOf" not in schema

    def _below(self, keyword: str, value: Any, place: str) -> Any:
        if keyword in MAPS and isinstance(value, dict):
            return {name: self.schema(child, f"{place}/{escaped(name)}") for name, child in value.items()}
        if keyword in LISTS and isinstance(value, list):
            return [self.schema(child, f"{place}/{index}") for index, child in enumerate(value)]
        return self.schema(value, place) if keyword in ONES else value

    def _other_format(self, found: dict[str, Any], name: Any, place: str) -> None:
        """Leave a format out that constrains nothing; add the expression of one that an engine was not seen to enforce."""
        self.changed = True
        known = FORMATS.get(name) if self.document.asserted and isinstance(name, str) else None
        if known is None:
            return
        if (written := in_rust(known.pattern)) is None:  # which leaves the feature that no engine was seen to have
            return
        pattern = {"pattern": written}
        found |= {"allOf": [*found.get("allOf", ()), pattern]} if "pattern" in found else pattern
        self.features[place] = f"pattern{WITH_CLASSES}"
        if not known.exact:
            self.checked.append(place)

    def _in_one_way(self, value: Any, place: str) -> Any:
        """Return an expression, or what stands by expressions, so that engines read it as it is meant; as it is where it cannot be written so."""
        if place not in self.dialects:
            return value
        before = list(value) if isinstance(value, dict) else [value]
        written = [in_rust(one) if is_a_dialect(one) else one for one in before]
        if None in written or len(set(written)) < len(written):
            return value
        self.changed, self.features[place] = True, self.dialects[place].replace(IN_A_DIALECT, WITH_CLASSES)
        return dict(zip(written, value.values(), strict=True)) if isinstance(value, dict) else written[0]

    def _drops_ones(self, schema: dict[str, Any], place: str) -> bool:
        """Whether multiples of 1 are written as integers."""
        if schema["multipleOf"] is True or schema["multipleOf"] != 1 or schema.get("type") not in ("number", "integer"):
            return False
        self.changed, self.features[place] = True, ""
        return True

    def _drops_unique(self, schema: dict[str, Any], place: str) -> bool:
        if schema["uniqueItems"] is True:
            if not self._is_beyond_masks(schema):
                return False
            self.checked.append(place)
        self.changed, self.features[place] = True, ""
        return True

    def _is_beyond_masks(self, schema: dict[str, Any]) -> bool:
        """Whether an array has items of which there are too many for a mask to remember, as far as that is seen at sight."""
        items = self._meant(schema.get("items", True))
        if schema.keys() & _FEWER_ITEMS or not (items is True or isinstance(items, dict)):
            return False
        if items is True:
            return True
        named = items.get("type")
        kinds = _MANY if named is None else {named} if isinstance(named, str) else set(named) if isinstance(named, list) else set()
        return not kinds.isdisjoint(_MANY) and not items.keys() & _FEWER_VALUES

    def _meant(self, schema: Any) -> Any:
        """Return what a schema refers to, where it is no more than a reference."""
        for _ in range(_LONGEST_CHAIN):
            if not (isinstance(schema, dict) and "$ref" in schema and (self.document.draft <= 7 or len(schema) == 1)):
                break
            schema = self.document.names.pointed(schema["$ref"])
        return schema


def in_rust(pattern: str) -> str | None:
    """Return an expression in ranges of characters, which llguidance reads in one way only; None where it has none, or needs more than expressions say."""
    try:
        regex = parse(pattern)
    except (UnsupportedPatternError, RecursionError):
        return None
    return None if regex.is_algebraic or regex == NOTHING else f"^(?:{rust(regex)})$"
