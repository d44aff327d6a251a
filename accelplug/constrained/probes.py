"""What an engine really enforces: for every feature a schema, texts it must let through and texts it must not.

The table is run against the installed release on a vocabulary of bytes, once per process: an engine is trusted with what it was seen to do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from typing import Any, Final, NamedTuple

from accelplug._errors import ConstraintError
from accelplug.hooks import GrammarSpec, Matcher, Vocabulary


class Probe(NamedTuple):
    """A schema with values that satisfy it and values that do not."""

    schema: Any
    good: tuple[Any, ...]
    bad: tuple[Any, ...]


def _string(**keywords: Any) -> dict[str, Any]:
    return {"type": "string", **keywords}


def _object(**keywords: Any) -> dict[str, Any]:
    return {"type": "object", **keywords}


def _array(**keywords: Any) -> dict[str, Any]:
    return {"type": "array", **keywords}


def _bounded(kind: str) -> Iterator[Probe]:
    """Return probes of numbers with one bound, and with one on either side."""
    below, above = ({"minimum": 3}, {"exclusiveMinimum": 2}), ({"maximum": 9}, {"exclusiveMaximum": 10})
    for low, high in [*product(below, above), *product(below, ({},)), *product(({},), above)]:
        good = tuple(number for number in _NUMBERS if not (low and number < 3) and not (high and number > 9))
        yield Probe({"type": kind, **low, **high}, good, (*[number for number in _NUMBERS if number not in good], "a"))


_NUMBERS: Final = (-4, 2, 3, 4, 5, 8, 9, 10, 33, 50)
_DRAFT_7: Final = "http://json-schema.org/draft-07/schema#"
_I: Final = {"type": "integer"}
_S: Final = {"type": "string"}
_A: Final = {"a": {"type": "integer"}}
PROBES: Final[dict[str, Probe]] = {
    "type": Probe({"type": ["integer", "null"]}, (1, -7, None), (1.5, "a", True, [], {})),
    "const": Probe({"const": "ab"}, ("ab",), ("a", "abc", 1)),
    "const of parts": Probe({"const": {"a": [1, 2.5]}}, ({"a": [1, 2.5]},), ({"a": [1]}, {"a": [1, 2.5], "b": 1}, {})),
    "enum": Probe({"enum": ["a", 1, None]}, ("a", 1, None), ("b", 2, "1", False)),
    "enum of parts": Probe({"enum": [{"a": 1}, [1], 0.5]}, ({"a": 1}, [1], 0.5), ({}, [], {"a": 2}, 1)),
    "minimum": Probe({"type": "integer", "minimum": 5}, (5, 10, 123), (4, -6, 0)),
    "maximum": Probe({"type": "number", "maximum": 5.5}, (5.5, 5, -100), (5.6, 6, 51)),
    "exclusiveMinimum": Probe({"type": "number", "exclusiveMinimum": 0}, (0.1, 1), (0, -1)),
    "exclusiveMaximum": Probe({"type": "integer", "exclusiveMaximum": 10}, (9, -1), (10, 11, 100)),
    "multipleOf from zero on": Probe({"type": "integer", "minimum": 0, "multipleOf": 7}, (0, 7, 14, 70), (1, 15, 71, -7, 7.5)),
    "multipleOf": Probe({"type": "integer", "multipleOf": 7}, (7, 14, 0, 70, -14), (1, 15, 71, -15)),
    "minLength": Probe(_string(minLength=2), ("ab", "abc", "\u00e4\u00e4", 'a"'), ("", "a", "\u00e4", '"')),
    "maxLength": Probe(_string(maxLength=2), ("", "ab", "\u00e4\u00e4", '""'), ("abc", "\u00e4\u00e4\u00e4")),
    "pattern": Probe(_string(pattern="^a[bc]+$|x"), ("abc", "yxy"), ("a", "abd", "")),
    "pattern with classes": Probe(
        _string(pattern=r"^\d\w\D\W$"), ("1a!!", "1a\u0663\u00e4"), ("\u0663a!!", "1\u00e4!!", "1a1!", "1a!a", "1a!")
    ),
    "properties": Probe(_object(properties=_A, additionalProperties=False), ({}, {"a": 1}), ({"a": "x"}, {"b": 1})),
    "required": Probe(_object(properties=_A, required=["a", "b"]), ({"a": 1, "b": 2},), ({}, {"a": 1}, {"b": 1})),
    "additionalProperties": Probe(
        _object(properties=_A, additionalProperties={"type": "string"}),
        ({"a": 1, "b": "x"}, {"ab": "x"}),
        ({"b": 1}, {"a": "x"}, {"a": 1, "b": 1}),
    ),
    "patternProperties": Probe(
        _object(patternProperties={"^a": {"type": "integer"}}, additionalProperties=False), ({}, {"a": 1, "ab": 2}), ({"a": "x"}, {"b": 1})
    ),
    "patternProperties with classes": Probe(
        _object(patternProperties={r"^\d$": {"type": "integer"}}, additionalProperties=False),
        ({}, {"1": 1}),
        ({"a": 1}, {"\u0663": 1}, {"1": "x"}),
    ),
    "minProperties": Probe(_object(minProperties=2), ({"a": 1, "b": 2},), ({}, {"a": 1})),
    "maxProperties": Probe(_object(maxProperties=1), ({}, {"a": 1}), ({"a": 1, "b": 2},)),
    "minProperties beside optional properties": Probe(_object(properties=_A, minProperties=1), ({"a": 1}, {"b": 1}), ({}, {"a": "x"})),
    "maxProperties beside optional properties": Probe(_object(properties=_A, maxProperties=1), ({}, {"a": 1}), ({"a": 1, "b": 2},)),
    "propertyNames": Probe(_object(propertyNames={"maxLength": 1}), ({}, {"a": 1}), ({"ab": 1},)),
    "items": Probe(_array(items={"type": "integer"}), ([], [1, 2]), (["a"], [1, "a"])),
    "prefixItems": Probe(_array(prefixItems=[{"type": "integer"}, {"type": "string"}]), ([], [1, "a", None]), (["a"], [1, 2])),
    "items as a list": Probe(
        {"$schema": _DRAFT_7, "type": "array", "items": [{"type": "integer"}, {"type": "string"}]},
        ([], [1], [1, "a"], [1, "a", None]),
        (["a"], [1, 2]),
    ),
    "additionalItems": Probe(
        {"$schema": _DRAFT_7, "type": "array", "items": [{"type": "integer"}], "additionalItems": {"type": "string"}},
        ([], [1], [1, "a"]),
        (["a"], [1, 2], [1, "a", 2]),
    ),
    "minItems": Probe(_array(minItems=2), ([1, 2], [1, 2, 3]), ([], [1])),
    "maxItems": Probe(_array(maxItems=2), ([], [1, 2]), ([1, 2, 3],)),
    "uniqueItems": Probe(_array(uniqueItems=True), ([], [1, 2]), ([1, 1],)),
    "contains": Probe(_array(contains={"const": 1}), ([1], [2, 1]), ([], [2])),
    "anyOf": Probe({"anyOf": [{"type": "integer"}, {"type": "string"}]}, (1, "a"), (1.5, None, [])),
    "allOf": Probe({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, (3, 5), (2, 6, "a")),
    "oneOf": Probe({"oneOf": [{"type": "integer"}, {"type": "string"}]}, (1, "a"), (None, 1.5)),
    "$ref": Probe({"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}}, (1,), ("a",)),
    "$ref to an anchor": Probe({"$ref": "#a", "$defs": {"b": {"$anchor": "a", "type": "integer"}}}, (1,), ("a",)),
    "$ref with siblings": Probe({"$ref": "#/$defs/a", "maximum": 5, "$defs": {"a": {"type": "integer"}}}, (5, -1), (6, "a")),
    "format date": Probe(_string(format="date"), ("2024-12-31", "2024-02-29"), ("2024-13-01", "2024-1-1", "2023-02-29", "0000-01-01", "x", "")),
    "format time": Probe(_string(format="time"), ("12:00:00Z", "23:59:59+01:00"), ("24:00:00Z", "12:00:60Z", "12:00", "x")),
    "format date-time": Probe(_string(format="date-time"), ("2024-12-31T12:00:00Z",), ("2024-12-31", "2024-13-31T12:00:00Z", "2023-02-29T12:00:00Z", "x")),
    "format uuid": Probe(_string(format="uuid"), ("123e4567-e89b-12d3-a456-426614174000",), ("123e4567", "x")),
    "format ipv4": Probe(_string(format="ipv4"), ("127.0.0.1",), ("256.0.0.1", "1.2.3")),
    "format ipv6": Probe(_string(format="ipv6"), ("::1", "2001:db8::8a2e:370:7334", "::ffff:1.2.3.4"), ("12345::", "x")),
    "format hostname": Probe(_string(format="hostname"), ("example.com",), ("-a.com", "a b", "xn--X")),
    "format email": Probe(_string(format="email"), ("a@example.com", '"a b"@c.d', "a@[IPv6:::1]"), ("a", "a@", "@b")),
    "format uri": Probe(_string(format="uri"), ("https://example.com/a?b#c", "http://[::ffff:1.2.3.4]/"), ("a b", "example")),
}


OVERLAPPING: Final = "oneOf that overlaps"
BOUNDS_OF_INTEGERS: Final = "bounds of integers"
BOUNDS_OF_NUMBERS: Final = "bounds of numbers"
LENGTHS: Final = "lengths of texts"
ITEMS: Final = "items that are counted"
FRONT_ITEMS: Final = "items behind the first"
PROPERTIES: Final = "properties and others"
TOGETHER: Final = "keywords together"
FORMS: Final[dict[str, tuple[Probe, ...]]] = {
    OVERLAPPING: (Probe({"oneOf": [_I, {"type": "number"}]}, (1.5,), (1, "a")),),
    BOUNDS_OF_INTEGERS: tuple(_bounded("integer")),
    BOUNDS_OF_NUMBERS: tuple(_bounded("number")),
    LENGTHS: (Probe(_string(minLength=2, maxLength=3), ("ab", "abc", "\u00e4\u00e4"), ("", "a", "abcd", "\u00e4")),),
    ITEMS: (
        Probe(_array(items=_I, minItems=2, maxItems=3), ([1, 2], [1, 2, 3]), ([], [1], ["a", 1], [1, 2, "a"], [1, 2, 3, 4])),
        Probe(_array(items=_I, minItems=1), ([1], [1, 2]), ([], ["a"], [1, "a"])),
        Probe(_array(items=_I, maxItems=1), ([], [1]), (["a"], [1, 2])),
        Probe(_array(minItems=1, maxItems=2), ([1], [1, "a"]), ([], [1, 2, 3])),
    ),
    FRONT_ITEMS: (
        Probe(_array(prefixItems=[_I, _S], items=_I), ([], [1], [1, "a"], [1, "a", 2]), (["a"], [1, 2], [1, "a", "b"])),
        Probe(_array(prefixItems=[_I, _S], items=False), ([], [1], [1, "a"]), (["a"], [1, 2], [1, "a", 2])),
        Probe(_array(prefixItems=[_I, _S], minItems=2), ([1, "a"], [1, "a", None]), ([], [1], [1, 2])),
        Probe(_array(prefixItems=[_I, _S], minItems=1), ([1], [1, "a"], [1, "a", None]), ([], ["a"], [1, 2])),
        Probe(_array(prefixItems=[_I, _S], minItems=3, items=_I), ([1, "a", 2],), ([1, "a"], [1, "a", "b"])),
    ),
    PROPERTIES: (
        Probe(_object(properties=_A, required=["a"], additionalProperties=False), ({"a": 1},), ({}, {"a": "x"}, {"a": 1, "b": 1})),
        Probe(_object(properties={**_A, "b": _S}, required=["b"], additionalProperties=False), ({"b": "x"}, {"a": 1, "b": "x"}), ({}, {"a": 1}, {"b": 1})),
        Probe(_object(properties=_A, required=["a"], additionalProperties=_S), ({"a": 1}, {"a": 1, "b": "x"}), ({}, {"b": "x"}, {"a": 1, "b": 1}, {"a": "x"})),
        Probe(_object(properties=_A, required=["a"]), ({"a": 1}, {"a": 1, "b": 1}), ({}, {"b": 1}, {"a": "x"})),
    ),
    TOGETHER: (
        Probe({"minimum": 5}, (5, "a", None, [1]), (1,)),
        Probe({"minItems": 2}, ([1, 2], "a", {}), ([], [1])),
        Probe({"minLength": 2}, ("ab", 1), ("a",)),
        Probe({"properties": _A, "additionalProperties": False}, ({"a": 1}, 1, "a"), ({"a": "x"}, {"b": 1})),
        Probe({"type": ["integer", "string"], "minimum": 3, "maxLength": 1}, (3, "a"), (2, "ab", None)),
        Probe({"type": "string", "enum": ["a", 1]}, ("a",), (1,)),
        Probe({"type": "integer", "maximum": 3, "const": 1, "enum": [1, 2]}, (1,), (2, 3)),
        Probe({"anyOf": [_I, _S], "minimum": 3}, (3, "a"), (2, None)),
        Probe({"oneOf": [_I, _S], "type": ["string", "null"]}, ("a",), (1, None)),
        Probe({"anyOf": [_I, _S], "oneOf": [_I, {"type": "null"}]}, (1,), ("a", None)),
        Probe({"allOf": [_I], "minimum": 3}, (3,), (2, 3.5)),
        Probe({"allOf": [{"minimum": 3}, {"maximum": 5}, _I]}, (3, 5), (2, 6, "a")),
        Probe({"$ref": "#/$defs/a", "minimum": 3, "$defs": {"a": _I}}, (3,), (2, "a")),
        Probe({"$ref": "#/$defs/a", "enum": [1, "a"], "$defs": {"a": _I}}, (1,), (2, "a")),
        Probe(_string(minLength=2, pattern="^a"), ("ab",), ("a", "bb")),
        Probe(_string(minLength=12, format="uuid"), ("123e4567-e89b-12d3-a456-426614174000",), ("123e4567-e89b",)),
        Probe(
            _object(properties=_A, patternProperties={"^a": {"minimum": 3}}, additionalProperties=False),
            ({"a": 3}, {"ab": 4}),
            ({"a": 2}, {"a": "x"}, {"b": 1}),
        ),
    ),
}
"""Forms of schemas, beside the keywords alone: what an engine must do right of each before it is believed about keywords that stand so."""


@cache
def bytes_only() -> Vocabulary:
    """Return a vocabulary of single bytes and an end."""
    return Vocabulary((*(bytes([byte]) for byte in range(256)), b""), (256,), encode=lambda text: list(text.encode()))


def passes(probe: Probe, begin: Callable[[], Matcher]) -> bool:
    """Whether a compiled schema lets through what it must, and nothing that it must not."""

    def legal(value: Any) -> bool:
        tokens = [*json.dumps(value, ensure_ascii=False).encode(), 256]
        return begin().validate(tokens) == len(tokens)

    return all(map(legal, probe.good)) and not any(map(legal, probe.bad))


def seen(probe: Probe, compile_schema: Callable[[GrammarSpec, Vocabulary], Callable[[], Matcher]]) -> bool:
    """Whether an engine was seen to enforce a feature."""
    try:
        return passes(probe, compile_schema(GrammarSpec("json_schema", json.dumps(probe.schema)), bytes_only()))
    except ConstraintError:
        return False
