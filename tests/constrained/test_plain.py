"""Schemas that an engine takes as they are, once they are written without what constrains nothing and what no mask decides."""

from __future__ import annotations

import json

import pytest

from accelplug.hooks import CompileLimits, GrammarSpec

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")

from accelplug.constrained.auto import Auto
from accelplug.constrained.engines.known import enforces
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.walking import legal_by_mask

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
# schema; what is legal by mask, what is not; what is checked, and a legal text that the check refuses
CASES = {
    "unknown format": ({"type": "string", "format": "textarea"}, ["x"], [1], (), None),
    "a property named format": (
        {
            "type": "object",
            "properties": {"format": {"const": None}, "uniqueItems": {"format": "int32", "type": "integer"}},
            "additionalProperties": False,
        },
        [{"format": None}, {"uniqueItems": 3}],
        [{"format": "int32"}, {"uniqueItems": "x"}],
        (),
        None,
    ),
    "siblings that the draft ignores": (
        {
            "$schema": DRAFT_7,
            "definitions": {"a": {"type": "integer"}},
            "items": {"$ref": "#/definitions/a", "maximum": 5, "not": {}},
            "type": "array",
        },
        [[6], []],
        [["x"]],
        (),
        None,
    ),
    "siblings that count": ({"$ref": "#/$defs/a", "maximum": 5, "$defs": {"a": {"type": "integer"}}}, [5], [6, "x"], (), None),
    "siblings that describe": ({"$ref": "#/$defs/a", "default": 7, "$defs": {"a": {"type": "integer"}}}, [5], ["x"], (), None),
    "distinct items out of many": (
        {"type": "array", "items": {"type": "string", "maxLength": 3}, "uniqueItems": True},
        [["a", "b"]],
        [["abcd"]],
        ("#/uniqueItems",),
        ["a", "a"],
    ),
    "distinct items that are referred to": (
        {"type": "array", "items": {"$ref": "#/$defs/a"}, "uniqueItems": True, "$defs": {"a": {"pattern": "^a"}}},
        [["a", "aa"], [1, 2]],
        [["b"], "a"],
        ("#/uniqueItems",),
        ["a", "a"],
    ),
    "a property named as a keyword of later drafts": (
        {
            "$schema": "http://json-schema.org/draft-04/schema#",
            "type": "object",
            "properties": {"contains": {"type": "null"}},
            "additionalProperties": False,
        },
        [{"contains": None}],
        [{"contains": 1}],
        (),
        None,
    ),
    "alternatives apart for the type beside them": (
        {
            "type": "object",
            "oneOf": [{"properties": {name: {"type": "null"}}, "required": [name], "additionalProperties": False} for name in "ab"],
        },
        [{"a": None}, {"b": None}],
        [{}, 1],
        (),
        None,
    ),
    "items that may repeat": ({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": False}, [[1, 1]], [[3]], (), None),
    "a format in other words": ({"type": "string", "format": "json-pointer"}, ["", "/a"], ["a", "/~"], (), None),
    "an inexact format in other words": (
        {"type": "string", "format": "relative-json-pointer", "pattern": "x$"},
        ["0/x"],
        ["0/y", "x"],
        ("#/format",),
        None,
    ),
    "multiples of one": ({"type": "number", "multipleOf": 1, "maximum": 3}, [3, -4], [2.5, 4], (), None),
    "multiples from zero on": ({"type": "integer", "multipleOf": 7, "minimum": 0}, [0, 21], [-7, 8], (), None),
    "a reference through alternatives": (
        {
            "type": "object",
            "properties": {"a": {"oneOf": [{"type": "string"}, {"type": "integer"}]}, "b": {"$ref": "#/properties/a/oneOf/0"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
        [{"a": 1, "b": "x"}],
        [{"a": 1.5, "b": "x"}, {"a": 1, "b": 2}],
        (),
        None,
    ),
    "a list of items": (
        {"$schema": DRAFT_7, "items": [{"type": "integer"}], "additionalItems": {"type": "string"}, "type": "array"},
        [[], [1], [1, "a"]],
        [["a"], [1, 2]],
        (),
        None,
    ),
}
REWRITTEN = {
    "alternatives that may share a value": {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
    "a keyword of later drafts": {"$schema": "http://json-schema.org/draft-04/schema#", "type": "array", "contains": {"type": "null"}},
    "distinct items out of few that are referred to": {
        "type": "array",
        "items": {"$ref": "#/$defs/a"},
        "uniqueItems": True,
        "$defs": {"a": {"enum": [1, 2]}},
    },
    "distinct items out of few": {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True},
    "at most one item": {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "maxItems": 1},
    "multiples below zero": {"type": "integer", "multipleOf": 7},
}


def compiled(schema, **options):
    return Auto().compile(GrammarSpec("json_schema", json.dumps(schema), **options), bytes_only(), CompileLimits())


def legal(grammar, value):
    return legal_by_mask(grammar.matcher(), json.dumps(value, ensure_ascii=False), bytes_only())


@pytest.mark.parametrize("name", CASES)
def test_they_are_taken_as_they_are(name):
    schema, good, bad, checked, caught = CASES[name]
    grammar = compiled(schema)
    assert "rewritten" not in grammar.statement.engine
    assert grammar.statement.checked == checked
    assert [value for value in good if not legal(grammar, value) or grammar.check(json.dumps(value)) is not None] == []
    assert [value for value in bad if legal(grammar, value) or grammar.check(json.dumps(value)) is None] == []
    if caught is not None:
        assert legal(grammar, caught)
        assert grammar.check(json.dumps(caught)) is not None


@pytest.mark.parametrize("name", REWRITTEN)
def test_what_a_mask_can_decide_is_rewritten(name):
    if name == "multiples below zero" and enforces("llguidance", "multipleOf"):
        pytest.skip("this release of llguidance knows them")
    assert "rewritten" in compiled(REWRITTEN[name]).statement.engine


def test_formats_that_describe_are_left_out():
    grammar = compiled({"type": "string", "format": "date"}, format="annotate")
    assert "rewritten" not in grammar.statement.engine
    assert legal(grammar, "x")


def test_what_only_references_lead_to_is_in_the_statement():
    """Documents of OpenAPI keep their schemas where no keyword of JSON Schema holds any; an engine that takes them as they are was told nothing of it."""
    day = {"type": "string", "format": "date"}
    for schema in ({"$ref": "#/components/schemas/a~1b", "components": {"schemas": {"a/b": day}}}, {"items": {"$ref": "#/x"}, "x": {"$ref": "#/y"}, "y": day}):
        said = compiled(schema).statement
        place = "#/y/format" if "y" in schema else "#/components/schemas/a~1b/format"
        assert place in said.enforced
        value = ["2023-02-29"] if "y" in schema else "2023-02-29"
        assert not legal_by_mask(compiled(schema).matcher(), json.dumps(value), bytes_only())
    assert compiled({"$ref": "#/x/0", "x": [{"type": "integer"}]}).statement.engine.endswith("rewritten")  # what leads through a list is not looked at
