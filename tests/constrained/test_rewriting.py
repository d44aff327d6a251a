"""Schemas rewritten as grammars: what satisfies the schema is let through, what does not is not, token by token."""

from __future__ import annotations

import json
import re
import time

import pytest

from accelplug import ConstraintError
from accelplug.hooks import CompileLimits, GrammarSpec

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")

from accelplug.constrained.auto import Auto
from accelplug.constrained.lark.compile import to_lark
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.schema.document import Document
from accelplug.constrained.walking import legal_by_mask

ENGINE = Auto()


def compiled(schema, **options):
    return ENGINE.compile(GrammarSpec("json_schema", json.dumps(schema), **options), bytes_only(), CompileLimits())


def legal(grammar, value):
    return legal_by_mask(grammar.matcher(), json.dumps(value, ensure_ascii=False), bytes_only())


CASES = {
    "not": ({"not": {"type": ["string", "array", "null", "object"]}}, [1, True, 2.5], ["a", [], {}, None]),
    "not pattern": ({"type": "string", "not": {"pattern": "^a"}}, ["", "b", "ba", "\u00e4\n"], ["a", "ab"]),
    "not required": ({"type": "object", "not": {"required": ["a"]}}, [{}, {"b": 1}, {"aa": 1}], [{"a": 1}, {"b": 1, "a": 1}]),
    "not properties": ({"type": "object", "not": {"properties": {"a": {"type": "integer"}}}}, [{"a": "x"}, {"a": 1.5}], [{}, {"a": 1}]),
    "not pattern properties": (
        {"type": "object", "not": {"patternProperties": {"^x": {"type": "null"}}}},
        [{"x": 1}, {"a": 0, "xy": 1}],
        [{}, {"x": None}],
    ),
    "not additional": (
        {"type": "object", "not": {"additionalProperties": {"type": "null"}}},
        [{"x": 1}, {"a": None, "b": 1}],
        [{}, {"x": None}],
    ),
    "not names": ({"type": "object", "not": {"propertyNames": {"maxLength": 1}}}, [{"ab": 1}, {"a": 1, "ab": 1}], [{}, {"a": 1}]),
    "not items": ({"type": "array", "not": {"items": {"type": "integer"}}}, [["a"], [1, "a"]], [[], [1, 2]]),
    "not enum": ({"type": "integer", "not": {"enum": [1, 3]}}, [0, 2, 4, 11], [1, 3]),
    "not range": ({"type": "integer", "not": {"minimum": 3, "maximum": 5}}, [2, 6, -4], [3, 4, 5]),
    "double negation": ({"not": {"not": {"type": "integer", "minimum": 2}}}, [2, 30], [1, "a", None]),
    "oneOf with overlap": ({"type": "integer", "oneOf": [{"minimum": 5}, {"maximum": 8}]}, [9, 4, -1], [5, 6, 8]),
    "oneOf by required": (
        {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {}, "b": {}}},
        [{"a": 1}, {"b": 1}, {"a": 1, "c": 1}],
        [{}, {"a": 1, "b": 1}],
    ),
    "if then else": (
        {"type": "object", "properties": {"k": {"enum": ["s", "i"]}, "v": {}}, "required": ["k", "v"], "additionalProperties": False}
        | {
            "if": {"properties": {"k": {"const": "s"}}},
            "then": {"properties": {"v": {"type": "string"}}},
            "else": {"properties": {"v": {"type": "integer"}}},
        },
        [{"k": "s", "v": "x"}, {"k": "i", "v": 1}],
        [{"k": "s", "v": 1}, {"k": "i", "v": "x"}],
    ),
    "dependentRequired": (
        {"type": "object", "dependentRequired": {"a": ["b"]}, "properties": {"a": {}, "b": {}}},
        [{}, {"b": 1}, {"a": 1, "b": 1}],
        [{"a": 1}, {"a": 1, "c": 1}],
    ),
    "dependencies": (
        {"type": "object", "properties": {"a": {}, "b": {}}, "dependencies": {"a": {"properties": {"b": {"type": "null"}}}}},
        [{}, {"b": 1}, {"a": 1, "b": None}],
        [{"a": 1, "b": 1}],
    ),
    "uniqueItems": (
        {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b", 1]}, "minItems": 1},
        [["a"], ["b", "a", 1]],
        [[], ["a", "a"], ["a", 1, "a"]],
    ),
    "contains": (
        {"type": "array", "contains": {"type": "integer"}, "minContains": 2, "maxContains": 3},
        [[1, 2], ["a", 1, "b", 2, 3]],
        [[], [1], [1, "a"], [1, 2, 3, 4]],
    ),
    "minProperties": (
        {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "minProperties": 2},
        [{"a": 1, "c": 1}, {"b": 1, "x": 1}],
        [{}, {"a": 1}],
    ),
    "maxProperties": (
        {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 1},
        [{}, {"c": 1}, {"x": 1}],
        [{"a": 1, "b": 1}],
    ),
    "propertyNames": ({"type": "object", "propertyNames": {"pattern": "^[ab]+$"}}, [{}, {"ab": 1}], [{"c": 1}, {"": 1}]),
    "patterns that meet": (
        {"type": "object", "patternProperties": {"a": {"minimum": 10}, "b": {"maximum": 20}}, "additionalProperties": False},
        [{"a": 15, "b": 1}, {"ab": 12}],
        [{"ab": 9}, {"ab": 21}, {"c": 1}],
    ),
    "allOf": (
        {
            "allOf": [
                {"properties": {"a": {"minLength": 2}}},
                {"properties": {"a": {"maxLength": 3}}, "required": ["a"]},
                {"type": "object"},
            ]
        },
        [{"a": "xx"}, {"a": 1}],
        [{}, {"a": "x"}, {"a": "xxxx"}],
    ),
    "siblings of a reference": ({"$ref": "#/$defs/a", "maximum": 5, "$defs": {"a": {"type": "integer"}}}, [5, -1], [6, "a"]),
    "siblings in draft 7": (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "properties": {"a": {"$ref": "#/definitions/a", "maximum": 5}},
            "definitions": {"a": {"type": "integer"}},
        },
        [{"a": 6}],
        [{"a": "x"}],
    ),
    "recursion": (
        {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}},
            "required": ["v"],
            "additionalProperties": False,
            "not": {"required": ["x"]},
        },
        [{"v": 1}, {"v": 1, "next": {"v": 2, "next": {"v": 3}}}],
        [{"next": {"v": 1}}, {"v": 1, "next": {}}, {"v": 1, "next": {"v": "x"}}],
    ),
    "draft 4 bounds": (
        {"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 3, "exclusiveMinimum": True},
        [4, 100],
        [3, 0],
    ),
    "tuples": (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "array",
            "items": [{"type": "integer"}, {"type": "string"}],
            "additionalItems": False,
            "not": {"maxItems": 0},
        },
        [[1], [1, "a"]],
        [[], ["a"], [1, "a", None]],
    ),
    "unknown format": ({"type": "string", "format": "textarea"}, ["a"], [1]),
    "look-ahead at the beginning of a look-ahead": ({"type": "string", "pattern": "^(?!^foo$).*$"}, ["fool"], ["foo"]),
    "look-behind": ({"type": "string", "pattern": r"(?<!\\)\$\{a\}", "maxLength": 60000}, ["${a}"], ["$a", r"\${a}"]),
    "word boundaries": ({"type": "string", "pattern": r"\bfoo\b"}, ["a foo-b"], ["food", "afoo"]),
    "a pattern anywhere in a long text": (
        {"type": ["string", "null"], "pattern": r"arn:aws[a-z\-]*:iam::\d{12}:role/?[a-z]+", "minLength": 20, "maxLength": 2048, "not": {"const": ""}},
        ["arn:aws:iam::123456789012:role/x", None],
        ["arn:aws:iam::12345678901:role/x", "arn:aws:iam", 1],
    ),
    "an identifier": ({"type": ["string", "null"], "format": "uri", "not": {"pattern": "^http:"}}, ["urn:a", "x://[::1]/"], ["http://a", "x:]", "x://[1]"]),
    "many patterns that hardly overlap": (
        {
            "type": "object",
            "patternProperties": {f"^(For:)?K{number}(Not)?$": {"type": "integer", "minimum": number} for number in range(12)},
            "additionalProperties": False,
        },
        [{"For:K3": 3, "K11Not": 11}],
        [{"K11": 10}, {"K12": 12}, {"K3": "a"}],
    ),
    "look-ahead": ({"type": "string", "pattern": r"^(?=.*\d)(?=.*[a-z]).{3,}$"}, ["a1b"], ["abc", "123", "a1"]),
    "fractions": ({"type": "number", "multipleOf": 0.5, "minimum": 0}, [0.5, 2, 10.5], [0.3, 1.25, -0.5]),
    "escaped names": (
        {
            "type": "object",
            "properties": {'a"\n': {"type": "null"}},
            "additionalProperties": {"type": "integer"},
            "not": {"required": ["z"]},
        },
        [{'a"\n': None}, {"b": 1}],
        [{'a"\n': 1}],
    ),
}


