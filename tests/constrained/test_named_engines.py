"""Engines by their names, as they are: what a mask lets through wrongly is found by the final check, and the statement said that it would be made.

`python -m tests.constrained.test_named_engines 5000` draws so many schemas for each engine; the suite draws a few, the same each time.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accelplug import ConstraintError
from accelplug.hooks import CompileLimits, GrammarSpec

pytest.importorskip("jsonschema")

from accelplug.constrained.auto import Alone
from accelplug.constrained.engines import known, on_outlines
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.walking import legal_by_mask, walk
from tests.constrained.test_random_schemas import NAMES, SCHEMAS, VALUES

PACKAGES = {"llguidance": "llguidance", "xgrammar": "xgrammar", "outlines": "outlines_core"}
NUMBERS = st.one_of(st.integers(-2, 12), st.sampled_from([0.5, 2.5]))
BOUNDS = dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), NUMBERS)
LENGTHS = {"minLength": st.integers(0, 3), "maxLength": st.integers(0, 4)}
PATTERNS = st.sampled_from(["^a", "b$", "a|b", "^a*$", r"^\w$", r"\d", r"a^\w", r"^\d|b$", "^[ab]{1,2}$"])


def typed(kind, **optional):
    return st.fixed_dictionaries({"type": st.just(kind)}, optional=optional)


SCALARS = st.one_of(
    typed("integer", **BOUNDS, multipleOf=st.sampled_from([2, 3, 0.5])),
    typed("number", **BOUNDS, multipleOf=st.sampled_from([2, 0.5])),
    typed("string", **LENGTHS, pattern=PATTERNS, format=st.sampled_from(["date", "ipv4", "nothing"])),
    typed("string", **LENGTHS),
    typed(["string", "null"], **LENGTHS),
    st.fixed_dictionaries({"type": st.sampled_from(["string", "integer", ["string", "null"]]), "enum": st.lists(VALUES, min_size=1, max_size=3)}),
    st.sampled_from([{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}, {"$ref": "#/x-more/a"}, {"$ref": "#/$defs/a", "maximum": 4}]),
    typed("boolean"),
    typed("null"),
)


def containers(inner):
    return st.one_of(
        typed(
            "object",
            properties=st.dictionaries(NAMES, inner, max_size=3),
            required=st.lists(NAMES, unique=True, max_size=2),
            additionalProperties=st.one_of(st.booleans(), inner),
            minProperties=st.integers(0, 3),
            maxProperties=st.integers(0, 3),
        ),
        typed("object", properties=st.dictionaries(NAMES, inner, max_size=3), required=st.just(["a"]), additionalProperties=st.just(False)),
        typed("object", patternProperties=st.dictionaries(PATTERNS, inner, max_size=2), propertyNames=inner, additionalProperties=st.booleans()),
        typed("array", items=st.one_of(st.booleans(), inner), minItems=st.integers(0, 3), maxItems=st.integers(0, 3), uniqueItems=st.booleans()),
        typed("array", prefixItems=st.lists(inner, min_size=1, max_size=2), items=st.one_of(st.booleans(), inner), minItems=st.integers(0, 3)),
        st.builds(
            lambda word, parts, beside: {word: parts, **beside},
            st.sampled_from(["anyOf", "oneOf", "allOf"]),
            st.lists(inner, min_size=1, max_size=3),
            st.one_of(st.just({}), SCALARS),
        ),
    )


DRAFTS = st.sampled_from([{}, {}, {}, {"$schema": "http://json-schema.org/draft-07/schema#"}, {"$schema": "http://json-schema.org/draft-04/schema#"}])
PLAIN = st.recursive(SCALARS, containers, max_leaves=5)
WHOLE = st.builds(
    lambda schema, a, b, draft: {**draft, **schema, "$defs": {"a": a, "b": b}, "x-more": {"a": a}},
    st.one_of(PLAIN, SCHEMAS.filter(lambda schema: isinstance(schema, dict))),
    PLAIN,
    SCALARS,
    DRAFTS,
)
SEEN = {"refused": 0, "by mask": 0, "by the check": 0, "valid": 0}


def spellings(value):
    """Return a value as JSON, with a name in other letters, and with all of an object's properties twice."""
    text = json.dumps(value)
    return {text, text.replace('"a":', r'"\u0061":'), f"{text[:-1]}, {text[1:]}" if isinstance(value, dict) and value else text}


def judge(name, schema, values):
    """Compile a schema with one engine, and compare what its mask lets through with the final check."""
    text = json.dumps(schema)
    chance, given_texts = random.Random(text), [text for value in values for text in spellings(value)]
    try:
        grammar = Alone(name).compile(GrammarSpec("json_schema", text), bytes_only(), CompileLimits())
        written = [one.text for one in [walk(grammar, bytes_only(), chance) for _ in range(6)] if one.came == "ended"]
        legal = [one for one in given_texts if legal_by_mask(grammar.matcher(), one, bytes_only())]
        wrong = [one for one in [*legal, *written] if grammar.check(one) is not None]
    except ConstraintError:  # no text satisfies it, or the check cannot read what only a reference leads to: said aloud, if late
        SEEN["refused"] += 1
        return
    SEEN["by mask"] += len(given_texts) - len(legal)
    SEEN["valid"] += len(set(legal) - set(wrong))
    SEEN["by the check"] += len(wrong)
    if wrong:
        assert grammar.statement.checked, f"{name} writes {wrong[0]} and nothing is said to be checked"
        with pytest.raises(ConstraintError):
            Alone(name).compile(GrammarSpec("json_schema", text, strict=True), bytes_only(), CompileLimits())


def in_this_process(name, spec, vocabulary, _limits):
    """Compile without a process of its own, which takes half a second."""
    return known.module_of(name).compiled(spec, vocabulary)


