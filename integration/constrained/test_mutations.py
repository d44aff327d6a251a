"""A few schemas of the kinds that people write, by valid instances and mutations of one place: at least 99 % judged right, nothing accepted wrongly."""

from __future__ import annotations

import pytest

pytest.importorskip("llguidance")
pytest.importorskip("hypothesis_jsonschema")

from mutations import Judge, values_of

MONEY = {"type": "number", "minimum": 0, "exclusiveMaximum": 1000, "multipleOf": 0.5}
PERSON = {"type": "object", "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0}}, "required": ["name"]}
SCHEMAS = {
    "record": {**PERSON, "additionalProperties": False},
    "nested": {"type": "array", "items": PERSON, "minItems": 1, "maxItems": 3},
    "formats": {"type": "object", "properties": {"on": {"format": "date"}, "id": {"format": "uuid"}, "ip": {"format": "ipv4"}}, "required": ["on"]},
    "one of": {"oneOf": [{"type": "integer", "maximum": 8}, {"type": "number", "minimum": 5}, {"type": "string", "pattern": "^[a-c]+$"}]},
    "conditional": {
        "type": "object",
        "properties": {"kind": {"enum": ["s", "n"]}, "value": {}},
        "required": ["kind", "value"],
        "if": {"properties": {"kind": {"const": "n"}}},
        "then": {"properties": {"value": MONEY}},
        "else": {"properties": {"value": {"type": "string", "maxLength": 4}}},
    },
    "map": {"type": "object", "patternProperties": {"^x-": {"type": "integer"}}, "additionalProperties": {"type": "boolean"}, "maxProperties": 3},
    "dependent": {"type": "object", "properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}, "minProperties": 1},
    "tuple": {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}, MONEY], "additionalItems": False, "minItems": 2},
    "unique": {"type": "array", "items": {"enum": ["a", "b", 1]}, "uniqueItems": True, "contains": {"const": 1}},
    "not": {"type": ["integer", "string"], "not": {"anyOf": [{"const": 3}, {"pattern": "a$"}]}},
}


def test_instances_and_mutations_are_judged_right():
    judge = Judge()
    for number, (name, schema) in enumerate(SCHEMAS.items()):
        judge.schema(name, schema, values_of(schema, 12, number))
    counts = judge.counts
    assert counts["refused schemas"] == counts["unjudged"] == 0
    assert counts["valid"] > 200
    assert counts["instances"] - counts["valid"] > 50
    assert [one for one in judge.wrong if one.how != "refuses"] == []
    assert counts["right"] >= 0.99 * counts["instances"], judge.wrong