WRITTEN_TWICE = {"minProperties", "not pattern properties", "not additional", "not names"}
"""A name may be written twice, and the last one counts, once: whether some property is as demanded, or there are enough, is also checked at the end."""


@pytest.mark.parametrize("name", CASES)
def test_rewrites_enforce(name):
    schema, good, bad = CASES[name]
    grammar = compiled(schema)
    assert all(grammar.check(json.dumps(value)) is None for value in good), "the test is wrong"
    assert not any(grammar.check(json.dumps(value)) is None for value in bad), "the test is wrong"
    assert [value for value in good if not legal(grammar, value)] == []
    assert [value for value in bad if legal(grammar, value)] == []
    strict_or_not = grammar if name in WRITTEN_TWICE else compiled(schema, strict=True)
    assert bool(strict_or_not.statement.checked) == (name in WRITTEN_TWICE)


def test_any_order_lets_any_order_through():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}, "c": {}}, "required": ["a", "c"]}
    declared, free = compiled(schema), compiled(schema, order="any")
    assert legal(declared, {"a": 1, "b": 1, "c": 1})
    assert not legal(declared, {"c": 1, "a": 1})
    assert legal(free, {"c": 1, "x": 1, "a": 1})
    assert not legal(free, {"c": 1, "b": 1})
    assert not legal(free, {"c": 1, "a": "x"})


