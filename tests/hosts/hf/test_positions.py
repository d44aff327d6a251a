"""Matchers that are set to any text: always where a fresh one would be, and few of them."""

from __future__ import annotations

import itertools
import random

import torch
from grammars import Listing, Notes
from hypothesis import given, settings
from hypothesis import strategies as st

from accelplug.hooks import CompileLimits, GrammarSpec
from accelplug.hosts.hf.positions import _MOST, Positions, _shared
from accelplug.hosts.vocabulary import vocabulary_of
from tests.hosts.hf.conftest import VOCAB

EOS = 1
CHOICES = ["red", "green", "greenish", "grey", "blue!", "a"]


def compiled(tokenizer, choices, engine):
    vocabulary = vocabulary_of(tokenizer, VOCAB, [EOS])
    return engine.compile(GrammarSpec.of({"choice": choices}), vocabulary, CompileLimits())


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 1), max_size=80), st.lists(st.integers(0, 1), max_size=40), st.integers(0, 80))
def test_what_two_texts_share_is_found_as_by_looking_at_each_token(one, more, cut):
    other = one[:cut] + more
    expected = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert _shared(one, other) == _shared(other, one) == expected


def test_a_matcher_stands_where_a_fresh_one_would_whatever_was_asked_before(tokenizer):
    """Texts that grow, part from each other, are taken back and leave the grammar, in any order."""
    words = ["abcdefghijklmnop" + last for last in ("", "qrst", "qrsu", "xyz")] + ["abcdefghijkl" * 2, "zz"]
    grammar, rng = compiled(tokenizer, words, Listing()), random.Random(0)
    positions, strayed, going_on = Positions(grammar), 0, 0
    texts = [[*tokenizer.encode(word), EOS] for word in words]
    texts += [[*text[:5], 90, *text[5:]] for text in texts]
    ends = [0] * len(texts)
    for _ in range(400):
        i = rng.randrange(len(texts))
        ends[i] = min(len(texts[i]), ends[i] + rng.choice([1, 1, 1, 2, 12])) if rng.random() < 0.9 else rng.randrange(len(texts[i]))
        text = texts[i][: ends[i]]
        fresh = grammar.matcher()
        legal = fresh.accept(list(text))
        position = positions.at(list(text))
        assert (position.tokens, position.strayed) == (text[:legal], legal < len(text))
        rows = torch.zeros(2, 3, dtype=torch.int32)
        position.matcher.fill(rows[0])
        fresh.fill(rows[1])
        assert torch.equal(*rows)
        strayed += legal < len(text)
        going_on += len(text) > 8
    assert strayed > 20
    assert going_on > 100
    assert 1 < len(positions.kept) <= _MOST


def test_there_are_never_more_matchers_than_the_bound(tokenizer):
    letters = tokenizer.encode("abcdefghij")
    words = [[a, b, *letters] for a in range(10, 20) for b in range(10, 20)]
    positions = Positions(compiled(tokenizer, [tokenizer.decode(word) for word in words], notes := Notes(Listing())))
    for word in words:
        assert positions.at(word).tokens == word
    assert notes.matchers == len(positions.kept) == _MOST


def test_matchers_are_few_and_read_little_twice(tokenizer):
    """Rows that go their own ways, beams that change places, calls that begin anew."""
    notes = Notes(Listing())
    positions = Positions(compiled(tokenizer, CHOICES, notes))
    first, second = [tokenizer.encode(text) for text in ("greenish", "grey")]
    for length in range(9):
        for text in (first, second[:length], first, second[:length]):
            assert positions.at(list(text[:length])).tokens == list(text[:length])
    assert notes.matchers == 1
    longs = [[tokenizer.encode("g")[0]] * 20, [tokenizer.encode("a")[0]] * 20]
    repeated = compiled(tokenizer, ["g" * 20, "a" * 20], notes)
    notes.stepped.clear()
    notes.matchers = 0
    positions = Positions(repeated)
    for length, text in itertools.product(range(10, 20), longs):
        positions.at(text[:length])
    assert notes.matchers == 2
    assert len(notes.stepped) < 60
