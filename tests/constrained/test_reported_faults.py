"""Faults that were reported to engines and servers, by their symptoms: none of them happens here."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from spent import processor_seconds

from accelplug import ConstraintError
from accelplug.hooks import CompileLimits, GrammarSpec, Vocabulary

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
    began = processor_seconds()
    try:
        Auto().compile(GrammarSpec("json_schema", json.dumps(schema)), VOCABULARY, LIMITS)
    except ConstraintError as exc:
        assert "limit" in str(exc)  # noqa: PT017 - either is right
    assert processor_seconds() - began < 6 * LIMITS.seconds


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


DROPPED = [
    ({"type": "string", "pattern": "^a+$", "maxLength": 2}, "aa", "aaa", "#/maxLength"),
    ({"type": "string", "pattern": "^[a-z]+$", "minLength": 3}, "abc", "ab", "#/minLength"),
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "minItems": 3, "maxItems": 3}, [1, 2, 3], [7, 7, 7], "#/uniqueItems"),
    ({"type": "integer", "multipleOf": 7}, 14, 100, "#/multipleOf"),
    ({"type": "object", "required": ["a"]}, {"a": 1}, {}, "#/required"),
    ({"type": "object", "properties": {"a": {"type": "integer"}}, "maxProperties": 1}, {"a": 1}, {"a": 1, "b": 2}, "#/maxProperties"),
]


@pytest.mark.parametrize("engine", [Auto(), Alone("xgrammar"), Alone("llguidance")], ids=["auto", "xgrammar", "llguidance"])
@pytest.mark.parametrize(("schema", "right", "wrong", "place"), DROPPED, ids=[place for *_, place in DROPPED])
def test_a_keyword_is_dropped_without_a_word(engine, schema, right, wrong, place):
    """mlc-ai/xgrammar#104, #749, sgl-project/sglang#37707, #40083: what no mask enforces here is checked, and said to be; strict refuses it."""
    if isinstance(engine, Alone):
        pytest.importorskip(engine.name)
    spec = GrammarSpec("json_schema", json.dumps(schema))
    try:
        grammar = engine.compile(spec, VOCABULARY, LIMITS)
    except ConstraintError as exc:
        assert isinstance(engine, Alone)
        assert "\n" not in str(exc)  # noqa: PT017 - either is right
        return
    assert legal_by_mask(grammar.matcher(), json.dumps(right), VOCABULARY), "a right answer is impossible"
    assert grammar.check(json.dumps(right)) is None
    assert grammar.check(json.dumps(wrong)) is not None
    assert (place in grammar.statement.checked) or not legal_by_mask(grammar.matcher(), json.dumps(wrong), VOCABULARY)
    if place in grammar.statement.checked:
        with pytest.raises(ConstraintError, match=place):
            engine.compile(GrammarSpec("json_schema", json.dumps(schema), strict=True), VOCABULARY, LIMITS)


COMPILE = """
import json, sys
from accelplug import ConstraintError
from accelplug.constrained.auto import Alone, Auto
from accelplug.constrained.probes import bytes_only
from accelplug.hooks import CompileLimits, GrammarSpec
for engine in (Auto(), Alone("xgrammar"), Alone("llguidance")):
    for most in (128, 129, 200):
        text = {"type": "string", "pattern": "^[^\\\\n\\\\r]{1,%d}$" % most}
        schema = {"type": "object", "additionalProperties": False, "properties": {"message": text}, "required": ["message"]}
        try:
            grammar = engine.compile(GrammarSpec("json_schema", json.dumps(schema)), bytes_only(), CompileLimits(seconds=10.0))
            print(grammar.matcher().validate(b'{"message": "abc"}'))
        except ConstraintError:
            print("refused")
"""


def test_a_pattern_that_repeats_often_ends_the_process():
    """mlc-ai/xgrammar#863: a bound above 128 in a string's pattern, and the compiler read what was not there."""
    pytest.importorskip("xgrammar")
    done = subprocess.run([sys.executable, "-c", COMPILE], check=True, capture_output=True, text=True)
    answers = done.stdout.split()
    assert len(answers) == 9
    assert set(answers) <= {"18", "refused"}
    assert answers[:3] == answers[6:] == ["18"] * 3


