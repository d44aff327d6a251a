"""Drafters that go on behind tokens that are not committed, as where a grammar forces some: what follows them, and nothing of them is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelplug.hooks import BuildContext, CommitView, DraftView, load_registry
from accelplug.hooks.binding import bind_drafter

SLOTS = np.zeros(1, dtype=np.int64)
NAMES = [
    "prompt_lookup",
    "prompt_lookup(min_ngram=2, max_ngram=2)",
    "suffix",
    "suffix(shape='tree')",
    "suffix(scope='process')",
    "input_copy",
    "fusion(sources=('input_copy', 'suffix'))",
]
TEXTS = st.lists(st.integers(1, 4), min_size=4, max_size=40)


def made(name):
    context = BuildContext("transformers", 100, (), None, "cpu", 8, 64, None, list, list, list)  # type: ignore[arg-type]
    drafter = bind_drafter(load_registry(entry_points=False).build("drafter", name, context))
    drafter.start(SLOTS)
    return drafter


def shown(drafter, tokens, end):
    text = np.array([tokens], dtype=np.int64)
    drafter.observe(CommitView(SLOTS, SLOTS, text, np.array([end]), np.array([1]), np.array([0])))


def asked(drafter, tokens, ahead=0):
    text = np.array([[*tokens, 0]], dtype=np.int64)
    drafts = drafter.ask(DraftView(SLOTS, SLOTS, text, np.array([len(tokens)]), np.array([12]), ahead=np.array([ahead])), 100)
    return drafts.tokens.tolist(), None if drafts.parents is None else drafts.parents.tolist()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(TEXTS, st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 4))
def test_nothing_of_them_is_kept(name, tokens, ahead, following):
    """Tokens ahead may never be committed: whoever was asked about them drafts afterwards like one who was not."""
    asked_ahead, other = made(name), made(name)
    for drafter in (asked_ahead, other):
        shown(drafter, tokens, len(tokens))
        asked(drafter, tokens)
    asked(asked_ahead, [*tokens, *ahead], len(ahead))
    asked(asked_ahead, tokens)
    asked(other, tokens)
    for drafter in (asked_ahead, other):
        shown(drafter, [*tokens, following], len(tokens) + 1)
    assert asked(asked_ahead, [*tokens, following]) == asked(other, [*tokens, following])


@pytest.mark.parametrize("name", NAMES)
def test_what_follows_them_is_drafted(name):
    drafter = made(name)
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2]
    shown(drafter, tokens, 11)
    shown(drafter, tokens, len(tokens))
    assert drafter.traits.continues
    assert asked(drafter, [*tokens, 6, 7], 2)[0][:3] == [8, 9, 10]
    assert asked(drafter, tokens)[0][:3] == [3, 4, 5]


@settings(deadline=None)
@given(TEXTS, st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_input_copy_goes_on_as_if_they_were_committed(tokens, ahead):
    drafter, other = made("input_copy"), made("input_copy")
    shown(drafter, tokens, len(tokens))
    shown(other, tokens, len(tokens))
    shown(other, [*tokens, *ahead], len(tokens) + len(ahead))
    assert asked(drafter, [*tokens, *ahead], len(ahead)) == asked(other, [*tokens, *ahead])


def test_a_guess_behind_forced_tokens_is_not_held_against_suffix():
    drafter, tokens = made("suffix"), [1, 2, 3, 4, 5, 6] * 2
    shown(drafter, tokens, len(tokens))
    for forced in (1, 2, 3):
        assert asked(drafter, [*tokens, forced], 1)[0]
        tokens.append(forced)  # and not what was guessed behind it
        shown(drafter, tokens, len(tokens))
    assert drafter.technique.instance._records[0].rates == {}
