"""The final check ends within its limit whatever the schema and the answer, and says then that nothing is known."""

from __future__ import annotations

import json
import sys

import pytest

from accelplug import ConstraintError
from accelplug.constrained import finishing
from accelplug.hooks import CompileLimits, GrammarSpec

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")
pytest.importorskip("regex")

from accelplug.constrained.auto import Auto
from accelplug.constrained.finishing import problem
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.regex.backtracking import backtracking, rewritten
from accelplug.constrained.schema.document import Document
from accelplug.constrained.schema.searching import found_in
from accelplug.constrained.time_limit import OutOfTimeError, seconds_left, within

ENDLESS = r"^(?:(a|aa)+)+\1$"
TREE = {"oneOf": [{"type": "object", "properties": {"a": {"$ref": "#/$defs/tree"}}, "minProperties": least} for least in (0, 5)]}
SLOW = {
    "an expression": ({"type": "string", "pattern": ENDLESS}, "a" * 80 + "!", f"the pattern {ENDLESS!r}"),
    "an expression for names": ({"type": "object", "patternProperties": {ENDLESS: {}}}, {"a" * 80 + "!": 1}, f"the pattern {ENDLESS!r}"),
    "an expression for evaluated names": (
        {"type": "object", "unevaluatedProperties": False, "allOf": [{"patternProperties": {ENDLESS: True}}]},
        {"a" * 80 + "!": 1},
        f"the pattern {ENDLESS!r}",
    ),
    "alternatives that repeat themselves": ({"$ref": "#/$defs/tree", "$defs": {"tree": TREE}}, 24, ""),
}


