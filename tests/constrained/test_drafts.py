"""What each draft makes of a schema, and what none does: keywords of another draft, equal values, malformed keywords, references elsewhere."""

from __future__ import annotations

import json
import urllib.request

import pytest

from accelplug import ConstraintError
from accelplug.hooks import CompileLimits, GrammarSpec

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")

from accelplug.constrained.auto import Auto
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.walking import legal_by_mask

D3, D4, D6, D7 = (f"http://json-schema.org/draft-0{number}/schema#" for number in (3, 4, 6, 7))
VOCABULARY = bytes_only()


def compiled(schema):
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return Auto().compile(GrammarSpec("json_schema", text), VOCABULARY, CompileLimits())


def passes(grammar, text):
    """Whether a text passes the mask and the check, which agree on whatever the statement calls enforced."""
    by_mask, checked = legal_by_mask(grammar.matcher(), text, VOCABULARY), grammar.check(text) is None
    assert by_mask or not checked, f"the mask refuses {text}"
    assert checked or not by_mask or grammar.statement.checked, f"the mask accepts {text}"
    return by_mask and checked


A = {"a": {"required": True, "type": "string"}, "b": {"type": "any"}, "c": {"type": [{"type": "string"}, "null"]}, "d": {"divisibleBy": 2}}
JUDGED = {
    "const before draft 6": ({"$schema": D4, "properties": {"a": {"const": 1}}}, ['{"a": 2}'], []),
    "propertyNames and contains before draft 6": ({"$schema": D4, "propertyNames": False, "contains": False}, ['{"a": 1}', "[1]"], []),
    "if before draft 7": ({"$schema": D6, "if": {"type": "string"}, "then": False}, ['"a"'], []),
    "dependentRequired before 2019-09": ({"$schema": D7, "dependentRequired": {"a": ["b"]}}, ['{"a": 1}'], []),
    "prefixItems before 2020-12": ({"$schema": D7, "prefixItems": [False]}, ["[1]"], []),
    "draft 3": (
        {"$schema": D3, "properties": A | {"e": {"disallow": "string"}}, "extends": [{"properties": {"f": {"type": "null"}}}]},
        ['{"a": "x"}', '{"a": "x", "b": [1]}', '{"a": "x", "c": null}', '{"a": "x", "d": 4}', '{"a": "x", "e": 1}'],
        ["{}", '{"a": 1}', '{"a": "x", "c": 1}', '{"a": "x", "d": 3}', '{"a": "x", "e": "y"}', '{"a": "x", "f": 1}'],
    ),
    "a time of draft 3": ({"$schema": D3, "format": "time"}, ['"12:00:00Z"', "1"], ['"x"']),
    "draft 3 has no anyOf": ({"$schema": D3, "type": "integer", "anyOf": [{"type": "string"}]}, ["1"], ['"a"']),
    "a bound made exclusive, draft 4": ({"$schema": D4, "type": "number", "minimum": 0, "exclusiveMinimum": True}, ["0.5"], ["0"]),
    "a bound made exclusive, no draft": ({"type": "number", "maximum": 0.5, "exclusiveMaximum": True}, ["0.25", "-1"], ["0.5"]),
    "a bound left inclusive": ({"type": "integer", "maximum": 5, "exclusiveMaximum": False}, ["5"], ["6"]),
    "a truth value for required": ({"properties": {"a": {"type": "object", "required": True}}}, ['{"a": {}}', "{}"], []),
    "equal objects in another order": (
        {"allOf": [{"enum": [{"a": 1, "b": 2}]}, {"not": {"not": {"const": {"b": 2, "a": 1}}}}]},
        ['{"a": 1, "b": 2}'],
        ['{"a": 1}'],
    ),
    "equal numbers in another spelling": ({"allOf": [{"enum": [[1.0], 7]}, {"enum": [[1], True]}]}, ["[1]", "[1.0]"], ["7", "[true]"]),
    "whole numbers with a fraction": ({"enum": [1.0, 2.5]}, ["1", "1.0", "2.5"], ["2"]),
    "the range of 64 bits": ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, [str(-(2**63)), str(2**63 - 1)], [str(2**63)]),
    "unsigned, 64 bits": ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, ["0", str(2**64 - 1)], [str(2**64), "-1"]),
    "fixed numbers beyond 64 bits": ({"enum": [10**30, -(10**29)]}, [str(10**30), str(-(10**29))], [str(10**30 + 1)]),
    "bounds beyond floats": ('{"type": "number", "maximum": 1e400, "minimum": 1e-300}', ["1", "1e-5"], ["0", "-1"]),
    "the least float": ({"type": "number", "exclusiveMinimum": 5e-324, "maximum": 1.7976931348623157e308}, ["1e-9", "3"], ["0", "-1"]),
    "small multiples": ({"type": "number", "multipleOf": 1e-06}, ["1e-06", "1.5e-05", "0.25", "-3"], ["1.5e-06", "1e-07"]),
    "other small multiples": ({"type": "number", "multipleOf": 2.5e-05}, ["5e-05", "7.5e-05"], ["6e-05"]),
    "fixed numbers whose spelling has an exponent": ({"enum": [1e-07, 2]}, ["1e-07", "0.0000001", "2"], ["1", "1e-06", "0.000001"]),
    "a fixed number whose spelling has an exponent": ({"type": "object", "properties": {"a": {"const": 1.5e-10}}}, ['{"a": 1.5e-10}'], ['{"a": 1}']),
    "fixed numbers beyond floats": ('{"enum": [-1e999, [1e999], "a"]}', ['"a"'], ["-Infinity", "[Infinity]", "1"]),
    "other numbers than one beyond floats": ('{"type": "number", "not": {"const": 1e400}}', ["1", "-2.5"], ['"a"']),
    "halves of pairs of surrogates": ('{"enum": ["\\ud800", ["\\udfff"], {"\\ud800": 1}, "a\\ud83d\\ude00"]}', ['"a\U0001f600"'], ['"a"']),
    "a class as the end of a range": ({"pattern": r"^[.-\w]+$"}, ['"a.-"'], ['"!"']),
    "other anchors": ({"pattern": r"\A[a-z]+\Z"}, ['"ab"'], ['"a1"', '"Aa"']),
    "a name referred to": ({"pattern": r"^(?<quote>['x])a\k<quote>$"}, ['"xax"'], ['"xa"']),
    "no character and any": ({"pattern": "^[^]$|^[]$"}, ['"a"'], ['""', '"ab"']),
}


