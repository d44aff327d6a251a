"""``oneOf`` of alternatives that share no value: told at sight, never wrongly, and then taken by the engine as it is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelplug.hooks import CompileLimits, GrammarSpec

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")

from accelplug.constrained.auto import Auto
from accelplug.constrained.disjoint import Disjoint
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.schema.document import Document
from accelplug.constrained.walking import legal_by_mask

DRAFT_4, DRAFT_7 = "http://json-schema.org/draft-04/schema#", "http://json-schema.org/draft-07/schema#"
NAMED = {"s": {"type": "string"}, "l": {"type": "array"}, "a": {"properties": {"k": {"const": "a"}}, "required": ["k"], "type": "object"}}
CLOSED = {"type": "object", "properties": {"x": {}}, "additionalProperties": False}


def told_apart(*parts, **beside):
    document = Document({"$defs": NAMED, "oneOf": list(parts), **beside}, asserted=True)
    return Disjoint(document).all_apart(document.schema["oneOf"])


APART = {
    "types": [{"type": "integer"}, {"type": ["string", "null"]}],
    "types behind references": [{"$ref": "#/$defs/s"}, {"$ref": "#/$defs/l"}],
    "strings": [{"enum": ["a", "b"]}, {"enum": ["c"]}, {"const": "d"}],
    "a property": [{"$ref": "#/$defs/a"}, {"type": "object", "properties": {"k": {"enum": ["b", "c"]}}}],
    "a property's type": [{"type": "object", "properties": {"k": {"type": n}}, "required": ["k"]} for n in ("string", "array")],
    "a name that the other forbids": [CLOSED, {"type": "object", "properties": {"y": {}}, "required": ["y"]}],
}
NOT_APART = {
    "integers are numbers": [{"type": "integer"}, {"type": "number"}],
    "no types": [{"properties": {"k": {"const": "a"}}, "required": ["k"]}, {"properties": {"k": {"const": "b"}}, "required": ["k"]}],
    "numbers in two spellings": [{"const": 1}, {"enum": [1.0]}],
    "nobody requires it": [{"type": "object", "properties": {"k": {"const": "a"}}}, {"type": "object", "properties": {"k": {"const": "b"}}}],
    "the name may match": [{**CLOSED, "patternProperties": {"y": {}}}, {"type": "object", "required": ["y"]}],
    "a reference that goes in circles": [{"$ref": "#/oneOf/0"}, {"type": "string"}],
    "the third": [{"type": "integer"}, {"type": "string"}, {"type": "string", "minLength": 3}],
}


@pytest.mark.parametrize("name", APART)
def test_these_share_no_value(name):
    assert told_apart(*APART[name])


@pytest.mark.parametrize("name", NOT_APART)
def test_these_may(name):
    assert not told_apart(*NOT_APART[name])


def test_the_draft_decides_what_counts():
    beside_a_reference = [{"$ref": "#/$defs/s", "type": "array"}, {"$ref": "#/$defs/s"}]
    assert told_apart(*beside_a_reference)  # no value at all satisfies the first
    assert not told_apart(*beside_a_reference, **{"$schema": DRAFT_7})
    assert not told_apart({"const": "a"}, {"const": "b"}, **{"$schema": DRAFT_4})
    assert not told_apart({"$ref": "#/$defs/s"}, {"$ref": "#/$defs/l"}, **{"$id": "http://example.com/"})  # pointers mean what they do by place


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.sampled_from([0, 1, 1.0, 2.5]), st.sampled_from(["a", "b"])),
    lambda inner: st.one_of(st.lists(inner, max_size=1), st.dictionaries(st.sampled_from("kx"), inner, max_size=2)),
    max_leaves=3,
)
TYPES = st.sampled_from(["string", "object", "integer", "number", ["string", "null"]])
PARTS = st.recursive(
    st.fixed_dictionaries({}, optional={"type": TYPES, "enum": st.lists(VALUES, min_size=1, max_size=2)}),
    lambda inner: st.fixed_dictionaries(
        {"type": st.sampled_from(["object", "object", "array"]), "properties": st.dictionaries(st.sampled_from("kx"), inner, max_size=2)},
        optional={"required": st.lists(st.sampled_from("kx"), max_size=1), "additionalProperties": st.booleans(), "$ref": st.just("#/$defs/a")},
    ),
    max_leaves=3,
)
SEEN = {"apart": 0, "together": 0, "one holds": 0}


@settings(max_examples=300, deadline=None)
@given(PARTS, PARTS, st.lists(VALUES, min_size=4, max_size=8), st.sampled_from([{}, {"$schema": DRAFT_7}]))
def test_what_is_told_apart_has_no_value_in_common(one, other, values, beside):
    apart = told_apart(one, other, **beside)
    holds = [Document({"$defs": NAMED, "allOf": [part], **beside}, asserted=True).validator.is_valid for part in (one, other)]
    for value in values:
        found = [check(value) for check in holds]
        assert not (apart and all(found)), (one, other, value)
        SEEN["one holds"] += apart and any(found)
    SEEN["apart" if apart else "together"] += 1


def test_both_have_occurred():
    """Runs behind the one above: without these events it would have proved nothing."""
    assert SEEN["apart"] > 20
    assert SEEN["together"] > 20
    assert SEEN["one holds"] > 20


def test_the_engine_takes_it_as_it_is():
    schema = {"$defs": NAMED, "type": "object", "properties": {"p": {"oneOf": [{"$ref": "#/$defs/s"}, {"$ref": "#/$defs/l"}]}}}
    grammar = Auto().compile(GrammarSpec("json_schema", json.dumps(schema)), bytes_only(), CompileLimits())
    assert "rewritten" not in grammar.statement.engine
    assert "#/properties/p/oneOf" in grammar.statement.enforced
    for value, valid in (("a", True), ([], True), (1, False)):
        assert legal_by_mask(grammar.matcher(), json.dumps({"p": value}), bytes_only()) == valid
