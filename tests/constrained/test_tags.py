"""Schemas within structural tags: what xgrammar's mask leaves open in them is checked in the finished text, found as its formats say."""

from __future__ import annotations

import json

import pytest

from accelplug import ConstraintError
from accelplug.constrained.auto import Alone, Auto
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.tags import judged
from accelplug.hooks import CompileLimits, GrammarSpec

pytest.importorskip("xgrammar")
COUNTED = {"type": "object", "properties": {"x": {"type": "integer"}, "s": {"type": "string"}}, "required": ["x"]}
BRANCHES = {"allOf": [COUNTED, {"required": ["x"], "maxProperties": 1}]}
UNIQUE = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}

LONG = {"type": "array", "items": {"type": "integer"}, "minItems": 3}
END = {"type": "const_string", "value": "!"}
GRAMMAR = {"type": "grammar", "grammar": 'root ::= "é" | "</a>"'}
BOUNDED = {"type": "integer", "allOf": [{"minimum": 3}, {"maximum": 5}]}


def json_by(schema, **options):
    return {"type": "json_schema", "json_schema": schema, **options}


def tag(content, begin="<a>", end="</a>"):
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def formed(form):
    return {"type": "structural_tag", "format": form}


def triggered(*tags, **options):
    return formed({"type": "triggered_tags", "triggers": sorted({one["begin"][:2] for one in tags}), "tags": list(tags), **options})


def older(schema):
    return {"structures": [{"begin": "<a>", "schema": schema, "end": "</a>"}], "triggers": ["<a"]}


def sequence(*elements):
    return {"type": "sequence", "elements": list(elements)}


def compiled(given, engine=None, **options):
    return (engine or Auto()).compile(GrammarSpec.of({"structural_tag": given, **options}), bytes_only(), CompileLimits())


def admitted(grammar, text):
    tokens = [*text.encode(), 256]
    return grammar.matcher().validate(tokens) == len(tokens)


FORMS = {
    "structural_tag/format/tags/0/content/json_schema": lambda schema: triggered(tag(json_by(schema))),
    "structural_tag/structures/0/schema": older,
    "structural_tag/structures/0/schema ": lambda schema: older(json.dumps(schema)),
}


@pytest.mark.parametrize("engine", [Auto(), Alone("xgrammar")], ids=["auto", "xgrammar"])
@pytest.mark.parametrize("place", FORMS)
def test_both_forms_are_checked_at_the_end(place, engine):
    grammar, place = compiled(FORMS[place](BRANCHES), engine), place.strip()
    assert f"{place}#/allOf" in grammar.statement.checked
    assert grammar.statement.enforced[0] == "structural_tag"
    for text, problem in {
        "no tag": None,
        "": None,
        'a <b <a>{"x":1}</a> c': None,
        'q<a>{"x":"q"}</a>': f"in {place}, x breaks type: 'q' is not of type 'integer'",
        "<a>7</a>": f"in {place}, the value breaks type: 7 is not of type 'object'",
        '<a>{"x":1}</a> and <a>{"x":2}</a>': None,
        '<a>{"x":1}</a> and <a>{"x":"q"}</a>': f"in {place}, x breaks type: 'q' is not of type 'integer'",
        '<a>{"x":1,"y":"</a>"}</a>': f"in {place}, the value breaks maxProperties: {{'x': 1, 'y': '</a>'}} has too many properties",
    }.items():
        assert admitted(grammar, text), "the mask leaves it open"
        assert grammar.check(text) == problem, text
    for cut in ("<a>", '<a>{"x":1}', '<a>{"x":1}</a', '<a>{"x":1}</a><a>{"x"', "<a>{x}</a>"):
        assert grammar.check(cut).startswith("the text does not follow its structural tag"), cut


@pytest.mark.parametrize("place", FORMS)
def test_strict_refuses_what_is_left_open_and_takes_the_rest(place):
    with pytest.raises(ConstraintError, match=rf"strict: xgrammar does not enforce {place.strip()}#/allOf, .*; drop strict") as caught:
        compiled(FORMS[place](BRANCHES), strict=True)
    assert f"{place.strip()}#/allOf" in caught.value.statement.refused
    statement = compiled(FORMS[place](COUNTED), strict=True).statement
    assert statement.checked == ()
    assert f"{place.strip()}#/required" in statement.enforced