@pytest.mark.parametrize(("whitespace", "text"), [("any", '{ "a"\n:[1 ,2]}'), ("spaced", '{"a": [1, 2]}'), ("compact", '{"a":[1,2]}')])
def test_whitespace_is_as_asked(whitespace, text):
    schema = {"type": "object", "properties": {"a": {"type": "array"}}, "not": {"required": ["b"]}}
    texts = {"any": '{ "a"\n:[1 ,2]}', "spaced": '{"a": [1, 2]}', "compact": '{"a":[1,2]}'}
    grammar = compiled(schema, whitespace=whitespace)
    assert legal_by_mask(grammar.matcher(), text, bytes_only())
    if whitespace != "any":
        assert not any(legal_by_mask(grammar.matcher(), other, bytes_only()) for name, other in texts.items() if name != whitespace)


def test_many_conditions_on_one_property_are_enforced():
    """Of its kinds only one holds: without looking at that, twelve conditions are 4096 alternatives."""
    cases = [{"if": {"properties": {"kind": {"const": name}}, "required": ["kind"]}, "then": {"required": [name + "1"]}} for name in "abcdefghijkl"]
    grammar = compiled({"type": "object", "properties": {"kind": {"type": "string"}}, "allOf": cases})
    assert grammar.statement.checked == ()
    assert all(legal(grammar, value) for value in ({}, {"kind": "x"}, {"kind": "c", "c1": 0}, {"a1": 0}))
    assert not any(legal(grammar, value) for value in ({"kind": 1}, {"kind": "c"}, {"kind": "l", "a1": 0}))


