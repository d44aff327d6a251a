"""Every keyword is enforced, checked or refused, and the statement says which; hostile schemas are refused and the process goes on."""

from __future__ import annotations

import json
import re
from threading import Event, Timer

import pytest
from spent import processor_seconds

from accelplug import AccelplugError, ConstraintError
from accelplug.hooks import CompileLimits, GrammarSpec

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")

from accelplug.constrained.auto import Alone, Auto
from accelplug.constrained.engines.matching import in_one_line
from accelplug.constrained.finishing import fault, problem
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.schema.document import Document
from accelplug.constrained.walking import legal_by_mask
from accelplug.constrained.worker import compiled_beside, tried

UNIQUE = {"type": "array", "items": {"type": "string", "maxLength": 5}, "uniqueItems": True, "minItems": 1}


def compiled(schema, limits=None, **options):
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return Auto().compile(GrammarSpec("json_schema", text, **options), bytes_only(), limits or CompileLimits())


def test_what_no_mask_decides_is_checked():
    grammar = compiled(UNIQUE)
    assert grammar.statement.checked == ("#/uniqueItems",)
    assert set(grammar.statement.enforced) == {"#/type", "#/items", "#/items/type", "#/items/maxLength", "#/minItems"}
    assert legal_by_mask(grammar.matcher(), '["a", "a"]', bytes_only())
    assert grammar.check('["a", "a"]') == "the value breaks uniqueItems: ['a', 'a'] has non-unique elements"
    assert grammar.check('["a", "b"]') is None
    assert "no JSON" in grammar.check('["a", NaN]')


def test_strict_refuses_it():
    with pytest.raises(ConstraintError, match="no mask enforces #/uniqueItems") as caught:
        compiled(UNIQUE, strict=True)
    assert caught.value.statement.refused == ("#/uniqueItems",)
    assert "#/minItems" in caught.value.statement.enforced
    assert compiled({**UNIQUE, "items": {"enum": ["a", "b"]}}, strict=True).statement.checked == ()


def test_format_is_asserted_or_described():
    schema = {"type": "string", "format": "date"}
    assert compiled(schema).statement.enforced == ("#/type", "#/format")
    assert not legal_by_mask(compiled(schema).matcher(), '"x"', bytes_only())
    described = compiled(schema, format="annotate")
    assert legal_by_mask(described.matcher(), '"x"', bytes_only())
    assert described.check('"x"') is None
    assert described.statement.enforced == ("#/type",)


def test_every_keyword_is_in_the_statement():
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "contains": {"const": 1}}},
        "not": {"required": ["b"]},
        "patternProperties": {"^x": {"pattern": "(a)\\1"}},
    }
    said = compiled(schema).statement
    assert set(said.enforced) | set(said.checked) == {
        *(
            "#/type",
            "#/properties",
            "#/properties/a/type",
            "#/properties/a/contains",
            "#/properties/a/contains/const",
            "#/not",
            "#/not/required",
        ),
        *("#/patternProperties", "#/patternProperties/^x/pattern"),
    }
    assert said.checked == ("#/patternProperties/^x/pattern",)


def test_a_keyword_is_in_the_statement_wherever_it_stands():
    """The same subschema at two places is worked out once, and inside a larger one that is repeated as well."""
    beyond = {"type": "string", "pattern": "(a)\\1"}
    pair = {"type": "object", "properties": {"x": beyond}, "additionalProperties": False, "not": {"required": ["y"]}}
    schema = {"type": "object", "properties": {"a": pair, "b": pair, "c": beyond}, "additionalProperties": False}
    said = compiled(schema).statement
    assert set(said.checked) == {f"#/properties/{place}/pattern" for place in ("a/properties/x", "b/properties/x", "c")}
    assert "#/properties/b/not/required" in said.enforced


def test_patterns_that_look_around_beside_each_other_are_checked():
    """llguidance gives up their common texts behind three characters."""
    grammar = compiled({"type": ["string", "null"], "pattern": r"\B", "not": {"pattern": r"(?=[^a].*b|.*a-a).*\W"}})
    assert set(grammar.statement.checked) == {"#/not", "#/not/pattern"}
    assert legal_by_mask(grammar.matcher(), '"ba-aa "', bytes_only())
    assert "breaks not" in grammar.check('"ba-aa "')