def test_what_is_required_and_not_declared_is_checked():
    grammar = compiled(triggered(tag(json_by({**COUNTED, "required": ["x", "z"], "additionalProperties": True}))))
    assert {place.partition("#")[2] for place in grammar.statement.checked} == {"/required", "/properties", "/properties/x/type", "/properties/s/type"}
    assert admitted(grammar, '<a>{"x":1}</a>')
    assert grammar.check('<a>{"x":1}</a>').endswith("breaks required: 'z' is a required property")
    assert grammar.check('<a>{"x":1,"z":1}</a>') is None


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (json_by(UNIQUE), ["[1, 2]"], ["[1, 1]"]),
        (tag(json_by(UNIQUE), "", ""), ["[1]"], ["[1,1]"]),
        (tag(json_by(UNIQUE), end=["</a>", "!"]), ["<a>[1]!", "<a>[1]</a>"], ["<a>[1,1]!"]),
        (sequence(tag({"type": "any_text"}, "<t>", "</t>"), tag(json_by(UNIQUE))), ["<t>a<a>[1,1]</a></t><a>[1]</a>"], ["<t>a</t><a>[1,1]</a>"]),
        (sequence({"type": "any_text"}, tag(json_by(UNIQUE))), ["t<a>[1]</a>", "<a>7</a><a>[1]</a>"], ["t<a>[1,1]</a>"]),
        ({"type": "or", "elements": [tag(json_by(UNIQUE)), tag(json_by({"const": "b"}), "<b>")]}, ["<a>[]</a>", '<b>"b"</a>'], ["<a>[1,1]</a>"]),
        (triggered(tag({"type": "any_text"}), tag(json_by(UNIQUE), "<b>", "</b>"))["format"], ["<a>t</a><b>[1]</b>"], ["<a>t</a><b>[1,1]</b><a>t</a>"]),
        ({"type": "or", "elements": [tag(json_by(UNIQUE)), tag(json_by(LONG))]}, ["<a>[1,1,1]</a>", "<a>[1]</a>"], ["<a>[1,1]</a>"]),
        ({"type": "tags_with_separator", "separator": ",", "tags": [tag(json_by(UNIQUE))]}, ["", "<a>[1]</a>,<a>[1]</a>"], ["<a>[1]</a>,<a>[1,1]</a>"]),
        ({"type": "plus", "content": tag(json_by(UNIQUE))}, ["<a>[1]</a><a>[1]</a>"], ["<a>[1]</a><a>[1,1]</a>"]),
        ({"type": "star", "content": tag(json_by(UNIQUE))}, ["", "<a>[1]</a><a>[1]</a>"], ["<a>[1]</a><a>[1,1]</a>"]),
        ({"type": "optional", "content": tag(json_by(UNIQUE))}, ["", "<a>[1]</a>"], ["<a>[1,1]</a>"]),
        ({"type": "repeat", "min": 2, "max": 3, "content": tag(json_by(UNIQUE))}, ["<a>[1]</a>" * 2, "<a>[]</a>" * 3], ["<a>[]</a><a>[1,1]</a>"]),
        ({"type": "dispatch", "rules": [["<a>", sequence(json_by(UNIQUE), END)]]}, ["t", "t<a>[1]!t<a>[1]!"], ["<a>[1]!t<a>[1,1]!"]),
        (tag({"type": "dispatch", "rules": [["<b>", sequence(json_by(UNIQUE), END)]]}, end=">"), ["<a>t>u<b>[1]!>", "<a>>>"], ["<a>t>u<b>[1,1]!>"]),
        ({"type": "dispatch", "loop": False, "rules": [["<a>", json_by(UNIQUE)]]}, ["t<a>[1]"], ["t<a>[1,1]"]),
        (triggered(tag(json_by(UNIQUE)), at_least_one=True)["format"], ["<a>[1]</a>"], ["<a>[1,1]</a>t"]),
        ({"type": "or", "elements": [triggered(tag(END, "<b>"), at_least_one=True)["format"], json_by(UNIQUE)]}, ["[1]", "<b>!</a>t"], ["[1,1]"]),
        (triggered(tag(json_by(UNIQUE)), at_least_one=True, stop_after_first=True)["format"], ["<a>[1]</a>"], ["<a>[1,1]</a>"]),
        (triggered(tag(json_by(UNIQUE)), stop_after_first=True, excludes=["z"])["format"], ["t<a>[1]</a>"], ["t<a>[1,1]</a>"]),
        (tag(triggered(tag(json_by(UNIQUE), "<b>", "</b>"))["format"]), ["<a>t<b>[1]</b>t</a>"], ["<a>t<b>[1,1]</b></a>"]),
        (tag(sequence({"type": "regex", "pattern": "[0-9]+"}, json_by(UNIQUE))), ["<a>7[1]</a>"], ["<a>7[1,1]</a>"]),
        (tag({"type": "or", "elements": [{"type": "regex", "pattern": "(?:ab)*"}, json_by(UNIQUE)]}), ["<a>abab</a>", "<a>[1]</a>"], ["<a>[1,1]</a>"]),
        (tag(sequence({"type": "regex", "pattern": "[a-z]+"}, json_by(BOUNDED))), ["<a>b4</a>"], ["<a>b14</a>"]),
        (sequence({"type": "regex", "pattern": "[a-zé]*"}, tag(json_by(UNIQUE))), ["é<a>[1]</a>", "<a>[1]</a>"], ["é<a>[1,1]</a>"]),
        (tag({"type": "or", "elements": [GRAMMAR, json_by(UNIQUE)]}), ["<a>é</a>", "<a></a></a>", "<a>[1]</a>"], ["<a>[1,1]</a>"]),
        (sequence(GRAMMAR, json_by(UNIQUE)), ["é[1]", "</a>[1]"], ["é[1,1]"]),
        (sequence(json_by(BOUNDED), {"type": "const_string", "value": "0"}), ["40", "30"], ["20", "400"]),
    ],
)
def test_schemas_are_found_wherever_formats_put_them(form, good, bad):
    grammar = compiled(formed(form))
    assert grammar.statement.checked
    for text in good:
        assert admitted(grammar, text), text
        assert grammar.check(text) is None, text
    for text in bad:
        assert admitted(grammar, text), text
        assert grammar.check(text).startswith("in structural_tag/format"), text


