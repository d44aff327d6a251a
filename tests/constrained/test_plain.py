"""Schemas that an engine takes as they are, once they are written without what constrains nothing and what no mask decides."""

from __future__ import annotations

import json

import pytest

from accelplug.hooks import CompileLimits, GrammarSpec

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")

from accelplug.constrained.auto import Alone, Auto
from accelplug.constrained.engines.known import enforces
from accelplug.constrained.plain import plain
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.schema.document import Document
from accelplug.constrained.statements import uses
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


# an expression; texts that ECMA 262 finds it in, and others; llguidance, given it as it is, says otherwise of some
READ_OTHERWISE = {
    r"^.*$": (["", "a"], ["\r", "\u2028", "a\u2029"]),
    r"^\s*$": (["", "\ufeff", "\u00a0 "], ["\u0085", "a"]),
    r"^\S$": (["\u0085", "a"], ["\ufeff", " "]),
    r"^[^\s,]$": (["\u0085"], ["\ufeff", ","]),
    "^[[:alpha:]]+$": (["a]", ":]]"], ["b", "a"]),
    "^[[a]]$": (["a]", "[]"], ["a", "["]),
    r"^[\]b[]$": (["]", "b", "["], ["a"]),
    "^[a-z&&[^b]]$": (["a]", "&]", "^]"], ["a", "b"]),
    "^[a~~b]$": (["~", "a", "b"], ["c"]),
    "^[+--]$": (["+", ",", "-"], ["."]),
    "^a{ 2 }$": (["a{ 2 }"], ["aa"]),
    "(?i)k": (["k", "xK"], ["\u212a"]),
    "^(?i:k)s$": (["ks", "Ks"], ["kS", "k\u017f"]),
    "^(?:(?i)[^a]|b)c$": (["xc", "Bc"], ["xC", "Ac", "ac"]),
    "^(?=(?i)a)A$|^(?i)b$": (["A", "b", "B"], ["a"]),
    r"^\p{Lu}$": (["\u00c4"], ["a"]),
}


@pytest.mark.parametrize("pattern", READ_OTHERWISE)
@pytest.mark.parametrize("of_names", [False, True])
def test_expressions_that_engines_read_in_a_way_of_their_own_mean_what_they_do_in_ecma_262(pattern, of_names):
    good, bad = READ_OTHERWISE[pattern]
    schema = {"patternProperties": {pattern: True}, "additionalProperties": False} if of_names else {"pattern": pattern}
    grammar = compiled({"type": "object" if of_names else "string", **schema}, strict=True)
    values = [{text: 1} if of_names else text for text in good + bad]
    assert [legal(grammar, value) for value in values] == [True] * len(good) + [False] * len(bad)
    assert [grammar.check(json.dumps(value)) is None for value in values] == [True] * len(good) + [False] * len(bad)


@pytest.mark.parametrize("pattern", sorted(READ_OTHERWISE.keys() - {r"^[\]b[]$", "^(?=(?i)a)A$|^(?i)b$"}))
def test_one_engine_alone_is_not_trusted_with_them(pattern):
    for schema in ({"pattern": pattern}, {"patternProperties": {pattern: True}, "additionalProperties": False}):
        said = Alone("llguidance").compile(GrammarSpec("json_schema", json.dumps(schema)), bytes_only(), CompileLimits()).statement
        assert f"#/{next(iter(schema))}" in said.checked


def test_ordinary_expressions_are_given_as_they_are():
    document = Document({"pattern": r"^[a-z.]+\.(?:\d{2}|\w[+-])$", "patternProperties": {r"^[.\d]$": True}}, asserted=True)
    assert {use.feature for use in uses(document)} == {"pattern with classes", "patternProperties with classes beside others"}
    assert plain(document, uses(document), "as it is").text == "as it is"


def test_two_expressions_that_say_the_same_are_both_kept():
    both = {"^.$": {"type": "integer"}, "^[^\n\r\u2028\u2029]$": {"minimum": 3}}
    grammar = compiled({"type": "object", "patternProperties": both, "additionalProperties": False})
    assert [legal(grammar, {"a": value}) for value in (3, 2, "x", 3.5)] == [True, False, False, False]


def test_a_reference_into_what_is_written_otherwise_holds():
    schema = {"properties": {"a": {"$ref": "#/patternProperties/^%C3%A4.b"}}, "patternProperties": {"^\u00e4.b": {"type": "integer"}}, "type": "object"}
    assert legal(compiled(schema), {"a": 1})
    assert not legal(compiled(schema), {"a": "x"})


@pytest.mark.parametrize("pattern", [r"^\d$", "^1$", "^.$"])
def test_names_by_expressions_that_are_written_with_escapes_are_among_what_is_checked(pattern):
    said = compiled({"type": "object", "patternProperties": {pattern: {"type": "integer"}}}).statement
    assert said.checked == ("#/patternProperties",)
    strict = compiled({"type": "object", "patternProperties": {pattern: {"type": "integer"}}}, strict=True)
    assert not legal_by_mask(strict.matcher(), '{"\\u0031": "x"}', bytes_only())
