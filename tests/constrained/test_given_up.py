"""What a mask gives up is checked, whichever keyword brought it, and so is every keyword that may be broken by it."""

from __future__ import annotations

import json

import pytest

from accelplug import ConstraintError
from accelplug.hooks import CompileLimits, GrammarSpec

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")

from accelplug.constrained.auto import Auto
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.walking import legal_by_mask

ENGINE = Auto()
DRAFT_3, DRAFT_7 = (f"http://json-schema.org/draft-0{number}/schema#" for number in (3, 7))
INTEGER = {"type": "integer"}
MANY = json.dumps(list(range(300)))
NAMES = [f"p{index}" for index in range(12)]
ALL_NAMED = {name: {} for name in NAMES}
WITHOUT_X = json.dumps(dict.fromkeys(NAMES, 1))
TANGLED = "^(?=.*[a-f].{200})(?=.*[0-9].{200})(?!.*zz)(?=.*[A-Z].{100})"
SHAPES = [{"type": "object", "properties": {f"k{index}": INTEGER, f"m{index}": {"type": "string"}}} for index in range(60)]
SHAPES_NAMED = {f"D{index}": shape for index, shape in enumerate(SHAPES)}
REFERENCES = [{"$ref": f"#/$defs/{name}"} for name in SHAPES_NAMED]
FORTY_FIVE = {f"n{index}": {} for index in range(45)}
NO_INTEGERS = {"not": {"patternProperties": {"^n": INTEGER}}}

