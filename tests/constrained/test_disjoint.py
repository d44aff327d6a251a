"""Which alternatives share no value, seen at sight: pairs that do not, and pairs that seem not to and do, each with a value of both."""

from __future__ import annotations

import pytest

pytest.importorskip("jsonschema")

from accelplug.constrained.disjoint import Disjoint
from accelplug.constrained.schema.document import Document

DRAFT_4, DRAFT_7 = "http://json-schema.org/draft-04/schema#", "http://json-schema.org/draft-07/schema#"
KEYED = {"type": "object", "properties": {"k": {"const": "a"}}, "required": ["k"]}
DEFS = {"$defs": {"text": {"type": "string"}, "round": {"$ref": "#/$defs/round"}, "keyed": KEYED}}
APART = {
    "types": ({"type": "string"}, {"type": ["integer", "null"]}),
    "a type and what is listed": ({"type": "string"}, {"enum": [1, True, None]}),
    "a truth value and a number": ({"const": True}, {"const": 1}),
    "strings": ({"enum": ["a", "b"]}, {"const": "c"}),
    "a property": (KEYED, {"properties": {"k": {"enum": ["b", 1]}}, "required": ["k"], "type": "object"}),
    "a property that the other forbids": (KEYED, {"type": "object", "properties": {"m": {}}, "additionalProperties": False}),
    "what references lead to": ({"$ref": "#/$defs/text"}, {"$ref": "#/$defs/keyed"}),
    "what stands beside a reference": ({"$ref": "#/$defs/keyed", "type": "object"}, {"$ref": "#/$defs/round", "type": "array"}),
}
TOGETHER = {
    "equal numbers": ({"const": 1}, {"const": 1.0}, 1),
    "numbers and integers": ({"type": "integer"}, {"type": "number", "maximum": 5}, 1),
    "a property of one alone": (KEYED, {"type": "object", "properties": {"m": {"const": "b"}}}, {"k": "a"}),
    "a property that may be missing": (
        {"type": "object", "properties": {"k": {"const": "a"}}}, {"type": "object", "properties": {"k": {"const": "b"}}}, {},
    ),
    "objects of one, any value of the other": (KEYED, {"properties": {"k": {"const": "a"}}}, {"k": "a"}),
    "no object at all": ({"properties": {"k": {"const": "a"}}, "required": ["k"]}, {"properties": {"k": {"const": "b"}}, "required": ["k"]}, 1),
    "patterns beside closed names": (
        KEYED, {"type": "object", "patternProperties": {"k": {}}, "additionalProperties": False}, {"k": "a"},
    ),
    "const before it was one": ({"$schema": DRAFT_4, "const": "a"}, {"const": "b"}, "c"),
    "siblings that the draft ignores": ({"$schema": DRAFT_7, "$ref": "#/$defs/text", "const": "a"}, {"$ref": "#/$defs/text", "const": "b"}, "c"),
    "a keyword that nobody knows": ({"type": ["string", "null"], "nullable": False}, {"type": "null"}, None),
    "always": (True, {"type": "string"}, "a"),
}  # fmt: skip


def document_of(one, other):
    named = {"$schema": one["$schema"]} if isinstance(one, dict) and "$schema" in one else {}
    return Document({**named, **DEFS, "oneOf": [one, other]}, asserted=True)


@pytest.mark.parametrize("name", APART)
def test_they_are_seen_to_be_apart(name):
    document = document_of(*APART[name])
    assert Disjoint(document).all_apart(document.schema["oneOf"])
    assert Disjoint(document).all_apart(document.schema["oneOf"][::-1])


@pytest.mark.parametrize("name", TOGETHER)
def test_what_shares_a_value_is_not_held_to_be_apart(name):
    one, other, value = TOGETHER[name]
    document = document_of(one, other)
    assert all(document.validator.evolve(schema=part).is_valid(value) for part in (one, other)), "the example is one"
    assert not Disjoint(document).all_apart(document.schema["oneOf"])