@pytest.mark.parametrize(
    ("form", "why"),
    [
        (tag(json_by(BRANCHES, style="qwen_xml")), "content/json_schema#/allOf, .* its parameters are written as qwen_xml"),
        (tag({"type": "qwen_xml_parameter", "json_schema": BRANCHES}), "content/json_schema#/allOf, .* its parameters are written as qwen_xml"),
        (sequence({"type": "any_tokens"}, tag(json_by(UNIQUE))), "uniqueItems, .*/elements/0 is a any_tokens, which is not read"),
        (tag(json_by(UNIQUE), {"type": "token", "token": 65}), "uniqueItems, .*/format begins or ends with a token"),
        ({"type": "token_dispatch", "rules": [[65, json_by(UNIQUE)]]}, "rules/0/1/json_schema#/uniqueItems, .*/format is begun by tokens"),
    ],
)
def test_what_cannot_be_found_in_a_text_is_refused(form, why):
    with pytest.raises(ConstraintError, match=f"xgrammar does not enforce .*{why}; leave the keyword out"):
        compiled(formed(form))


def test_an_expression_in_a_tag_is_enforced_or_refused():
    def one_of(pattern):
        return compiled(formed(tag({"type": "regex", "pattern": pattern})), strict=True)

    for pattern, good, bad in (("a.b", "axb", "a\nb"), (r"\x61b[.\x61c]", "abc", "\u061a."), (r"[.]\.\\x61", r".." "\\x61", "..a")):
        assert admitted(one_of(pattern), f"<a>{good}</a>")
        assert not admitted(one_of(pattern), f"<a>{bad}</a>")
    with pytest.raises(ConstraintError, match="structural_tag/format/content/pattern: xgrammar does not enforce anchors inside expressions; leave them out"):
        one_of("a^b")
    schema = {"type": "string", "pattern": "a.b"}
    assert compiled(formed(tag(json_by({"type": "object", "properties": {"a": schema}})))).check('<a>{"a": "axb"}</a>') is None