GIVEN_UP = {
    "not items": ({"type": "array", "not": {"items": INTEGER}, "minItems": 300}, MANY, {"#/not", "#/not/items"}),
    "not items behind others": (
        {"type": "array", "not": {"prefixItems": [INTEGER], "items": INTEGER}, "minItems": 300},
        MANY,
        {"#/not", "#/not/items"},
    ),
    "not additional items": (
        {"$schema": DRAFT_7, "type": "array", "not": {"items": [INTEGER], "additionalItems": INTEGER}, "minItems": 300},
        MANY,
        {"#/not", "#/not/additionalItems"},
    ),
    "not items in a choice": (
        {"anyOf": [{"type": "array", "not": {"items": INTEGER}, "minItems": 300}, {"type": "string"}]},
        MANY,
        {"#/anyOf", "#/anyOf/0/not", "#/anyOf/0/not/items"},
    ),
    "not at most": ({"type": "array", "not": {"maxItems": 3000}}, json.dumps([1] * 2500), {"#/not", "#/not/maxItems"}),
    "not at least": ({"type": "array", "not": {"minItems": 3000}}, json.dumps([1] * 3000), {"#/not", "#/not/minItems"}),
    "divided by": ({"$schema": DRAFT_3, "type": "integer", "divisibleBy": 7}, "-8", {"#/divisibleBy"}),
    "divided by a fraction": ({"$schema": DRAFT_3, "type": "number", "divisibleBy": 0.7}, "0.8", {"#/divisibleBy"}),
    "multiples beyond large bounds": (
        {"type": "integer", "multipleOf": 7, "minimum": 2**60, "maximum": 2**60 + 100},
        str(2**60),
        {"#/multipleOf"},
    ),
    "multiples of no bound that an engine counts to": (
        {"type": "integer", "multipleOf": 7, "minimum": 10**100},
        str(10**100),
        {"#/multipleOf"},
    ),
    "an expression": ({"type": "string", "pattern": TANGLED, "minLength": 5, "maxLength": 8}, '"abcdef"', {"#/pattern"}),
    "an expression and not a text": ({"type": "string", "pattern": TANGLED, "not": {"const": "hello"}}, '"a"', {"#/pattern"}),
    "a large number": ({"type": "number", "not": {"const": 1e200}}, "1e+200", {"#/not", "#/not/const"}),
    "a large integer": ({"type": "integer", "not": {"enum": [10**200]}}, str(10**200), {"#/not", "#/not/enum"}),
    "a small number": ({"type": "number", "not": {"enum": [1e-200]}}, "1e-200", {"#/not", "#/not/enum"}),
    "a large bound": ({"type": "integer", "minimum": 10**400}, str(10**399), {"#/minimum"}),
    "one of many shapes": ({"type": "object", "oneOf": SHAPES}, "{}", {"#/oneOf"}),
    "one of many shapes by name": (
        {"type": "object", "oneOf": REFERENCES, "$defs": SHAPES_NAMED},
        "{}",
        {"#/oneOf", *(f"#/oneOf/{index}/$ref" for index in range(60))},
    ),
    "none of many shapes": ({"type": "object", "not": {"anyOf": REFERENCES}, "$defs": SHAPES_NAMED}, "{}", {"#/not", "#/not/anyOf"}),
    "equal lists": ({"type": "array", "uniqueItems": True, "items": {"enum": [[1], [1.0]]}}, "[[1],[1.0]]", {"#/uniqueItems"}),
    "few items in a choice by name": (
        {"anyOf": [{"$ref": "#/$defs/set"}, {"type": "string"}], "$defs": {"set": {"type": "array", "uniqueItems": True}}},
        "[1,1]",
        {"#/anyOf", "#/anyOf/0/$ref", "#/$defs/set/uniqueItems"},
    ),
    "what a condition brings": (
        {
            "type": "string",
            "if": {"pattern": r"^(a|b)\1"},
            "then": {"$ref": "#/$defs/long"},
            "else": {"maxLength": 3},
            "$defs": {"long": {"minLength": 9}},
        },
        '"aa"',
        {"#/if", "#/then", "#/else", "#/else/maxLength", "#/$defs/long/minLength"},
    ),
    "what a choice leaves": (
        {
            "type": "object",
            "properties": {"b": {}},
            "anyOf": [{"properties": {"a": {"uniqueItems": True}}}, {"required": ["b"]}],
            "unevaluatedProperties": False,
        },
        '{"b": 1, "a": [1, 1]}',
        {"#/anyOf", "#/unevaluatedProperties"},
    ),
}
IN_ANY_ORDER = {
    "not properties": (
        {"type": "object", "properties": {"x": {}}, "required": NAMES, "not": {"properties": {"x": INTEGER}}},
        WITHOUT_X,
        {"#/required", "#/not", "#/not/properties"},
    ),
    "a condition": (
        {
            "type": "object",
            "properties": ALL_NAMED,
            "required": NAMES,
            "if": {"properties": {"x": INTEGER}},
            "then": {"properties": {"p0": {"type": "string"}}},
        },
        WITHOUT_X,
        {"#/required", "#/if", "#/then", "#/then/properties/p0/type"},
    ),
    "one name over and over": (
        {"type": "object", "properties": ALL_NAMED, "required": NAMES, "minProperties": 13},
        "{" + ", ".join(['"p0": 1'] * 13) + "}",
        {"#/required", "#/minProperties"},
    ),
    "a demand overwritten": (
        {"type": "object", "properties": FORTY_FIVE, "additionalProperties": False, **NO_INTEGERS},
        '{"n1":"x","n1":1}',
        {"#/not", "#/not/patternProperties"},
    ),
}


def compiled(schema, **options):
    return ENGINE.compile(GrammarSpec("json_schema", json.dumps(schema), **options), bytes_only(), CompileLimits())


def is_checked(schema, text, places, **options):
    grammar = compiled(schema, **options)
    assert legal_by_mask(grammar.matcher(), text, bytes_only())  # or this test has nothing to show
    assert grammar.check(text) is not None
    assert places <= set(grammar.statement.checked)
    assert places.isdisjoint(grammar.statement.enforced)
    with pytest.raises(ConstraintError, match="strict: no mask enforces"):
        compiled(schema, strict=True, **options)