@pytest.mark.parametrize("name", JUDGED)
def test_it_is_read_as_its_draft_does(name):
    schema, good, bad = JUDGED[name]
    grammar = compiled(schema)
    assert [text for text in good if not passes(grammar, text)] == []
    assert [text for text in bad if passes(grammar, text)] == []


MALFORMED = [
    ({"type": "any"}, "#/type should be one of the types array, .*, or a list of them and is"),
    ({"type": ["string", "float"]}, "#/type should be one of the types array"),
    ({"$schema": D3, "type": ["string", "float"]}, '#/type is "float"; the types are any, array'),
    ({"$schema": D4, "exclusiveMinimum": 3}, "#/exclusiveMinimum should be true or false and is 3"),
    ({"$schema": D4, "properties": {"a": {"id": 5}}}, "#/properties/a/id should be text"),
    ({"enum": "abc"}, "#/enum should be a list"),
    ({"required": "a"}, "#/required should be a list of names"),
    ({"required": [1]}, "#/required should be a list of names"),
    ({"multipleOf": 0}, "#/multipleOf should be a number above 0"),
    ({"multipleOf": "2"}, "#/multipleOf should be a number above 0"),
    ({"$schema": D7, "exclusiveMinimum": True}, "#/exclusiveMinimum should be a number"),
    ('{"const": 1e400}', "no value satisfies the schema: its keywords contradict each other"),
    ('{"const": "\\ud800"}', "no value satisfies the schema: its keywords contradict each other"),
    ('{"enum": ["\\ud800", {"\\ud800": 1}]}', "no value satisfies the schema: its keywords contradict each other"),
    ({"pattern": "a("}, "the pattern 'a\\(' cannot be read"),
    ({"patternProperties": {r"\p{Script=Greek}": {}}}, "cannot be read"),
    ({"allOf": [{"enum": [1]}, {"not": {"$ref": "#/nowhere"}}]}, "names '#/nowhere', which is not in the schema; nothing is fetched"),
]


