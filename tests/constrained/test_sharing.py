"""What rewriting works out once: rules of what ends alike, and caches, which are bounded."""

from __future__ import annotations

import functools
import importlib
import json
import pkgutil
import time

import pytest

import accelplug.constrained
from accelplug.hooks import CompileLimits, GrammarSpec

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")

from accelplug import ConstraintError
from accelplug.constrained.auto import Auto
from accelplug.constrained.lark.compile import to_lark
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.schema.branches import Tableau
from accelplug.constrained.schema.document import Document
from accelplug.constrained.walking import legal_by_mask

BY_FEW_KEYS = {
    "_categories", "_reads", "bytes_only", "closes_objects", "enforces", "handlers_of", "in_order", "label", "later_than", "nests_behind_blanks",
    "spoken_in", "shapes_of", "tekken", "telling", "validator_class",
}  # fmt: skip
"""Caches whose keys are engines, features and drafts, or that have none: nothing of a schema stays in them."""


def written(schema):
    return to_lark(Document(schema, asserted=True), "any", time.monotonic() + 60, CompileLimits()).text


def rules(schema):
    return sum(": " in line and line[0].islower() for line in written(schema).splitlines())


def test_objects_that_end_alike_share_rules():
    tail = {f"p{index}": {"type": "string"} for index in range(20)}
    one = {"type": "object", "properties": {"a": {"type": "null"}, **tail}, "additionalProperties": False}
    other = {"type": "object", "properties": {"b": {"type": "null"}, **tail}, "additionalProperties": False}
    alone, both = rules(one), rules({"anyOf": [one, other]})
    assert 20 < alone < both < alone + 10
    required = rules({"anyOf": [one, {**other, "required": ["p19"]}]})
    assert required > both  # an end that differs in what is required is another


def test_what_never_ends_is_left_out():
    endless = {"type": "object", "properties": {"a": {"$ref": "#/$defs/endless"}}, "required": ["a"]}
    schema = {"$defs": {"endless": endless}, "type": "object", "properties": {"a": {"$ref": "#/$defs/endless"}, "b": {"type": "null"}}}
    grammar = Auto().compile(GrammarSpec("json_schema", json.dumps(schema | {"not": {"required": ["c"]}})), bytes_only(), CompileLimits())
    assert legal_by_mask(grammar.matcher(), '{"b": null}', bytes_only())
    assert not legal_by_mask(grammar.matcher(), '{"a": {"b": null}}', bytes_only())
    with pytest.raises(ConstraintError, match="no value satisfies"):
        written({"$defs": {"endless": endless}, "$ref": "#/$defs/endless"})


def test_types_are_seen_through_references():
    document = Document({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"enum": ["x", None]}}}, asserted=True)
    tableau = Tableau(document, float("inf"), CompileLimits())
    assert tableau.viable(frozenset({(True, document.root)})) == ("null", "string")
    circle = Document({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#"}}}, asserted=True)
    assert len(Tableau(circle, float("inf"), CompileLimits()).viable(frozenset({(True, circle.root)}))) == 6


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"enum": ["a", "ab", "b"], "pattern": "^a"}, ["a", "ab"], ["b"]),
        ({"enum": [1, 5, 2.5, 7], "not": {"type": "integer"}}, [2.5], [1, 5]),
        ({"enum": [1, 5, 9], "exclusiveMinimum": 1, "maximum": 5}, [5], [1, 9]),
        ({"enum": ["2024-01-01", "x"], "format": "date"}, ["2024-01-01"], ["x"]),
        ({"enum": [{"a": 1}, {"b": 1}, []], "not": {"required": ["a"]}}, [{"b": 1}], [{"a": 1}, []]),
        ({"enum": [{"a": 1}, {"b": 1}, {"a": "x"}], "properties": {"a": {"type": "integer"}}}, [{"a": 1}, {"b": 1}], [{"a": "x"}]),
        ({"enum": [{"a": 1}, {"b": "x", "c": 1}], "not": {"additionalProperties": {"type": "integer"}}}, [{"b": "x", "c": 1}], [{"a": 1}]),
        ({"enum": [{"a": 1}, {}, {"a": 1, "b": 1}], "minProperties": 1, "patternProperties": {"b": False}}, [{"a": 1}], [{}, {"a": 1, "b": 1}]),
        ({"enum": [{"b": 1, "bb": "x"}, {"b": 1}], "patternProperties": {"^b": {"type": "integer"}}}, [{"b": 1}], [{"b": 1, "bb": "x"}]),
        ({"enum": [3, 4, 6], "not": {"multipleOf": 3}}, [4], [3, 6]),
    ],
)
def test_fixed_values_are_filtered_by_what_stands_beside_them(schema, valid, invalid):
    grammar = Auto().compile(GrammarSpec("lark", written(schema)), bytes_only(), CompileLimits())
    assert all(legal_by_mask(grammar.matcher(), json.dumps(value), bytes_only()) for value in valid)
    assert not any(legal_by_mask(grammar.matcher(), json.dumps(value), bytes_only()) for value in invalid)


def test_caches_are_bounded():
    found = {}
    for module in pkgutil.walk_packages(accelplug.constrained.__path__, "accelplug.constrained."):
        if not module.name.endswith(".trial"):
            for name, one in vars(importlib.import_module(module.name)).items():
                if isinstance(one, functools._lru_cache_wrapper):
                    found[name] = one.cache_parameters()["maxsize"]
    assert {"parse", "derivative", "literal", "_character"} <= found.keys()
    assert {name for name, most in found.items() if most is None} <= BY_FEW_KEYS
    assert sum(most for most in found.values() if most is not None) < 1 << 18