def test_what_is_enforced_may_stand_where_it_cannot_be_found():
    assert compiled(formed(tag(json_by(COUNTED, style="qwen_xml"))), strict=True).statement.checked == ()
    assert compiled(formed({"type": "token_dispatch", "rules": [[65, json_by(COUNTED)]]}), strict=True).statement.checked == ()


def test_options_of_a_format_that_loosen_it_are_known():
    grammar = compiled(formed(json_by(COUNTED, any_order=True)))
    assert grammar.statement.checked == ("structural_tag/format/json_schema#/required",)
    assert compiled(formed(json_by({"type": "string", "maxLength": 3}, excludes=["z"]))).statement.checked


def test_schemas_that_are_none_are_refused_by_their_place():
    with pytest.raises(ConstraintError, match="in structural_tag/structures/0/schema: #/required should be a list of names and is 1"):
        compiled(older({"required": 1}))
    with pytest.raises(ConstraintError, match="xgrammar refuses the structural_tag"):
        compiled(older("{"))
    with pytest.raises(ConstraintError, match=r"in structural_tag/structures/0/schema: #/items/\$ref names 'https://e.org/a', which is not in the schema"):
        compiled(older({"uniqueItems": True, "items": {"$ref": "https://e.org/a"}}))
    with pytest.raises(ConstraintError, match=r"in structural_tag/structures/0/schema: .* back to themselves"):
        compiled(older({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}))


def test_a_format_that_is_not_known_is_refused_where_it_holds_a_schema():
    grammar = compiled(formed({"type": "any_text"}))
    for form, refused in (({"type": "later"}, False), ({"type": "later", "inner": json_by(UNIQUE)}, True)):
        spec = GrammarSpec.of({"structural_tag": formed(form)})
        if refused:
            with pytest.raises(ConstraintError, match="not known of a format 'later'"):
                judged.with_final_check(grammar, spec, CompileLimits())
        else:
            assert judged.with_final_check(grammar, spec, CompileLimits()).statement.checked == ()


def test_long_texts_and_deep_ones_come_to_an_end(monkeypatch):
    grammar = compiled(older(BRANCHES))
    assert grammar.check("x" * 200_000 + '<a>{"x":1}</a>' + "y" * 100_000) is None
    assert "too deeply" in grammar.check("<a>" + "[" * 100_000)
    monkeypatch.setattr(judged, "CHECK_SECONDS", 0.05)
    slow = compiled(formed(sequence({"type": "star", "content": {"type": "any_text"}}, tag(json_by(UNIQUE)))))
    assert "in its structural tag; whether the text is valid is not known" in slow.check("x" * 20_000)


def test_a_structural_tag_is_one_of_several_grammars():
    both = {"all_of": [{"structural_tag": older(BRANCHES)}, {"regex": "<a>[^q]*"}]}
    grammar = Auto().compile(GrammarSpec.of(both), bytes_only(), CompileLimits())
    assert "0: structural_tag/structures/0/schema#/allOf" in grammar.statement.checked
    assert "x breaks type" in grammar.check('<a>{"x":"r"}</a>')


@pytest.mark.parametrize(
    ("schema", "wrong"),
    [
        ({"minimum": 3}, "2"),
        ({"type": ["integer", "string"], "minimum": 3}, "2"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}], "minimum": 3}, "2"),
        ({"$ref": "#/$defs/a", "maximum": 3, "$defs": {"a": {"type": "integer"}}}, "4"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "4"),
        ({"type": "integer", "enum": [1, "a"]}, '"a"'),
        ({"type": "integer", "anyOf": [{"minimum": 3}]}, "2"),
    ],
)
def test_keywords_beside_others_are_checked(schema, wrong):
    grammar = compiled(older(schema))
    assert grammar.check(f"<a>{wrong}</a>").startswith("in structural_tag/structures/0/schema, the value breaks")
    with pytest.raises(ConstraintError, match="strict: xgrammar does not enforce"):
        compiled(older(schema), strict=True)
