"""Several grammars on one text: masks, forced tokens and checks are those of all of them, and where nothing is left both are named."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accelplug import ConstraintError, OptionError
from accelplug.hooks import CompileLimits, GrammarSpec, Vocabulary

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")

from accelplug.constrained.auto import Alone, Auto
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.walking import legal_by_mask, walk

ENGINE, VOCABULARY, EOS = Auto(), bytes_only(), 256


def compiled(*parts, engine=ENGINE):
    return engine.compile(GrammarSpec.of({"all_of": list(parts)}), VOCABULARY, CompileLimits())


def mask_of(matcher):
    row = torch.zeros((len(VOCABULARY) + 31) // 32, dtype=torch.int32)
    matcher.fill(row)
    return {token for token in range(len(VOCABULARY)) if row[token // 32] >> token % 32 & 1}


NAMES = st.lists(st.text("ab", max_size=3), min_size=1, max_size=6, unique=True)
SEEN = {"empty": 0, "forced by all of them alone": 0, "dead end inside": 0}


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(NAMES, NAMES, st.text("ab", max_size=3))
def test_a_position_is_in_all_grammars_at_once(one, other, walked):
    both = set(one) & set(other)
    try:
        matcher = compiled({"choice": one}, {"choice": other}).matcher()
    except ConstraintError as exc:
        if both or str(exc).count("the choice") != 2:
            raise
        SEEN["empty"] += 1
        return
    assert both
    for end in range(len(walked) + 1):
        written = walked[:end]
        nexts = [{(text + "$")[end] for text in texts if text.startswith(written)} for texts in (one, other)]
        legal = {EOS if sign == "$" else ord(sign) for sign in nexts[0] & nexts[1]}
        assert mask_of(matcher) == legal
        forced = list(matcher.forced())
        assert matcher.validate(forced) == len(forced)
        if len(legal) == 1:
            assert set(forced[:1]) == legal
            SEEN["forced by all of them alone"] += min(map(len, nexts)) > 1
        SEEN["dead end inside"] += not legal
        if end == len(walked) or matcher.accept([ord(walked[end])]) == 0:
            assert end == len(walked) or ord(walked[end]) not in legal
            break
    if end:
        matcher.rollback(end)
    assert mask_of(matcher) == mask_of(compiled({"choice": one}, {"choice": other}).matcher())


def test_schema_and_expression_hold_together():
    grammar = compiled({"json_schema": {"type": "integer", "minimum": 50}}, {"regex": "[0-9]{2}"})
    assert [number for number in range(200) if legal_by_mask(grammar.matcher(), str(number), VOCABULARY)] == list(range(50, 100))
    assert set(grammar.statement.enforced) == {"0: #/type", "0: #/minimum", "1: regex"}


def test_what_one_leaves_to_the_check_is_checked():
    grammar = compiled({"json_schema": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}}, {"regex": r"\[1, [0-9]\]"})
    assert legal_by_mask(grammar.matcher(), "[1, 1]", VOCABULARY)
    assert "uniqueItems" in grammar.check("[1, 1]")
    assert grammar.check("[1, 2]") is None
    assert grammar.statement.checked == ("0: #/uniqueItems",)


def test_a_position_goes_back_and_ends_in_all_of_them():
    matcher = compiled({"choice": ["ab", "ac", "b"]}, {"regex": "a[cd]|b"}).matcher()
    assert matcher.accept([*b"ab"]) == 1  # b is legal in the first alone
    assert mask_of(matcher) == {ord("c")}
    assert list(matcher.forced()) == [ord("c")]
    assert matcher.accept([ord("c"), EOS, 97]) == 2
    assert matcher.is_terminated
    assert list(matcher.forced()) == []
    matcher.rollback(3)
    assert mask_of(matcher) == {ord("a"), ord("b")}


@pytest.mark.parametrize("engine", [ENGINE, Alone("xgrammar")])
def test_an_empty_intersection_names_both(engine):
    with pytest.raises(ConstraintError, match=r"no text satisfies both the json_schema .*object.* and the regex '\[0-9\]\+'"):
        compiled({"json_schema": {"type": "object"}}, {"regex": "[0-9]+"}, engine=engine)
    with pytest.raises(ConstraintError, match=r"both the choice .*abd.* and the regex 'ab\[ce\]'"):  # two tokens are legal, then none
        compiled({"choice": ["abd", "b"]}, {"regex": "ab[ce]"}, engine=engine)


WORDS = ("hello", "hel", "lo", "ello", " world", "he", " wor")


def cut(text):
    """Take the longest word each time."""
    tokens, at = [], 0
    while at < len(text):
        word = next((number for number, word in enumerate(WORDS) if text.startswith(word, at)), None)
        tokens.append(ord(text[at]) if word is None else 257 + word)
        at += 1 if word is None else len(WORDS[word])
    return tokens


@pytest.mark.parametrize("engine", [ENGINE, Alone("llguidance"), Alone("xgrammar")], ids=["auto", "llguidance", "xgrammar"])
@pytest.mark.parametrize(
    "parts",
    [
        ({"choice": ["hello world"]}, {"choice": ["hello world", "help"]}),  # the first forces "hello", longer than a byte
        ({"choice": ["hello world"]}, {"choice": ["hel", "hello world"]}),  # they force the same text in tokens of different lengths
        ({"choice": ["hel", "hello world", "hellp"]}, {"choice": ["hello world"]}, {"choice": ["hello wor", "hello world"]}),
        ({"json_schema": {"const": "hello world"}}, {"choice": ['"hello world"', '"hello worm"']}),
    ],
)
def test_what_is_forced_in_tokens_of_several_bytes_is_no_dead_end(parts, engine):
    words = Vocabulary((*VOCABULARY.tokens, *(word.encode() for word in WORDS)), (EOS,), encode=cut)
    grammar = engine.compile(GrammarSpec.of({"all_of": list(parts)}), words, CompileLimits())
    found = walk(grammar, words, random.Random(0))
    assert found.came == "ended"
    assert found.text.strip('"') == "hello world"
    matcher, row = grammar.matcher(), torch.zeros((len(words) + 31) // 32, dtype=torch.int32)
    matcher.fill(row)
    for forced in matcher.forced():
        assert row[forced // 32] >> forced % 32 & 1
        assert matcher.accept([forced]) == 1
        matcher.fill(row)


def test_it_is_written_as_a_list_of_grammars():
    spec = GrammarSpec.of({"all_of": [{"choice": ["a"]}, GrammarSpec("regex", "a"), {"json_schema": {}, "whitespace": "compact"}]})
    assert [part.kind for part in spec.parts()] == ["choice", "regex", "json_schema"]
    assert spec.parts()[2].whitespace == "compact"
    assert spec == GrammarSpec.of({"all_of": spec.text})
    for wrong in ({"all_of": []}, {"all_of": "{}"}, {"all_of": [{}]}, {"all_of": [{"regex": "a"}], "strict": True}):
        with pytest.raises(OptionError):
            GrammarSpec.of(wrong)


def test_everything_has_occurred():
    """Runs behind the property above: without these events it would have proved nothing."""
    assert all(SEEN.values()), SEEN
