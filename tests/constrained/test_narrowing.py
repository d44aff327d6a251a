"""Choices between objects that overlap: what is known of one alternative narrows the negations of the others, so that all of it is enforced."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")

from accelplug.constrained.auto import Auto
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.schema.branches import Tableau
from accelplug.constrained.schema.document import Document
from accelplug.constrained.walking import legal_by_mask
from accelplug.hooks import CompileLimits, GrammarSpec

VOCABULARY = bytes_only()
TEXT, MARK, NUMBER = {"type": "string"}, {"type": "boolean"}, {"type": "number"}


def closed(**properties):
    return {"type": "object", "properties": properties, "additionalProperties": False}


def of_kind(kind, *required, **properties):
    """A closed object whose kind may be left out, so that several of these overlap where it is."""
    return {**closed(kind={"enum": [kind]}, label=TEXT, **properties), "required": ["label", *required]}


ONE_OF_TWELVE = {"oneOf": [closed(**{f"p{index}": NUMBER}) for index in range(12)]}
KINDS = {
    "oneOf": [
        of_kind("text", hint=TEXT, size=NUMBER),
        of_kind("date", hint=TEXT, size=NUMBER),
        of_kind("mail", hint=TEXT, size=NUMBER),
        of_kind("fixed", size=NUMBER),
        of_kind("many", rows=NUMBER),
        of_kind("part", "rows", rows=TEXT),
    ]
}
ONE_IS_MORE = {"anyOf": [{"required": ["a", "b"]}, {"required": ["a"]}, {"required": ["c", "a"]}]}
BY_A_REQUIRED_ONE = {  # told apart by a property that only one of them must have, and the other must not
    "oneOf": [
        {"type": "object", "properties": {"name": TEXT}, "required": ["name"]},
        {"type": "object", "properties": {"include": TEXT}, "required": ["include"], "additionalProperties": False},
    ]
}
CASES = {
    "all but one": ({"oneOf": [True, {"type": "object", "required": ["a"]}]}, [{}, {"b": 1}, 1], [{"a": 1}]),
    "one of twelve": (ONE_OF_TWELVE, [{"p0": 1}, {"p11": 2}], [{}, {"p0": 1, "p1": 1}, {"p0": "1"}, {"p12": 1}]),
    "kinds that may be left out": (
        KINDS,
        [{"kind": "date", "label": ""}, {"kind": "mail", "label": "", "hint": ""}, {"label": "", "rows": 1}, {"label": "", "rows": ""}],
        [
            {"label": ""},
            {"label": "", "hint": ""},
            {"label": "", "size": 1},
            {"kind": "fixed", "label": "", "hint": ""},
            {"kind": "part", "label": ""},
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_overlapping_objects_are_enforced_whole(name):
    schema, valid, invalid = CASES[name]
    compiled = Auto().compile(GrammarSpec("json_schema", json.dumps(schema)), VOCABULARY, CompileLimits())
    assert "rewritten" in compiled.statement.engine
    assert compiled.statement.checked == ()
    for value in [*valid, *invalid]:
        assert (compiled.check(json.dumps(value)) is None) is (value in valid), value
        assert legal_by_mask(compiled.matcher(), json.dumps(value), VOCABULARY) is (value in valid), value


@pytest.mark.parametrize(("schema", "count"), [(ONE_OF_TWELVE, 12), (KINDS, 7), (BY_A_REQUIRED_ONE, 2), (ONE_IS_MORE, 1)])
def test_no_branch_says_less_than_another(schema, count):
    """Each demand that one of the names be there becomes that name, and of two branches the weaker one is left: else there are hundreds."""
    document = Document(schema, asserted=True)
    assert len(Tableau(document, float("inf"), CompileLimits()).branches(frozenset({(True, document.root)}), "object")) == count


def test_references_to_one_schema_are_one_state():
    document = Document(
        {
            "properties": {"a": {"$ref": "#/$defs/s"}, "b": {"$ref": "#/$defs/t", "title": "b"}},
            "$defs": {"s": {"$ref": "#/$defs/t"}, "t": NUMBER},
        },
        asserted=True,
    )
    nodes = {document.below(document.root, "properties", name) for name in "ab"}
    assert [node.value for node in nodes] == [NUMBER]


def test_references_in_a_circle_stay_what_they_are():
    document = Document({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, asserted=True)
    assert "$ref" in document.below(document.root, "$defs", "a").value


def test_types_are_seen_through_combinations():
    schema = {"allOf": [{"anyOf": [TEXT, NUMBER, {"oneOf": [MARK, {"enum": [None]}]}]}, {"type": ["string", "null", "array"]}]}
    document = Document(schema, asserted=True)
    assert Tableau(document, float("inf"), CompileLimits()).viable(frozenset({(True, document.root)})) == ("null", "string")


def test_schemas_that_differ_in_what_they_are_called_are_one_state():
    schema = {"properties": {"a": {**TEXT, "title": "a"}, "b": {"description": "b", **TEXT, "x-b": 1}, "c": {**TEXT, "minLength": 1}}}
    document = Document(schema, asserted=True)
    assert len({document.below(document.root, "properties", name) for name in "abc"}) == 2