def nested(depth):
    return {"a": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize("name", SLOW)
def test_a_check_that_takes_too_long_is_ended_and_the_next_is_made(monkeypatch, name):
    monkeypatch.setattr(finishing, "CHECK_SECONDS", 0.2)
    schema, value, what = SLOW[name]
    value = nested(value) if isinstance(value, int) else value
    grammar = Auto().compile(GrammarSpec("json_schema", json.dumps(schema)), bytes_only(), CompileLimits())
    said = grammar.check(json.dumps(value))
    assert said.startswith(f"the final check was ended after 0.2 s, in {what}")
    assert said.endswith("; whether the text is valid is not known")
    assert "the value breaks" in grammar.check("[1]")


def test_compiling_is_limited_where_a_schemas_own_values_are_judged():
    spec = GrammarSpec("json_schema", json.dumps({"enum": ["a" * 80 + "!", "aaa"], "pattern": ENDLESS}))
    with pytest.raises(ConstraintError, match="takes longer to judge a value by"):
        Auto().compile(spec, bytes_only(), CompileLimits(seconds=0.3))
    assert Auto().compile(GrammarSpec("json_schema", '{"enum": ["aaa", 1]}'), bytes_only(), CompileLimits()).check("1") is None


@pytest.mark.parametrize("item", [lambda n: {"a": n}, lambda n: [n, {}], lambda n: n or None], ids=["objects", "lists", "mixed"])
def test_many_items_are_told_apart_in_no_time(item):
    """By comparing each with each other it takes minutes."""
    items = [item(n) for n in range(40_000)]
    document = Document({"uniqueItems": True}, asserted=True)
    assert problem(document, json.dumps(items)) is None
    assert "breaks uniqueItems" in problem(document, json.dumps([*items, items[3]]))


@pytest.mark.parametrize(
    ("items", "unique"),
    [
        ([1, True, 0, False, "1", None, [1], [True], {"a": 1}, {"a": True}], True),
        ([1, 1.0], False),
        ([[1], [1.0]], False),
        ([{"a": 0, "b": []}, {"b": [], "a": 0.0}], False),
    ],
    ids=str,
)
def test_items_are_equal_as_json_has_it(items, unique):
    assert (problem(Document({"uniqueItems": True}, asserted=True), json.dumps(items)) is None) is unique


def test_many_unevaluated_properties_are_checked():
    document = Document({"unevaluatedProperties": {"type": "integer"}, "anyOf": [{"patternProperties": {"^x": True}}]}, asserted=True)
    names = {f"{'xy'[n % 2]}{n}": n for n in range(20_000)}
    assert problem(document, json.dumps(names)) is None
    assert "'y'" in problem(document, json.dumps({**names, "y": "z"}))


@pytest.mark.parametrize("depth", [sys.getrecursionlimit() - 200, 4 * sys.getrecursionlimit()])
def test_what_is_nested_too_deeply_is_said_to_be_and_no_loop_is_made_of_it(depth):
    document = Document({"items": {"$ref": "#"}}, asserted=True)
    assert problem(document, "[" * depth + "]" * depth) == "the text is nested too deeply to be checked; whether it is valid is not known"
    assert problem(document, "[" * 30 + "]" * 30) is None


def test_limits_nest_and_end():
    assert seconds_left("it") == float("inf")
    with within(100), within(1000):
        assert 0 < seconds_left("it") <= 100
    with within(0), pytest.raises(OutOfTimeError, match="it takes longer"):
        seconds_left("it")
    assert seconds_left("it") == float("inf")


DIALECT = [
    (r"^(?<q>['x])a\k<q>$", ["xax"], ["xa'"]),
    (r"^(a)?\1b$", ["b", "aab"], ["ab"]),
    (r"^\2(a)(b)?$", ["a", "ab"], ["ba"]),
    (r"\bfoo\b", ["a foo b", "éfoo"], ["afoo", "foo_"]),
    (r"(?<=a+)b$", ["aab"], ["b", "ab\n"]),
    (r"(?<![\d-])[\p{L}.]é$", ["xé", ".é"], ["1é", "é"]),
    (r"(?i)^abc\b", ["ABC"], ["abcd"]),
    (r"^(a)\1{,3}$", ["aa{,3}"], ["aaa"]),
    (r"^(x)\1\d\s[\w-]$", ["xx1\u00a0_"], ["xx\u0663 a", "xx1 é"]),
    (r"^(x).\1[^]$", ["xaxb", "xax\n"], ["x\nxb", "x\u2028xb"]),
    (r"^(x)\1{e<=1}$", ["xx{e<=1}"], ["xx"]),
    (r"^(x)\1[[a]]$", ["xx[]", "xxa]"], ["xxa"]),
]


@pytest.mark.parametrize(("pattern", "good", "bad"), DIALECT)
def test_what_is_not_regular_is_read_as_ecma_262_has_it(pattern, good, bad):
    assert [text for text in good if not found_in(pattern, text)] == []
    assert [text for text in bad if found_in(pattern, text)] == []


NONE = [r"(a)\1(", r"(a)\1)", "(?<a", r"\b**", r"\b++", r"[z-a]\b", r"(?>a)\b", r"\b\q", r"*\b", r"(?#a)\b", r"\3(a)", r"\ba{3,1}", r"\k<b>"]


@pytest.mark.parametrize("pattern", NONE)
def test_what_is_no_expression_is_refused(pattern):
    with pytest.raises(ConstraintError, match=r"cannot be read: .*; write a regular expression of ECMA 262"):
        backtracking(pattern)


def test_regular_expressions_are_found_by_both_alike():
    for pattern in (r"^[a-c]+\.(x|yy)?$", r"a{2,3}b", r"[^\d\s]\S$", "^$|^-", r"(?=a)[ab]+"):
        for text in ("", "abc.", "abc.yy", "aab", "aaaab", "1x", "-b", "b\n", "é "):
            assert found_in(pattern, text) == bool(backtracking(pattern).search(text)), (pattern, text, rewritten(pattern))


def test_deeply_nested_expressions_as_values_are_no_loop_of_references():
    document = Document({"format": "regex"}, asserted=True)
    assert "breaks format" in problem(document, json.dumps("(" * 3000))
    assert problem(document, json.dumps("(?<name>a)\\k<name>")) is None
