"""Random schemas against `jsonschema`: no mask refuses a valid value, and none lets an invalid one through that its statement calls enforced."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accelplug import ConstraintError
from accelplug.hooks import CompileLimits, GrammarSpec

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")

from accelplug.constrained.auto import Auto
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.schema.document import Document
from accelplug.constrained.walking import legal_by_mask

NAMES = st.sampled_from(["a", "b", "ab"])
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 12), st.sampled_from([0.5, 2.5, -1.5]), st.text("ab", max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=5,
)
SIMPLE = st.one_of(
    st.booleans(),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object", ["integer", "string"]])}
    ),
    st.fixed_dictionaries({"enum": st.lists(VALUES, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"const": VALUES}),
    st.fixed_dictionaries({"minimum": st.integers(-1, 5), "exclusiveMaximum": st.integers(3, 10)}),
    st.fixed_dictionaries({"multipleOf": st.sampled_from([2, 3])}),
    st.fixed_dictionaries({"minLength": st.integers(0, 2), "pattern": st.sampled_from(["^a", "b$", "a|b", "^a*$"])}),
    st.fixed_dictionaries({"required": st.lists(NAMES, unique=True, max_size=2)}),
    st.fixed_dictionaries({"dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, unique=True, max_size=2), max_size=2)}),
    st.fixed_dictionaries({"minProperties": st.integers(0, 2), "maxProperties": st.integers(1, 3)}),
    st.fixed_dictionaries({"minItems": st.integers(0, 2), "maxItems": st.integers(1, 3)}),
    st.fixed_dictionaries({"uniqueItems": st.booleans()}),
)


def _combined(inner):
    several = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        st.fixed_dictionaries(
            {},
            optional={"properties": st.dictionaries(NAMES, inner, max_size=2), "additionalProperties": inner, "required": st.just(["a"])},
        ),
        st.fixed_dictionaries({"patternProperties": st.dictionaries(st.sampled_from(["a", "b$"]), inner, max_size=2)}),
        st.fixed_dictionaries({"propertyNames": inner}),
        st.fixed_dictionaries({"items": inner}, optional={"prefixItems": several}),
        st.fixed_dictionaries({"contains": inner}, optional={"minContains": st.integers(0, 2), "maxContains": st.integers(1, 2)}),
        st.fixed_dictionaries({"allOf": several}),
        st.fixed_dictionaries({"anyOf": several}),
        st.fixed_dictionaries({"oneOf": several}),
        st.fixed_dictionaries({"not": inner}),
        st.fixed_dictionaries({"if": inner}, optional={"then": inner, "else": inner}),
        st.fixed_dictionaries({"unevaluatedProperties": inner}, optional=_beside(inner, several, properties=st.dictionaries(NAMES, inner, max_size=2))),
        st.fixed_dictionaries({"unevaluatedItems": inner}, optional=_beside(inner, several, prefixItems=several)),
    )


def _beside(inner, several, **more):
    """Return what evaluates, under conditions and without."""
    return {**more, "allOf": several, "anyOf": several, "oneOf": several, "if": inner, "then": inner, "else": inner} | {
        "dependentSchemas": st.dictionaries(NAMES, inner, max_size=2)
    }


SCHEMAS = st.recursive(SIMPLE, _combined, max_leaves=6)
ENGINE = Auto()
SEEN = {"valid": 0, "invalid": 0, "checked": 0, "refused": 0}


def judge(schema, values):
    try:
        grammar = ENGINE.compile(GrammarSpec("json_schema", json.dumps(schema), order="any"), bytes_only(), CompileLimits())
    except ConstraintError as exc:
        if "no value satisfies" not in str(exc):
            raise
        assert not any(map(Document(schema, asserted=True).validator.is_valid, values))
        SEEN["refused"] += 1
        return
    for value in values:
        text = json.dumps(value)
        valid, by_mask = grammar.check(text) is None, legal_by_mask(grammar.matcher(), text, bytes_only())
        assert by_mask or not valid, f"refuses {text}"
        assert valid or not by_mask or grammar.statement.checked, f"accepts {text}"
        SEEN["valid" if valid else "checked" if by_mask else "invalid"] += 1


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(SCHEMAS, st.lists(VALUES, min_size=3, max_size=6))
def test_masks_and_the_final_check_agree(schema, values):
    judge(schema, values)


def test_everything_has_occurred():
    """Runs behind the one above: without these events it would have proved nothing."""
    judge({"not": {}}, [1])
    judge({"uniqueItems": True, "minItems": 2}, [[1, 1], [1, 2], 3])
    assert all(SEEN.values())
    assert SEEN["valid"] > 10
    assert SEEN["invalid"] > 3  # how many it are is chance
