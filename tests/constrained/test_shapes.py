"""A keyword with a value that its draft gives no meaning is refused, as the draft's metaschema has it, and nothing else is."""

from __future__ import annotations

import json

import pytest

from accelplug import ConstraintError
from accelplug.constrained.schema.document import Document
from accelplug.constrained.schema.vocabulary import KEYWORDS, is_known

jsonschema = pytest.importorskip("jsonschema")
DRAFTS = {
    3: ("Draft3", "http://json-schema.org/draft-03/schema#"),
    4: ("Draft4", "http://json-schema.org/draft-04/schema#"),
    6: ("Draft6", "http://json-schema.org/draft-06/schema#"),
    7: ("Draft7", "http://json-schema.org/draft-07/schema#"),
    2019: ("Draft201909", "https://json-schema.org/draft/2019-09/schema"),
    2020: ("Draft202012", "https://json-schema.org/draft/2020-12/schema"),
}
VALUES = [
    *(None, True, False, 0, 1, -1, 1.0, 1.5, "", "a", "string", "any"),
    *([], ["a"], ["string", "null"], ["a", "a"], ["string", "string"], [1], [None], [{}], [True], [{}, 3]),
    *({}, {"a": 1}, {"a": {}}, {"a": True}, {"a": ["b"]}, {"a": "b"}, {"a": []}, {"a": ["b", "b"]}, {"a": [1]}, {"a": {"type": "string"}}),
]
KEYWORDS_TOO = ("then", "else", "minContains", "maxContains", "$defs", "definitions", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor")
LISTS = ("type", "enum", "required", "dependencies", "dependentRequired", "items", "disallow")


def refusal(schema):
    try:
        Document(schema, asserted=True)
    except ConstraintError as exc:
        return str(exc)
    return None


def known(keyword, draft):
    later = {"$id": 6, "$defs": 2019, "definitions": 4, "$anchor": 2019, "$dynamicAnchor": 2020, "additionalItems": 3}
    return is_known(keyword, draft) and later.get(keyword, 0) <= draft and not (keyword == "$recursiveAnchor" and draft != 2019)


def is_forgiven(keyword, value, draft):
    """Whether the metaschema refuses what constrains nothing or has one meaning alone, or admits what has none."""
    inside = [one for one in value.values() if isinstance(one, list)] if isinstance(value, dict) else [value]
    if keyword in LISTS and any(isinstance(one, list) and (one == [] or len(one) > len(set(map(repr, one)))) for one in inside):
        return value != [] or keyword != "type"
    return (draft <= 4 and value == 1.0 and isinstance(value, float)) or (draft == 3 and keyword in ("maxLength", "maxItems") and value == -1)


@pytest.mark.parametrize("draft", DRAFTS)
def test_every_keyword_of_every_draft_is_refused_where_the_metaschema_refuses_it(draft):
    name, uri = DRAFTS[draft]
    base = getattr(jsonschema, f"{name}Validator")
    metaschema, counts = base(base.META_SCHEMA), {True: 0, False: 0}
    for keyword in (*KEYWORDS, *KEYWORDS_TOO):
        for value in VALUES if known(keyword, draft) and keyword != "$ref" else ():
            schema = {"$schema": uri, "minimum": 1, "maximum": 2, keyword: value}
            ours, theirs = refusal(schema), not metaschema.is_valid(schema)
            counts[theirs] += 1
            if not is_forgiven(keyword, value, draft):
                assert (ours is not None) is theirs, (keyword, value, ours)
            if ours:
                assert ours.startswith(f"#/{keyword} should be "), ours
                assert ours.endswith(f" and is {json.dumps(value)}"), ours
    assert min(counts.values()) > 100


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        ({"$ref": 3}, "#/$ref should be text and is 3"),
        ({"$schema": 5}, "#/$schema should be text and is 5"),
        ({"properties": {"a/b": {"items": {"anyOf": []}}}}, "#/properties/a~1b/items/anyOf should be a list of schemas, at least one and is []"),
        ({"allOf": [True, {"not": 3}]}, "#/allOf/1/not should be a schema and is 3"),
        ({"$defs": {"unused": {"enum": 3}}}, "#/$defs/unused/enum should be a list and is 3"),
        ({"$ref": "#/x/y", "x": {"y": {"required": "ab"}}}, '#/x/y/required should be a list of names and is "ab"'),
        ({"$schema": DRAFTS[4][1], "properties": {"a": True}}, "#/properties should be an object, each value a schema, which in this draft is an object"),
        ({"$schema": DRAFTS[2020][1], "items": [{}]}, "#/items should be a schema; a list of them is prefixItems in this draft and is [{}]"),
        ({"dependencies": {"a": 3}}, '#/dependencies should be an object, each value a list of names or a schema and is {"a": 3}'),
        ({"required": ["a", 1]}, '#/required should be a list of names and is ["a", 1]'),
    ],
    ids=str,
)
def test_the_sentence_names_the_place_and_what_should_be_there(schema, sentence):
    assert refusal(schema).startswith(sentence)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"required": {"type": "string"}, "enum": {}, "$ref": {"type": "integer"}}},
        {"default": {"required": "a"}, "examples": [{"enum": 3}], "const": {"properties": []}, "enum": [{"minimum": "x"}]},
        {"$comment": 3, "title": ["x"], "description": 4, "x-anything": {"required": "a"}},
        {"$schema": DRAFTS[4][1], "minimum": 1, "exclusiveMinimum": True, "if": 3, "const": 1, "propertyNames": 5},
        {"$schema": DRAFTS[3][1], "properties": {"a": {"required": True, "type": [{"enum": [1]}, "any"]}}, "extends": {"divisibleBy": 2}},
        {"$schema": DRAFTS[4][1], "properties": {"a": {"required": [], "additionalItems": True, "items": [], "additionalProperties": False}}},
        {"minimum": 1, "exclusiveMinimum": True, "required": True, "dependencies": {"a": "b", "c": True, "d": ["e"]}, "items": [{}, True]},
        {"$schema": DRAFTS[7][1], "$defs": 5, "dependentRequired": 6, "id": 7},
    ],
    ids=str,
)
def test_what_only_looks_like_a_keyword_or_is_one_of_an_older_draft_passes(schema):
    assert refusal(schema) is None


def test_what_only_a_reference_by_name_leads_to_is_refused_once_it_is_read():
    pytest.importorskip("llguidance")
    from accelplug.constrained.auto import Auto
    from accelplug.constrained.probes import bytes_only
    from accelplug.hooks import CompileLimits, GrammarSpec

    schema = {"$id": "http://a.b/c", "not": {"$ref": "#/x/y"}, "x": {"y": {"required": "ab"}}}
    with pytest.raises(ConstraintError, match='required should be a list of names and is "ab"'):
        Auto().compile(GrammarSpec("json_schema", json.dumps(schema)), bytes_only(), CompileLimits())