def judged(name, examples, *, derandomize):
    @settings(max_examples=examples, deadline=None, database=None, derandomize=derandomize, suppress_health_check=list(HealthCheck))
    @given(WHOLE, st.lists(VALUES, min_size=6, max_size=12))
    def run(schema, values):
        judge(name, schema, values)

    run()


INTEGER, NUMBER, TEXT = {"type": "integer"}, {"type": "number"}, {"type": "string"}
DROPPED = [
    ({"oneOf": [INTEGER, NUMBER]}, 3, "#/oneOf"),
    ({"minimum": 5}, 1, "#/minimum"),
    ({"minItems": 2}, [1], "#/minItems"),
    ({"type": "string", "enum": ["a", 1]}, 1, "#/type"),
    ({"anyOf": [INTEGER, TEXT], "minimum": 3}, 1, "#/minimum"),
    ({"allOf": [INTEGER, {"maximum": 5}]}, 7, "#/allOf/1/maximum"),
    ({"$ref": "#/$defs/a", "const": 1, "$defs": {"a": TEXT}}, 1, "#/$defs/a/type"),
    ({"type": "number", "multipleOf": 2}, 3, "#/multipleOf"),
    ({"type": "string", "pattern": r"a^\d"}, "a1", "#/pattern"),
    ({"type": "array", "contains": {"$ref": "#/$defs/a"}, "$defs": {"a": INTEGER}}, ["a"], "#/$defs/a/type"),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "prefixItems": [INTEGER], "items": False}, [1], "#/items"),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/definitions/a", "const": 1, "definitions": {"a": TEXT}}, 1, "#/$ref"),
]
KEPT = [
    {"type": "object", "properties": {"a": INTEGER, "b": {"type": "string", "enum": ["x", "y"]}}, "additionalProperties": False},
    {"type": "integer", "minimum": 1, "exclusiveMaximum": 10},
    {"type": "array", "items": {"anyOf": [INTEGER, {"$ref": "#/$defs/a"}]}, "minItems": 1, "maxItems": 3, "$defs": {"a": {"type": ["boolean", "null"]}}},
    {"oneOf": [INTEGER, TEXT]},
]


@pytest.mark.parametrize(("schema", "wrong", "place"), DROPPED, ids=str)
@pytest.mark.parametrize("name", ["xgrammar", "outlines"])
def test_a_keyword_in_a_form_that_an_engine_drops_is_checked(monkeypatch, name, schema, wrong, place):
    pytest.importorskip(PACKAGES[name])
    monkeypatch.setattr(known, "compiled_apart", in_this_process)
    spec = GrammarSpec("json_schema", json.dumps(schema))
    try:
        grammar = Alone(name).compile(spec, bytes_only(), CompileLimits())
    except ConstraintError:
        assert name == "outlines"
        return
    assert place in grammar.statement.checked
    assert grammar.check(json.dumps(wrong)) is not None
    with pytest.raises(ConstraintError, match="strict"):
        Alone(name).compile(replace(spec, strict=True), bytes_only(), CompileLimits())


@pytest.mark.parametrize("schema", KEPT, ids=str)
def test_plain_forms_are_enforced(schema):
    pytest.importorskip("xgrammar")
    assert Alone("xgrammar").compile(GrammarSpec("json_schema", json.dumps(schema), strict=True), bytes_only(), CompileLimits()).statement.checked == ()


def test_an_expression_that_an_engine_reads_in_a_way_of_its_own_is_checked():
    pytest.importorskip("xgrammar")

    def compiled(pattern, **options):
        return Alone("xgrammar").compile(GrammarSpec("regex", pattern, **options), bytes_only(), CompileLimits())

    for pattern, wrong in (("a^b", "ab"), (r"ab\z", "abz")):
        assert compiled(pattern).matcher().validate([*wrong.encode(), 256]) == len(wrong) + 1  # or this test has nothing to show
        assert compiled(pattern).statement.checked == ("regex",)
        assert "does not match" in compiled(pattern).check(wrong)
        with pytest.raises(ConstraintError, match="strict: xgrammar was not seen to enforce"):
            compiled(pattern, strict=True)
    for pattern, good, wrong in (("a.b", "axb", "a\nb"), (r"\x61b", "ab", "\u061b"), (r"[\x61c]", "c", "\u061c")):
        matcher = compiled(pattern, strict=True).matcher()
        assert matcher.validate([*good.encode(), 256]) == len(good) + 1
        assert matcher.validate([*wrong.encode(), 256]) <= len(wrong)
    for pattern in ("^ab$", r"\.[.^$]\$"):
        assert compiled(pattern, strict=True).statement.enforced == ("regex",)


@pytest.mark.parametrize(("name", "examples"), [("xgrammar", 60), ("llguidance", 60), ("outlines", 25)])
def test_what_the_mask_lets_through_wrongly_is_said_to_be_checked(monkeypatch, name, examples):
    pytest.importorskip(PACKAGES[name])
    monkeypatch.setattr(known, "compiled_apart", in_this_process)
    monkeypatch.setattr(on_outlines, "MOST_CHARACTERS", 800)
    judged(name, examples, derandomize=True)


def test_everything_has_occurred():
    """Runs behind the one above: without these events it would have proved nothing."""
    assert SEEN["refused"] > 10
    assert SEEN["by mask"] > 100
    assert SEEN["by the check"] > 20
    assert SEEN["valid"] > 100


if __name__ == "__main__":
    known.compiled_apart, on_outlines.MOST_CHARACTERS = in_this_process, 800
    for engine in sys.argv[2:] or PACKAGES:
        judged(engine, int(sys.argv[1]), derandomize=False)
        print(engine, SEEN)