HOSTILE = {
    "a loop of references": '{"allOf": [{"$ref": "#"}], "not": {"type": "null"}}',
    "deep nesting": '{"items":' * 400 + "{}" + "}" * 400,
    "deeper nesting": '{"items":' * 20000 + "{}" + "}" * 20000,
    "a huge count": '{"type": "array", "minItems": 1000000000, "items": {"type": "null"}}',
    "a huge length": '{"type": "string", "maxLength": 1000000000}',
    "many properties": '{"minProperties": 100000000}',
    "repeated repeats": '{"type": "string", "pattern": "^(a+)+$", "not": {"pattern": "(.*a){30}b"}}',
    "many choices": json.dumps({"allOf": [{"anyOf": [{"required": [f"a{n}"]}, {"required": [f"b{n}"]}]} for n in range(30)]}),
    "many overlaps": json.dumps({"oneOf": [{"properties": {f"p{n}": {"type": "integer"}}} for n in range(30)]}),
    "many expressions": json.dumps(
        {"type": "string", "allOf": [{"pattern": f"(a.{{{n}}}b|c.{{{n + 3}}}d)"} for n in range(25)], "not": {"pattern": "x.{40}y"}}
    ),
    "a step that no automaton counts": '{"type": "integer", "multipleOf": 123456789}',
    "steps that meet far away": '{"type": "integer", "allOf": [{"multipleOf": 99991}, {"multiple\\u004ff": 99989}]}',
    "no type": '{"type": 5}',
    "no list": '{"enum": 3}',
    "no pattern": '{"pattern": 3, "type": "string"}',
    "no reference": '{"$ref": "#/nowhere"}',
    "no schema": "[1]",
    "a contradiction": '{"type": "string", "minLength": 3, "maxLength": 2, "not": {"const": "a"}}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_end_soon(name):
    """Either they compile, to what is no wider than stated, or they are refused in one sentence."""
    began = processor_seconds()
    refusal = ""
    try:
        grammar = compiled(HOSTILE[name], CompileLimits(seconds=5.0))
    except ConstraintError as exc:
        refusal = str(exc)
    else:
        grammar.matcher().validate([*b'"aaaaaaaaaaaaaaaaaaaaaaaaaaaa'])
    assert "\n" not in refusal
    assert len(refusal) < 500
    assert processor_seconds() - began < 40


def test_a_worker_is_ended_and_this_process_goes_on():
    with pytest.raises(ConstraintError, match=r"takes longer to compile than 0\.2 s"):
        tried("llguidance", GrammarSpec("json_schema", '{"type": "integer", "multipleOf": 123456789}'), CompileLimits(seconds=0.2, megabytes=8192))
    with pytest.raises(ConstraintError, match="refuses the"):
        tried("llguidance", GrammarSpec("regex", "(a{5000}"), CompileLimits(seconds=60))
    with pytest.raises(ConstraintError, match=r"takes (longer|more than)"):
        tried(
            "llguidance",
            GrammarSpec("json_schema", '{"type": "integer", "multipleOf": 123456789}'),
            CompileLimits(seconds=3, megabytes=256),
        )
    assert compiled({"type": "integer"}).matcher().validate([49, 256]) == 2


def test_nobody_waits_for_what_takes_long_in_a_thread():
    """The work waits for the test, so that no machine is fast enough to be done with it before."""
    spec, let_go = GrammarSpec.of({"regex": "a"}), Event()
    try:
        with pytest.raises(ConstraintError, match=r"takes longer to compile than 0\.1 s; simplify it, or raise seconds"):
            compiled_beside(spec, let_go.wait, CompileLimits(seconds=0.1))
        cancelled = Event()
        Timer(0.2, cancelled.set).start()
        with pytest.raises(ConstraintError, match="was cancelled"):
            compiled_beside(spec, let_go.wait, CompileLimits(seconds=600.0, cancelled=cancelled))
    finally:
        let_go.set()
    assert compiled_beside(spec, lambda: 7, CompileLimits()) == 7


def test_xgrammar_compiles_under_the_limits():
    pytest.importorskip("xgrammar")
    spec, cancelled = GrammarSpec.of({"json_schema": {"type": "object", "properties": {"p0": {"type": "string"}}}}), Event()
    with pytest.raises(ConstraintError, match="takes longer to compile than 1e-09 s"):
        Alone("xgrammar").compile(spec, bytes_only(), CompileLimits(seconds=1e-9))
    cancelled.set()
    with pytest.raises(ConstraintError, match="was cancelled"):
        Alone("xgrammar").compile(spec, bytes_only(), CompileLimits(seconds=600.0, cancelled=cancelled))
    assert Alone("xgrammar").compile(spec, bytes_only(), CompileLimits()).matcher().validate([*b'{"p0"']) == 5


@pytest.mark.parametrize("kind", ["json_schema", "choice"])
def test_outlines_refuses_at_once_what_would_take_it_long(kind):
    """Two megabytes also have to reach the process that compiles on trial, or the error is that of the time limit."""
    pytest.importorskip("outlines_core")
    words = [f"word number {number}" for number in range(100_000)]
    spec = GrammarSpec(kind, json.dumps(words if kind == "choice" else {"enum": words}))
    with pytest.raises(ConstraintError, match=r"becomes an expression of \d+ characters where at most 200000 .*use auto or llguidance"):
        Alone("outlines").compile(spec, bytes_only(), CompileLimits(seconds=300.0))
    few = GrammarSpec(kind, json.dumps(words[:1000] if kind == "choice" else {"enum": words[:1000]}))
    assert Alone("outlines").compile(few, bytes_only(), CompileLimits()).matcher() is not None


def test_a_large_grammar_reaches_the_process_that_compiles_on_trial():
    """All of it, several times what a pipe holds: what is wrong stands at its end."""
    text = "start: " + " | ".join(f'"{number:08}"' for number in range(30_000))
    tried("llguidance", GrammarSpec("lark", text), CompileLimits(seconds=300.0))
    with pytest.raises(ConstraintError, match=r'llguidance refuses the grammar: .*unknown name: "nowhere"'):
        tried("llguidance", GrammarSpec("lark", f"{text} | nowhere"), CompileLimits(seconds=300.0))


def test_what_an_engine_says_when_it_breaks_is_one_line_without_its_frames():
    assert in_one_line("panic: assertion failed:\n  symbols\n<backtrace>\n   0: <unknown>\n") == "panic: assertion failed: symbols"
    assert in_one_line(ValueError("a\nb" * 300), 20) == ("a b" * 300)[:20]


CIRCLE = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"json_schema": {"type": "strng"}}, '#/type should be one of the types array, boolean'),
        ({"json_schema": {"anyOf": [{"type": "integer"}, {"type": ["strng", "null"]}]}}, 'string, or a list of them and is ["strng", "null"]'),
        ({"json_schema": {"type": "integer", "multipleOf": 0}}, "#/multipleOf should be a number above 0 and is 0"),
        ({"json_schema": {"multipleOf": "2"}}, '#/multipleOf should be a number above 0 and is "2"'),
        ({"json_schema": {"type": "string", "pattern": "(["}}, "the pattern '([' cannot be read"),
        ({"json_schema": {"patternProperties": {"([": {}}}}, "the pattern '([' cannot be read"),
        ({"json_schema": {"$ref": "#"}}, "the schema's references lead back to themselves"),
        ({"json_schema": CIRCLE}, "the schema's references lead back to themselves"),
        ({"json_schema": {"type": "string", "$ref": "#"}}, "the schema's references lead back to themselves"),
        ({"json_schema": {"allOf": [{"type": "object"}, {"$ref": "#"}]}}, "the schema's references lead back to themselves"),
        ({"json_schema": '{"minimum": NaN}'}, "the json_schema is no JSON (ValueError: NaN is no JSON number)"),
        ({"json_schema": {"maximum": float("inf")}}, "the json_schema is no JSON (ValueError: Infinity is no JSON number)"),
        ({"json_schema": {"enum": {1}}}, "a grammar's json_schema is plain data or JSON text, got {'enum': {1}}"),
        ({"json_schema": type("Model", (), {"model_json_schema": None})}, "of a pydantic model its model_json_schema(), got"),
        ({"regex": r"[^\s\S]"}, "no text satisfies the grammar, whose rules never end or contradict each other (llguidance: NoExtensionBias)"),
        ({"lark": 'start: start "a"'}, "no text satisfies the grammar"),
        ({"lark": "start: A B\nA: /a+/\nB: /a/\n"}, "a text of the grammar begins in one way only, with 10000 bytes and more: a terminal takes what should"),
        ({"ebnf": "root ::= x\n"}, "llguidance refuses the ebnf: Rule 'x' not found"),
        ({"ebnf": ""}, "llguidance refuses the ebnf: No 'root' rule found"),
        ({"ebnf": 'start ::= "a"\n'}, "llguidance refuses the ebnf: No 'root' rule found"),
        ({"ebnf": "root ::= " + "(" * 3000 + '"a"' + ")" * 3000}, "llguidance refuses the ebnf: it is nested too deeply"),
        ({"choice": ["\ud800", "a\udfff"]}, "no text satisfies the choice: each has half of a pair of surrogates"),
        ({"regex": "a\ud800"}, "the regex has half of a pair of surrogates"),
        ({"lark": 'start: "\ud800"'}, "the lark has half of a pair of surrogates"),
        ({"ebnf": 'root ::= "\ud800"'}, "the ebnf has half of a pair of surrogates"),
    ],
    ids=lambda given: str(given)[:100].encode("ascii", "replace").decode(),
)
def test_what_can_never_be_written_or_checked_is_refused_before_anything_is(given, reason):
    """Each was found out while an answer was written, or at its end, which was then lost."""
    with pytest.raises(AccelplugError, match=re.escape(reason)) as caught:
        Auto().compile(GrammarSpec.of(given), bytes_only(), CompileLimits())
    assert "\n" not in str(caught.value)


