"""What other keywords have not looked at is masked in every case that tells what they look at; dynamic references where they mean one thing."""

from __future__ import annotations

import json

import pytest

from accelplug.hooks import CompileLimits, GrammarSpec

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")

from accelplug.constrained.auto import Auto
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.statements import Use, split
from accelplug.constrained.walking import legal_by_mask

D19 = "https://json-schema.org/draft/2019-09/schema"
TEXT, NUMBER = {"type": "string"}, {"type": "integer"}
TAGGED = [{"properties": {"kind": {"const": kind}, kind: NUMBER}, "required": ["kind"]} for kind in "xy"]
CASES = {
    "parts that always hold": (
        {"properties": {"a": TEXT}, "allOf": [{"$ref": "#/$defs/b"}], "unevaluatedProperties": False, "$defs": {"b": {"patternProperties": {"^b": NUMBER}}}},
        ['{"a": "x", "b1": 2}', "{}", "3"],
        ['{"a": "x", "c": 2}', '{"b": "x"}'],
    ),
    "one of several": ({"oneOf": TAGGED, "unevaluatedProperties": False}, ['{"kind": "x", "x": 1}', '{"kind": "y", "y": 1}'], ['{"kind": "x", "y": 1}']),
    "any of several": (
        {"anyOf": [{"properties": {"a": NUMBER}, "required": ["a"]}, {"properties": {"b": NUMBER}, "required": ["b"]}], "unevaluatedProperties": TEXT},
        ['{"a": 1}', '{"a": 1, "b": 2}', '{"a": 1, "b": "x"}', '{"a": 1, "c": "x"}'],
        ['{"a": 1, "c": 2}', '{"b": "x"}'],
    ),
    "a condition": (
        {
            "if": {"properties": {"kind": {"const": 1}}, "required": ["kind"]},
            "then": {"properties": {"a": True}},
            "else": {"properties": {"b": True}},
            "unevaluatedProperties": False,
        },
        ['{"kind": 1, "a": 2}', '{"b": 2}', '{"kind": 1}'],
        ['{"kind": 1, "b": 2}', '{"a": 2}', '{"kind": 2}'],
    ),
    "a schema that a property brings": (
        {"properties": {"a": True}, "dependentSchemas": {"a": {"properties": {"b": True}}}, "unevaluatedProperties": False},
        ['{"a": 1, "b": 2}', "{}"],
        ['{"b": 2}', '{"a": 1, "c": 2}'],
    ),
    "an inner one that evaluates all": ({"allOf": [{"unevaluatedProperties": NUMBER}], "unevaluatedProperties": False}, ['{"a": 1}'], ['{"a": "x"}']),
    "negated": ({"not": {"properties": {"a": True}, "unevaluatedProperties": False}, "type": "object"}, ['{"b": 1}'], ['{"a": 1}', "{}"]),
    "items": (
        {"prefixItems": [TEXT], "allOf": [{"prefixItems": [True, NUMBER]}], "unevaluatedItems": False},
        ['["a", 1]', "[]"],
        ['["a", 1, 2]', '["a", "b"]'],
    ),
    "items of an older draft": (
        {"$schema": D19, "items": [TEXT], "anyOf": [{"items": [True, NUMBER]}, True], "prefixItems": [True, True, True], "unevaluatedItems": {"type": "null"}},
        ['["a", 1]', '["a", null]', '["a", 1, null]'],
        ['["a", "b"]', '["a", 1, 2]'],
    ),
    "contains of an older draft": ({"$schema": D19, "contains": TEXT, "unevaluatedItems": NUMBER}, [], ['["a", 1]', "[1]"]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_mask_says_it_all(name):
    schema, good, bad = CASES[name]
    strict = name != "negated"  # that a property is there under some name is always checked
    grammar = Auto().compile(GrammarSpec("json_schema", json.dumps(schema), strict=strict), bytes_only(), CompileLimits())
    for text in (*good, *bad):
        assert legal_by_mask(grammar.matcher(), text, bytes_only()) is (grammar.check(text) is None) is (text in good), text


TREE = {"$id": "tree", "$dynamicAnchor": "node", "type": "object", "properties": {"a": {"type": "array", "items": {"$dynamicRef": "#node"}}}}
DYNAMIC = {
    "the root has the anchor": (
        {"$id": "http://x.y/z", "$dynamicAnchor": "node", "$ref": "tree", "unevaluatedProperties": False, "$defs": {"tree": TREE}},
        ['{"a": [{"a": []}, {}]}'],
        ['{"a": [{"b": 1}]}', '{"b": 1}', '{"a": 1}'],
    ),
    "a type that is filled in": (
        {
            "$id": "http://x.y/z",
            "$ref": "list",
            "$defs": {
                "t": {"$dynamicAnchor": "t", **TEXT},
                "list": {"$id": "list", "items": {"$dynamicRef": "#t"}, "$defs": {"any": {"$dynamicAnchor": "t"}}},
            },
        },
        ['["a"]', "[]", "3"],
        ["[1]"],
    ),
    "an anchor of another name": (
        {
            "$id": "http://x.y/z",
            "$dynamicAnchor": "t",
            "properties": {"a": {"$ref": "b"}},
            "required": ["a"],
            "$defs": {"b": {"$id": "b", "items": {"$dynamicRef": "#t"}, "$defs": {"any": {"$anchor": "t", **TEXT}}}},
        },
        ['{"a": ["x"]}'],
        ['{"a": [{"a": []}]}', "{}"],
    ),
    "a recursive one": (
        {"$schema": D19, "$recursiveAnchor": True, "type": "object", "properties": {"a": {"items": {"$recursiveRef": "#"}}}, "additionalProperties": False},
        ['{"a": [{"a": []}]}'],
        ['{"a": [1]}', '{"a": [{"b": 1}]}'],
    ),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_dynamic_reference_means_one_thing_where_the_root_is_the_outermost(name):
    schema, good, bad = DYNAMIC[name]
    grammar = Auto().compile(GrammarSpec("json_schema", json.dumps(schema), strict=True), bytes_only(), CompileLimits())
    for text in (*good, *bad):
        assert legal_by_mask(grammar.matcher(), text, bytes_only()) is (grammar.check(text) is None) is (text in good), text


@pytest.mark.parametrize("of_root", [{}, {"plain": {"$anchor": "t", **NUMBER}}], ids=["no anchor at the root", "one of another kind"])
def test_a_dynamic_reference_that_depends_on_the_way_is_checked(of_root):
    schema = {
        "$id": "http://x.y/z",
        "properties": {"a": {"$ref": "b"}, "c": {"$ref": "d"}},
        "$defs": {
            **of_root,
            "b": {"$id": "b", "$ref": "d", "$defs": {"t": {"$dynamicAnchor": "t", **TEXT}}},
            "d": {"$id": "d", "items": {"$dynamicRef": "#t"}, "$defs": {"t": {"$dynamicAnchor": "t", **NUMBER}}},
        },
    }
    grammar = Auto().compile(GrammarSpec("json_schema", json.dumps(schema)), bytes_only(), CompileLimits())
    assert "#/$defs/d/items/$dynamicRef" in grammar.statement.checked
    for text, valid in {'{"a": ["x"]}': True, '{"c": [1]}': True, '{"a": [1]}': False, '{"c": ["x"]}': False}.items():
        assert legal_by_mask(grammar.matcher(), text, bytes_only())
        assert (grammar.check(text) is None) is valid


@pytest.mark.parametrize(
    "schema",
    [
        {"contains": TEXT, "unevaluatedItems": NUMBER},
        {"anyOf": [{"properties": {f"a{n}": NUMBER}} for n in range(6)], "unevaluatedProperties": False},
    ],
    ids=["items that are contained", "too many cases"],
)
def test_what_has_no_end_of_cases_is_checked(schema):
    grammar = Auto().compile(GrammarSpec("json_schema", json.dumps(schema)), bytes_only(), CompileLimits())
    assert any(place.startswith("#/unevaluated") for place in grammar.statement.checked)


def test_where_one_inexact_place_is_named_otherwise_than_in_the_schema_all_counts_as_checked():
    uses = [Use("#/a", "a", "a"), Use("#/b/not", "not", "not")]
    assert split(uses, ["#/b"]) == (("#/a",), ("#/b/not",))
    assert split(uses, ["#/b/not", "tree#/items"]) == ((), ("#/a", "#/b/not"))