@pytest.mark.parametrize("text", ['start: "a" <|tool|> "b" <|end|> "c"', 'start: "a" <[257]> "b" <[259]> "c"'])
def test_special_tokens_are_taken_back_by_the_length_of_their_names(text):
    """guidance-ai/llguidance#364, by which drafts under such a grammar would leave it somewhere else."""
    special = {"<|tool|>": 257, "<|end|>": 259}
    vocabulary = Vocabulary((*(bytes([byte]) for byte in range(256)), *[b""] * 4), (256,), special=special)
    matcher = Auto().compile(GrammarSpec("lark", text), vocabulary, LIMITS).matcher()
    tokens = [ord("a"), 257, ord("b"), 259, ord("c"), 256]
    for back in range(1, len(tokens) + 1):
        assert matcher.accept(tokens) == len(tokens)
        matcher.rollback(back)
        assert matcher.validate(tokens[-back:]) == back
        assert matcher.validate([ord("x")]) == 0
        if back < len(tokens):
            matcher.rollback(len(tokens) - back)


@pytest.mark.parametrize("name", ["auto", "llguidance", "xgrammar"])
@pytest.mark.parametrize("given", [{"choice": ["x</s>y"]}, {"json_schema": {"const": "</s>"}}, {"regex": "a</s>b"}], ids=str)
def test_a_text_that_holds_the_name_of_a_special_token_cannot_be_written(name, given):
    """A tokenizer takes the name for the token, so that it splits the text in no way that spells it; llguidance then saw no way on at all."""
    vocabulary = replace(VOCABULARY, encode=lambda text: [] if "</s>" in text else VOCABULARY.encode(text))
    engine = Auto() if name == "auto" else Alone(name)
    grammar = engine.compile(GrammarSpec.of(given), vocabulary, LIMITS)
    text = {"choice": "x</s>y", "json_schema": '"</s>"', "regex": "a</s>b"}[next(iter(given))]
    assert legal_by_mask(grammar.matcher(), text, VOCABULARY)


@pytest.mark.parametrize("name", ["auto", "llguidance", "xgrammar"])
@pytest.mark.parametrize("given", [{"regex": "\x00a"}, {"regex": "a\x00b"}, {"json_schema": {"type": "string", "pattern": "^\x00"}}], ids=str)
def test_a_zero_byte_in_an_expression_ends_the_process_or_cuts_the_expression_off(name, given):
    """sgl-project/sglang#35533."""
    try:
        grammar = (Auto() if name == "auto" else Alone(name)).compile(GrammarSpec.of(given), VOCABULARY, LIMITS)
    except ConstraintError as exc:
        assert name == "xgrammar"
        assert "null characters" in str(exc)  # noqa: PT017 - either is right
        return
    right, wrong = (('"\\u0000a"', '"a"') if "json_schema" in given else (given["regex"], "a"))
    assert legal_by_mask(grammar.matcher(), right, VOCABULARY)
    assert not legal_by_mask(grammar.matcher(), wrong, VOCABULARY)


def test_a_bound_on_the_length_of_a_text_slows_every_mask_inside_it():
    """mlc-ai/xgrammar#852: 0.01 ms a mask without maxLength, 4 ms with it. Another engine is chosen, which has no such cost, and holds the bound."""

    def bounded(most):
        schema = {"type": "object", "properties": {"content": {"type": "string", "maxLength": most}}, "required": ["content"]}
        return Auto().compile(GrammarSpec("json_schema", json.dumps(schema)), VOCABULARY, LIMITS)

    for most in (128, 512, 100_000):
        assert bounded(most).statement.engine.startswith("llguidance")
    for length, is_legal in ((599, True), (600, True), (601, False)):
        for letter in ("a", "\n", "é"):
            assert legal_by_mask(bounded(600).matcher(), json.dumps({"content": letter * length}, ensure_ascii=False), VOCABULARY) is is_legal