@pytest.mark.parametrize(("schema", "sentence"), MALFORMED, ids=[json.dumps(schema) for schema, _ in MALFORMED])
def test_what_no_draft_knows_is_refused_in_a_sentence(schema, sentence):
    with pytest.raises(ConstraintError, match=sentence):
        compiled(schema)


def test_nothing_is_fetched(monkeypatch):
    asked = []
    monkeypatch.setattr(urllib.request, "urlopen", asked.append)
    remote = {"$ref": "http://example.invalid/schema.json"}
    with pytest.raises(ConstraintError, match="nothing is fetched"):
        compiled({"properties": {"a": remote}})
    with pytest.raises(ConstraintError, match="the final check cannot read the schema"):
        compiled({"enum": [{"a": 1}], "not": {"unevaluatedProperties": remote}})
    with pytest.raises(ConstraintError, match="nothing is fetched"):
        compiled({"type": "object", "unevaluatedProperties": remote})
    grammar = compiled({"type": "array", "contains": {"const": 1}, "unevaluatedItems": remote})
    with pytest.raises(ConstraintError, match="the final check cannot read the schema"):
        grammar.check("[1, 2]")
    assert not asked


D2019, D2020 = (f"https://json-schema.org/draft/{name}/schema" for name in ("2019-09", "2020-12"))
SIX = [D3, D4, D6, D7, D2019, D2020]


def its_own(draft):
    """Return a schema whose keywords the check reads in ways of its own."""
    return {
        "type": "object",
        "properties": {
            "n": {"divisibleBy" if draft == D3 else "multipleOf": 0.1},
            "letters": {"type": "string", "pattern": r"^\p{L}+$"},
            "digit": {"type": "string", "pattern": r"^\d$"},
            "slow": {"type": "string", "pattern": r"^(?:(a|aa)+)+\1$"},
        },
        "dependencies": {"letters": ["digit"]},
    }


@pytest.mark.parametrize("draft", SIX)
@pytest.mark.parametrize("to_the_root", [True, False])
def test_a_reference_to_what_names_its_draft_changes_nothing_of_the_check(monkeypatch, draft, to_the_root):
    monkeypatch.setattr("accelplug.constrained.finishing.CHECK_SECONDS", 0.2)
    own = {"$schema": draft, **its_own(draft)}
    own["properties"]["c"] = {"$ref": "#"}
    grammar = compiled(own if to_the_root else {"$schema": draft, "properties": {"c": {"$schema": draft, **its_own(draft)}}})
    assert grammar.check('{"c": {"n": 0.3}}') is None
    assert grammar.check('{"c": {"letters": "\u00e4", "digit": "1"}}') is None
    assert "breaks pattern" in grammar.check('{"c": {"digit": "\u0663"}}')
    assert "is a dependency of" in grammar.check('{"c": {"letters": "\u00e4"}}')
    assert "was ended after 0.2 s" in grammar.check(json.dumps({"c": {"slow": "a" * 80 + "!"}}))


def test_unevaluated_items_are_those_of_the_draft_behind_a_reference_too():
    grammar = compiled({"$schema": D2019, "properties": {"c": {"$ref": "#"}}, "contains": {"const": 1}, "unevaluatedItems": False})
    assert "breaks unevaluatedItems" in grammar.check('{"c": [1]}')


@pytest.mark.parametrize("draft", SIX[:-1])
def test_additional_items_say_something_beside_a_list_alone(draft):
    for items in [{}] if draft in (D3, D4) else [{}, True]:
        grammar = compiled({"$schema": draft, "items": items, "additionalItems": False})
        assert all(passes(grammar, text) for text in ("[1]", "[1, 2]", '"a"'))
    grammar = compiled({"$schema": draft, "items": [{}], "additionalItems": {"type": "string"}})
    assert [text for text in ("[1]", "[1, 2]", '[1, "a"]', "1") if not passes(grammar, text)] == ["[1, 2]"]
