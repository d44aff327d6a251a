"""Faults that were reported to engines and servers, by their symptoms: none of them happens here."""

from __future__ import annotations

import json
import time

import pytest

from accelplug import ConstraintError
from accelplug.hooks import CompileLimits, GrammarSpec

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")

from accelplug.constrained.auto import Alone, Auto
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.walking import legal_by_mask

VOCABULARY, LIMITS = bytes_only(), CompileLimits(seconds=10.0)


def legal(schema, value):
    grammar = Auto().compile(GrammarSpec("json_schema", json.dumps(schema)), VOCABULARY, LIMITS)
    return legal_by_mask(grammar.matcher(), json.dumps(value), VOCABULARY)


def test_constraints_of_strings_are_dropped_where_the_schema_names_no_type():
    """vllm-project/vllm#57550."""
    schema = {"type": "object", "properties": {"code": {"pattern": "^[a-z]+$", "maxLength": 3}}, "required": ["code"]}
    assert legal(schema, {"code": "abc"})
    assert legal(schema, {"code": 12})
    assert not legal(schema, {"code": "abcdefghij"})
    assert not legal(schema, {"code": "A"})


def test_branches_of_all_of_behind_the_first_are_ignored():
    """vllm-project/vllm#56556."""
    parts = [{"properties": {name: {"type": "integer"}}, "required": [name]} for name in "ab"]
    schema = {"type": "object", "allOf": parts}
    assert legal(schema, {"a": 1, "b": 2})
    assert not legal(schema, {"a": 1})
    assert not legal(schema, {"a": 1, "b": "x"})


def test_schemas_of_nested_one_of_compile_for_minutes():
    """vllm-project/vllm#54003: without a limit, ever longer with the depth."""
    schema: dict[str, object] = {"type": "integer"}
    for depth in range(12):
        other = {"type": "object", "properties": {f"other{depth}": {"type": "string"}}}
        schema = {"oneOf": [{"type": "object", "properties": {f"p{depth}": schema}, "required": [f"p{depth}"]}, other]}
    began = time.monotonic()
    try:
        Auto().compile(GrammarSpec("json_schema", json.dumps(schema)), VOCABULARY, LIMITS)
    except ConstraintError as exc:
        assert "limit" in str(exc)  # noqa: PT017 - either is right
    assert time.monotonic() - began < 6 * LIMITS.seconds


@pytest.mark.parametrize("engine", [Auto(), Alone("xgrammar"), Alone("llguidance")], ids=["auto", "xgrammar", "llguidance"])
@pytest.mark.parametrize("malformed", [("regex", "(a"), ("ebnf", "root ::= (("), ("json_schema", '{"type": "nothing"}'), ("json_schema", '{"$ref": "#/no"}')])
def test_a_malformed_grammar_behind_a_valid_one_brings_the_engine_down(engine, malformed):
    """vllm-project/vllm#43920; here it is an error of its own, and what follows compiles."""
    good = GrammarSpec("regex", "[ab]+")
    before = engine.compile(good, VOCABULARY, LIMITS)
    with pytest.raises(ConstraintError) as caught:
        engine.compile(GrammarSpec(*malformed), VOCABULARY, LIMITS)
    assert "\n" not in str(caught.value)
    assert engine.compile(good, VOCABULARY, LIMITS) is before
    assert engine.compile(GrammarSpec("choice", '["x"]'), VOCABULARY, LIMITS).matcher().validate([ord("x"), 256]) == 2


@pytest.mark.parametrize("name", ["llguidance", "xgrammar", "outlines"])
def test_drafts_that_a_grammar_rejects_leave_it_unable_to_go_on(name):
    """vllm-project/vllm#44006: a newline and a fence behind a draft's legal tokens, and the matcher was lost."""
    pytest.importorskip({"outlines": "outlines_core"}.get(name, name))
    matcher = Alone(name).compile(GrammarSpec("regex", r'\{"a": [0-9]+\}'), VOCABULARY, LIMITS).matcher()
    assert matcher.validate([*b'\n```json\n{"a"']) == 0
    assert matcher.accept([*b'{"a"```']) == 4
    matcher.rollback(2)
    assert matcher.accept([*b'a": 12}', 256]) == 8
    assert matcher.is_terminated