def test_where_patterns_overlap_too_much_what_must_be_there_still_may_be():
    """Of thirteen patterns anywhere in a name some are checked at the end; that some property is no text is met by any name."""
    patterns = {f"{sign}.*x": {"type": ["integer", "string"], "minimum": number} for number, sign in enumerate("abcdefghijklm")}
    grammar = compiled({"type": "object", "patternProperties": patterns, "not": {"additionalProperties": {"type": "string"}}})
    assert all(legal(grammar, value) for value in ({"foo": 3}, {"foo": 3, "mx": 20}))
    assert not any(legal(grammar, value) for value in ({}, {"foo": "a"}, {"foo": 3, "bx": 0}))
    assert "#/patternProperties/m.*x/minimum" in grammar.statement.checked
    assert grammar.check('{"foo": 3, "mx": 2}') is not None


def test_five_hundred_properties_at_most_are_counted():
    counted = {"type": "object", "minProperties": 1, "maxProperties": 500, "additionalProperties": {"type": "null"}}
    grammar = compiled({"properties": {"a": {"$ref": "#/$defs/map"}}, "$defs": {"map": counted}, "not": {"required": ["z"]}})
    assert legal(grammar, {"a": {"b": None}})
    assert not any(legal(grammar, value) for value in ({"a": {}}, {"a": {"b": 1}}, {"a": {str(number): None for number in range(501)}}))


def test_where_alternatives_are_too_many_the_rest_is_enforced():
    names = [f"a{number}" for number in range(12)]
    cases = [{"if": {"required": [name]}, "then": {"required": ["b" + name]}} for name in names]
    integers = {name: {"type": "integer"} for name in names}
    grammar = compiled({"type": "object", "properties": integers, "required": ["c"], "allOf": cases})
    assert {"#/required", "#/allOf/0/if"} & set(grammar.statement.checked)
    assert legal(grammar, {"a3": 1, "c": 0, "ba3": 0})
    assert legal(grammar, {"a3": 1, "c": 0})
    assert grammar.check('{"a3": 1, "c": 0}') is not None
    assert not any(legal(grammar, value) for value in ({"a3": "x", "c": 0, "ba3": 0}, {"a3": 1, "ba3": 0}))


@pytest.mark.parametrize("required", [[], ["p0"], ["p1400"]])
def test_an_object_of_many_properties_is_not_too_deep(required):
    schema = {"type": "object", "properties": {f"p{i}": {"type": "boolean"} for i in range(1500)}, "required": required}
    written = to_lark(Document(schema, asserted=True), "any", time.monotonic() + 60, CompileLimits())
    assert not written.inexact
    names = set(re.findall(r"^obj\d+", written.text, re.MULTILINE))
    assert names <= {*re.findall(r" (obj\d+)", written.text)}, "no rule is there in vain"


@pytest.mark.parametrize("strict", [False, True])
def test_a_name_that_comes_twice_counts_once(strict):
    schema = {"type": "object", "properties": {"a": {}}, "minProperties": 2}
    if strict:
        with pytest.raises(ConstraintError, match="no mask enforces #/minProperties"):
            compiled(schema, strict=True)
        assert compiled({**schema, "minProperties": 1}, strict=True).statement.checked == ()
        assert compiled({**schema, "required": ["a", "b"]}, strict=True).statement.checked == ()
        return
    grammar = compiled(schema)
    assert legal_by_mask(grammar.matcher(), '{"b": 1, "b": 1}', bytes_only())  # or this test has nothing to show
    assert "#/minProperties" in grammar.statement.checked
    assert "not have enough properties" in grammar.check('{"b": 1, "b": 1}')
