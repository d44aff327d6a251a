"""The incremental index, the device version and a search by brute force agree."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelplug.hooks import CommitView, DeviceView, DraftView
from accelplug.spec.prompt_lookup import PromptLookup

SLOT = np.zeros(1, dtype=np.int64)


def brute_force(tokens: list[int], shortest: int, longest: int, count: int) -> list[int]:
    for size in range(min(longest, len(tokens) - 1), shortest - 1, -1):
        ends = [end for end in range(size, len(tokens)) if tokens[end - size : end] == tokens[-size:]]
        if ends:
            follows = tokens[ends[-1] :]
            return [follows[i % len(follows)] for i in range(count)]
    return []


def feed(drafter: PromptLookup, tokens: list[int], steps: list[int], budget: int, slot: int = 0) -> list[int]:
    """Commit `tokens` in pieces that end at `steps`, then ask once."""
    slots, buffer = np.array([slot]), np.array([[*tokens, *[7] * 30]])
    length = np.zeros(1, dtype=np.int64)
    for end in steps:
        fresh = np.array([end]) - length
        length[0] = end
        drafter.observe(CommitView(slots, SLOT, buffer, length, fresh, SLOT))
    return drafter.propose(DraftView(slots, SLOT, buffer, length, np.array([budget]))).tokens.tolist()


@settings(max_examples=400, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=90),
    shortest=st.integers(1, 3),
    more=st.integers(0, 4),
    count=st.integers(1, 9),
    cuts=st.lists(st.integers(1, 89), max_size=12),
)
def test_index_device_and_brute_force_agree(tokens, shortest, more, count, cuts):
    drafter = PromptLookup(num_tokens=count, min_ngram=shortest, max_ngram=shortest + more)
    drafter.start(SLOT)
    steps = sorted({min(cut, len(tokens)) for cut in cuts} | {len(tokens)})
    expected = brute_force(tokens, shortest, shortest + more, count)
    assert feed(drafter, tokens, steps, count) == expected
    buffer = torch.tensor([[1] * 120, [*tokens, *[2] * (120 - len(tokens))]], dtype=torch.int32)
    view = DeviceView(torch.tensor([1]), buffer, torch.tensor([len(tokens)], dtype=torch.int32), count)
    drafts = drafter.propose_on_device(view)
    assert drafts.tokens.shape == (1, count)
    assert drafts.counts.tolist() == [len(expected)]
    assert drafts.tokens[0, : len(expected)].tolist() == expected
    assert ((drafts.tokens >= 0) & (drafts.tokens <= 3)).all(), "padding must be real token ids"


@pytest.mark.parametrize("steps", [[200], [40, 200], [20, 60, 61, 120, 200], list(range(1, 201))], ids=["at once", "twice", "mixed", "one by one"])
def test_long_pieces_are_indexed_like_short_ones(steps):
    """Each beginning of a text without other repeats, behind it again: what follows is found at its own place."""
    text = np.random.default_rng(0).permutation(1000)[:150].tolist()
    for at in range(4, 149, 9):
        drafter = PromptLookup(num_tokens=6)
        drafter.start(SLOT)
        tokens = [*text, *range(2000, 2046), *text[at - 4 : at]]
        assert feed(drafter, tokens, steps, 6) == [*text, *range(2000, 2006)][at : at + 6]


def test_slots_are_recycled_and_freed():
    drafter = PromptLookup(min_ngram=2)
    repeating = [1, 2, 3, 1, 2]
    drafter.start(SLOT)
    assert feed(drafter, repeating, [5], 2) == [3, 1]
    drafter.start(SLOT)
    assert feed(drafter, [1, 2], [2], 2) == [], "a new request must not see the old one's tokens"
    drafter.finish(SLOT)
    assert drafter._indexes == {}


def test_budget_zero_and_per_request_count():
    drafter = PromptLookup(num_tokens=8)
    drafter.start(SLOT)
    tokens = [1, 2, 3, 4, 5, 6, 7, 1, 2]
    assert feed(drafter, tokens, [9], 0) == []
    buffer, length = np.array([tokens]), np.array([9])
    view = DraftView(SLOT, SLOT, buffer, length, np.array([8]), {"num_tokens": np.array([3])})
    assert drafter.propose(view).tokens.tolist() == [3, 4, 5]


def test_short_requests_leave_no_memory_behind():
    drafter = PromptLookup(min_ngram=2, max_ngram=4)

    def serve(requests: int) -> int:
        for _ in range(requests):
            drafter.start(SLOT)
            feed(drafter, list(range(50)), list(range(10, 51)), 4)
            drafter.finish(SLOT)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    first, later = serve(50), serve(400)
    tracemalloc.stop()
    assert later - first < 10_000