def test_references_that_go_round_somewhere_inside_fail_the_final_check_and_nothing_else():
    document = Document({"properties": {"a": {"$ref": "#/properties/a"}}}, asserted=True)
    assert problem(document, '{"a": 1}') == "the schema's references lead back to themselves, so that nothing can be checked"
    assert problem(document, '{"b": 1}') is None


def test_references_that_go_round_are_noticed_wherever_the_stack_ends():
    """Inside jsonschema's maps, which are Rust, that is a panic, and no `except Exception` would hold it."""
    document = Document({"oneOf": [{"type": ["string"]}, {"$ref": "#"}]}, asserted=True)

    def below(frames):
        return below(frames - 1) if frames else fault(document, "a")

    for frames in range(24):  # a round takes fewer
        assert below(frames) == "the schema's references lead back to themselves, so that nothing can be checked"


def test_one_of_nested_nine_deep_compiles():
    """The same subschemas stand in it hundreds of times."""
    schema = {"type": "integer"}
    for depth in range(9):
        schema = {"oneOf": [schema, {"type": "object", "properties": {f"a{depth}": schema}}]}
    grammar = compiled(schema)
    for value in (3, {"a0": 3}, {"a0": "x"}, {"a8": "x"}):
        text = json.dumps(value)
        assert legal_by_mask(grammar.matcher(), text, bytes_only()) == (grammar.check(text) is None), text
    assert legal_by_mask(grammar.matcher(), "3", bytes_only())
    assert not legal_by_mask(grammar.matcher(), '"x"', bytes_only())