@pytest.mark.parametrize("name", GIVEN_UP)
def test_what_is_given_up_is_checked(name):
    is_checked(*GIVEN_UP[name])


@pytest.mark.parametrize("name", IN_ANY_ORDER)
def test_what_is_given_up_in_any_order_is_checked(name):
    is_checked(*IN_ANY_ORDER[name], order="any")


STILL_ENFORCED = {
    "the bound below": ({"type": "array", "minItems": 1, "maxItems": 3000}, "[]", {"#/minItems"}, "declared"),
    "lengths beside an expression": (
        {"type": "string", "pattern": TANGLED, "minLength": 5, "maxLength": 8},
        '"a"',
        {"#/minLength", "#/maxLength"},
        "declared",
    ),
    "a text beside an expression": ({"type": "string", "pattern": TANGLED, "not": {"const": "hello"}}, '"hello"', {"#/not"}, "declared"),
    "properties of whom many are required": (
        {"type": "object", "properties": dict.fromkeys(NAMES, INTEGER), "required": NAMES},
        '{"p0": "x"',
        {"#/properties", "#/properties/p0/type"},
        "any",
    ),
    "what is beside a choice": (
        {"type": "array", "minItems": 1, "anyOf": [{"uniqueItems": True}, {"maxItems": 2}]},
        "[]",
        {"#/minItems"},
        "declared",
    ),
}


@pytest.mark.parametrize("name", STILL_ENFORCED)
def test_what_is_not_given_up_stays_enforced(name):
    schema, text, places, order = STILL_ENFORCED[name]
    grammar = compiled(schema, order=order)
    assert not legal_by_mask(grammar.matcher(), text, bytes_only())
    assert grammar.statement.checked
    assert places <= set(grammar.statement.enforced)


NUMBERS = {
    "not a small bound": ({"type": "number", "not": {"minimum": 1e-90}}, ["1e-91", "0", "-1"], ["1e-90", "1e-89", "1"]),
    "a small bound and not a number": (
        {"type": "number", "minimum": 1e-90, "allOf": [{"not": {"const": 1}}]},
        ["1e-90", "0.1", "2"],
        ["1e-91", "0", "1", "1.0", "-1"],
    ),
    "many digits": (
        {"type": "number", "minimum": 1.2345678901234567e-80, "maximum": 1.2345678901234567e80, "not": {"const": 3}},
        ["1.2345678901234567e-80", "1.2345678901234567e+80", "4", "0.5"],
        ["1.2345678901234565e-80", "1.2345678901234569e+80", "3", "0", "1e+81"],
    ),
    "integers of ninety digits": (
        {"type": "integer", "minimum": 10**89 + 5, "maximum": int("98" * 45)},
        [str(10**89 + 5), "98" * 45],
        [str(10**89 + 4), "98" * 44 + "99", "1"],
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_bounds_of_many_digits_are_enforced(name):
    schema, good, bad = NUMBERS[name]
    grammar = compiled(schema, strict=True)
    assert [text for text in (*good, *bad) if legal_by_mask(grammar.matcher(), text, bytes_only())] == good


def test_a_length_that_no_text_reaches_is_checked():
    grammar = compiled({"type": "string", "minLength": 99_999_999_999})
    assert grammar.statement.checked == ("#/minLength",)
    assert "too short" in grammar.check('"abc"')


def test_where_an_expression_for_names_is_given_up_the_named_ones_keep_their_values():
    pattern = {TANGLED: INTEGER, "(.*a){40}b": {"type": "null"}}
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "patternProperties": pattern, "additionalProperties": {"minimum": 1}}
    grammar = compiled(schema)
    assert not legal_by_mask(grammar.matcher(), '{"a": 1}', bytes_only())
    assert {"#/properties", "#/properties/a/type"} <= set(grammar.statement.enforced)
    if legal_by_mask(grammar.matcher(), '{"b": 0}', bytes_only()):
        assert "#/additionalProperties/minimum" in grammar.statement.checked
