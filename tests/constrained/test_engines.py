"""Three engines behind one protocol: ends, forced tokens, caches, and what each was seen to enforce; tests/conformance has what all must hold."""

from __future__ import annotations

import json

import pytest
import torch

from accelplug import ConstraintError, OptionError
from accelplug.constrained.auto import Alone, Auto
from accelplug.constrained.engines.known import enforces, label
from accelplug.constrained.engines.recorded import RECORDED
from accelplug.constrained.probes import FORMS, PROBES, bytes_only, seen
from accelplug.hooks import CompileLimits, GrammarSpec, Vocabulary, load_registry

NAMES = ("llguidance", "xgrammar", "outlines")
PACKAGES = {"llguidance": "llguidance", "xgrammar": "xgrammar", "outlines": "outlines_core"}
VOCABULARY = Vocabulary(
    (*(bytes([byte]) for byte in range(256)), b"", b'{"', b"aa", b"", b""), (256, 260), encode=lambda text: list(text.encode())
)
LIMITS = CompileLimits()


def engine(name):
    pytest.importorskip(PACKAGES.get(name, "llguidance"))
    return Auto() if name == "auto" else Alone(name)


def bits(matcher):
    row = torch.full(((len(VOCABULARY) + 31) // 32,), -1, dtype=torch.int32)
    matcher.fill(row)
    return {token for token in range(32 * len(row)) if row[token // 32].item() >> token % 32 & 1}


@pytest.mark.parametrize("name", [*NAMES, "auto"])
def test_an_end_is_the_end(name):
    matcher = engine(name).compile(GrammarSpec("choice", '["a", "aa"]'), VOCABULARY, LIMITS).matcher()
    assert matcher.accept([256]) == 0
    assert matcher.accept([97]) == 1
    assert {256, 260} <= bits(matcher)
    assert matcher.validate([97, 256, 97]) == 2
    assert matcher.accept([260, 97]) == 1
    assert matcher.is_terminated
    assert bits(matcher) == set()
    assert not matcher.forced()
    assert matcher.accept([256]) == matcher.accept([97]) == matcher.validate([256]) == 0
    matcher.rollback(1)
    assert not matcher.is_terminated
    assert matcher.accept([97, 256]) == 2
    matcher.rollback(3)
    assert matcher.accept([258, 256]) == 2


@pytest.mark.parametrize("name", ["llguidance", "xgrammar", "auto"])
def test_forced_tokens_are_legal_and_nothing_else_is(name):
    schema = {"type": "object", "properties": {"name": {"type": "integer"}}, "required": ["name"], "additionalProperties": False}
    matcher = engine(name).compile(GrammarSpec("json_schema", json.dumps(schema), whitespace="compact"), bytes_only(), LIMITS).matcher()
    forced = list(matcher.forced())
    assert bytes(forced) == b'{"name":'
    for token in forced:
        row = torch.zeros(9, dtype=torch.int32)
        matcher.fill(row)
        assert [place for place in range(257) if row[place // 32].item() >> place % 32 & 1] == [token]
        assert matcher.accept([token]) == 1
    assert not matcher.forced()


def test_of_what_xgrammar_forces_the_last_token_is_left_out_where_a_longer_one_may_come():
    matcher = engine("xgrammar").compile(GrammarSpec("regex", "baa?|caac"), VOCABULARY, LIMITS).matcher()
    assert not matcher.forced()
    for first, forced in ((b"b", []), (b"c", [*b"aac", 256])):  # behind the b comes 'a', or token 258, 'aa'
        assert matcher.accept([*first]) == 1
        before = bits(matcher)
        assert list(matcher.forced()) == forced
        assert matcher.validate(forced) == len(forced)
        assert bits(matcher) == before
        matcher.rollback(1)


@pytest.mark.parametrize(
    ("kind", "text", "texts"),
    [("choice", '["a", "abc", "abcde", "\u00e9", "\u00e9[x]"]', ("a", "abc", "abcde", "\u00e9[x]")), ("regex", "a|ab|abcd|x(yz)?", ("a", "ab", "abcd", "xyz"))],
)
def test_a_text_that_goes_on_where_another_ends_is_one_for_outlines_too(kind, text, texts):
    grammar = engine("outlines").compile(GrammarSpec(kind, text), VOCABULARY, LIMITS)
    for one in texts:
        assert grammar.matcher().validate([*one.encode(), 256]) == len(one.encode()) + 1, one
    with pytest.raises(ConstraintError, match="outlines-core refuses the regex"):
        engine("outlines").compile(GrammarSpec("regex", "a)|(b"), VOCABULARY, LIMITS)


@pytest.mark.parametrize("name", ["auto", "xgrammar"])
def test_what_is_forced_inside_a_character_is_no_fault(name):
    matcher = engine(name).compile(GrammarSpec("choice", '["\u65e5\u672c!", "\u672c"]'), VOCABULARY, LIMITS).matcher()
    written = list("\u65e5\u672c!".encode())
    for count, token in enumerate(written):
        forced = list(matcher.forced())
        assert forced == [*written, VOCABULARY.eos_token_ids[0]][count : count + len(forced)]
        assert matcher.accept([token]) == 1


def test_xgrammars_own_cache_does_not_grow_for_good(monkeypatch):
    pytest.importorskip("xgrammar")
    from accelplug.constrained.engines import on_xgrammar

    monkeypatch.setattr(on_xgrammar, "MOST_BYTES", 100_000)
    compiler = on_xgrammar._new_compiler(bytes_only())
    sizes = []
    for number in range(40):
        compiler.compile_regex(f"(a{number}|[b-y]{{3,{number + 4}}})+z")
        sizes.append(compiler.get_cache_size_bytes())
    assert max(sizes) < 120_000, "about the bound, where 600,000 bytes were compiled"
    assert min(sizes[5:]) > 0, "something is kept"


def test_what_was_compiled_is_kept():
    auto = engine("auto")
    spec = GrammarSpec("json_schema", '{"type": "integer"}')
    assert auto.compile(spec, VOCABULARY, LIMITS) is auto.compile(spec, VOCABULARY, LIMITS)
    assert auto.compile(spec, bytes_only(), LIMITS) is not auto.compile(spec, VOCABULARY, LIMITS)


@pytest.mark.parametrize("kind", ["regex", "choice", "lark", "ebnf"])
def test_other_kinds_are_routed(kind):
    text = {"regex": "ab+", "choice": '["ab", "c"]', "lark": 'start: "a" /b+/', "ebnf": 'root ::= "a" "b"+'}[kind]
    compiled = engine("auto").compile(GrammarSpec(kind, text), VOCABULARY, LIMITS)
    assert compiled.matcher().validate([97, 98, 256]) == 3
    assert compiled.matcher().validate([97, 256]) == 1
    assert compiled.statement.enforced == (kind,)
    assert compiled.check("ab") is None


@pytest.mark.parametrize("name", ["auto", "llguidance"])
def test_a_choice_may_have_the_empty_text_among_it(name):
    compiled = engine(name).compile(GrammarSpec("choice", '["", "ab"]'), VOCABULARY, LIMITS)
    assert [compiled.matcher().validate(tokens) for tokens in ([256], [97, 98, 256], [97, 256])] == [1, 3, 1]


@pytest.mark.parametrize("kind", ["regex", "choice", "lark", "ebnf", "structural_tag"])
def test_an_option_that_says_nothing_to_a_kind_is_refused(kind):
    text = '["a"]' if kind == "choice" else "{}"
    for name, value in {"whitespace": "compact", "order": "any", "format": "annotate"}.items():
        if (kind, name) == ("structural_tag", "format"):
            assert GrammarSpec(kind, text, format="annotate").format == "annotate"
            continue
        with pytest.raises(OptionError, match=f"the options {name} of a grammar are for the JSON of a schema and say nothing to a {kind}; leave them out"):
            GrammarSpec.of({kind: text, name: value})
    assert GrammarSpec(kind, text, strict=True).strict


@pytest.mark.parametrize("name", ["auto", "xgrammar", "llguidance"])
@pytest.mark.parametrize(
    ("ebnf", "why"),
    [
        ("root ::= root", "no text satisfies the|whose rules never end"),
        ('root ::= "a" | x\nx ::= "b"\nx ::= "c"', "the rule 'x' is defined twice|Rule .x. is defined multiple times"),
    ],
)
def test_an_ebnf_that_says_nothing_or_two_things_is_refused(name, ebnf, why):
    with pytest.raises(ConstraintError, match=why):
        engine(name).compile(GrammarSpec("ebnf", ebnf), VOCABULARY, LIMITS)


def test_what_an_engine_does_not_take_is_refused():
    with pytest.raises(ConstraintError, match="use llguidance"):
        engine("xgrammar").compile(GrammarSpec("lark", 'start: "a"'), VOCABULARY, LIMITS)
    with pytest.raises(ConstraintError, match="list of texts"):
        engine("llguidance").compile(GrammarSpec("choice", "[]"), VOCABULARY, LIMITS)
    with pytest.raises(ConstraintError, match="refuses the grammar"):
        engine("llguidance").compile(GrammarSpec("regex", "("), VOCABULARY, LIMITS)


def test_the_recorded_probes_are_what_the_probes_find():
    """All of llguidance's; of the slower engines a few."""
    for name, features in (
        ("llguidance", [*PROBES, *FORMS]),
        ("xgrammar", ["required", "enum", "uniqueItems", *FORMS]),
        ("outlines", ["enum", "required", "items that are counted", "keywords together"]),
    ):
        if label(name) not in RECORDED:
            continue
        from accelplug.constrained.engines.known import begin

        for feature in features:
            probes = FORMS.get(feature) or (PROBES[feature],)
            found = all(seen(probe, lambda spec, vocabulary, name=name: begin(name, spec, vocabulary)) for probe in probes)
            assert found == (feature not in RECORDED[label(name)]) == enforces(name, feature), (name, feature)


def test_an_engine_alone_checks_what_it_was_not_seen_to_enforce():
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
    assert engine("llguidance").compile(GrammarSpec("json_schema", json.dumps(schema)), VOCABULARY, LIMITS).statement.checked == ()
    wanting = GrammarSpec("json_schema", '{"type": "object", "required": ["a"]}')
    compiled = engine("xgrammar").compile(wanting, VOCABULARY, LIMITS)
    assert compiled.statement.checked == ("#/required",)
    assert "required" in compiled.check("{}")
    assert compiled.check('{"a": 1}') is None


def test_they_are_registered():
    registry = load_registry(entry_points=False)
    assert {entry.name for entry in registry if entry.kind == "grammar"} == {"auto", *NAMES}
    assert isinstance(registry.find("grammar", "auto")[0].resolve()(), Auto)


def test_auto_asks_the_next_engine_where_one_refuses():
    pytest.importorskip("llguidance")
    pytest.importorskip("xgrammar")
    dot = engine("auto").compile(GrammarSpec("ebnf", "root ::= ."), VOCABULARY, LIMITS)  # llama.cpp's, which xgrammar does not read
    assert dot.statement.engine.startswith("llguidance")
    assert dot.matcher().validate([97, 256]) == 2
    with pytest.raises(ConstraintError, match=r"^xgrammar refuses the ebnf: .*; llguidance refuses the ebnf: [^\n]*$"):
        engine("auto").compile(GrammarSpec("ebnf", 'start: "a"'), VOCABULARY, LIMITS)


@pytest.mark.parametrize("text", ["a^b", "a$b", r"\Aab\Z", "[a&&b]"])
def test_an_expression_that_engines_read_differently_stays_refused(text):
    pytest.importorskip("xgrammar")
    with pytest.raises(ConstraintError) as refused:
        engine("auto").compile(GrammarSpec("regex", text), VOCABULARY, LIMITS)
    assert "llguidance" in str(refused.value)
    assert "xgrammar" not in str(refused.value)


@pytest.mark.parametrize("name", ["auto", "llguidance", "xgrammar"])
def test_a_choice_is_of_the_texts_that_can_be_written(name):
    grammar = engine(name).compile(GrammarSpec("choice", '["\\ud800", "a"]'), VOCABULARY, LIMITS)
    assert grammar.matcher().validate([ord("a"), 256]) == 2