def test_compiling_stops_soon_where_it_is_cancelled_in_a_process_of_its_own():
    """The expression takes half a minute otherwise, and the limit is far away."""
    cancelled = Event()
    spec = GrammarSpec("regex", "(a|b|ab){1,5000}(c|d){1,5000}x{1,3000}")
    timer = Timer(0.3, cancelled.set)
    timer.start()
    with pytest.raises(ConstraintError, match="was cancelled"):
        Alone("outlines").compile(spec, bytes_only(), CompileLimits(seconds=600.0, cancelled=cancelled))
    timer.join()


def test_outlines_keeps_to_the_limit_with_schemas_that_look_harmless():
    """Without a limit this takes most of a minute, on whatever vocabulary."""
    pytest.importorskip("outlines_core")
    with pytest.raises(ConstraintError, match="takes longer to compile than 2 s"):
        Alone("outlines").compile(GrammarSpec("json_schema", '{"type": "string", "maxLength": 200}'), bytes_only(), CompileLimits(seconds=2.0))


def test_compiling_stops_soon_where_it_is_cancelled_in_this_process():
    cancelled = Event()
    cancelled.set()
    with pytest.raises(ConstraintError, match="was cancelled"):
        Auto().compile(
            GrammarSpec("json_schema", HOSTILE["many overlaps"]), bytes_only(), CompileLimits(seconds=600.0, cancelled=cancelled)
        )
    assert compiled({"type": "integer"}, CompileLimits(cancelled=Event())).matcher().validate([49, 256]) == 2


def test_a_name_in_another_spelling_is_checked_or_in_strict_mode_cannot_be_written():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    text = r'{"\u0061": "x"}'
    grammar, strict = compiled(schema), compiled(schema, strict=True)
    assert legal_by_mask(grammar.matcher(), text, bytes_only())  # or this test has nothing to show
    assert grammar.statement.checked == ("#/properties",)
    assert "breaks type" in grammar.check(text)
    assert not legal_by_mask(strict.matcher(), text, bytes_only())
    assert strict.statement.checked == ()
    assert compiled({**schema, "additionalProperties": False}).statement.checked == ()


def test_a_step_too_long_to_be_counted_is_checked():
    grammar = compiled({"type": "integer", "multipleOf": 123456789})
    assert grammar.statement.checked == ("#/multipleOf",)
    assert grammar.check("246913578") is None
    assert grammar.check("246913579") is not None
