"""Binding a drafter's methods, and refusing every broken shape that it may return."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelplug import PluginError
from accelplug.hooks import ROOT, CommitView, Drafts, DraftView, NodeKind, Owner, Technique
from accelplug.hooks.binding import bind_drafter, check_drafts

VOCAB = 32
BUDGETS = np.array([3, 2])
WHO = Technique("drafter", "odd", Owner("odd", "strange", "2.0"), object(), object, "odd")


def ints(*values):
    return np.array(values, dtype=np.int64)


def view(budgets=BUDGETS):
    tokens = np.arange(20).reshape(2, 10)
    return DraftView(ints(5, 7), ints(1, 0), tokens, ints(3, 4), budgets)


def tree(**changes):
    """Two requests: a root with two children, and one node."""
    parts = {"offsets": ints(0, 3, 4), "tokens": ints(1, 2, 3, 4), "parents": ints(ROOT, 0, 0, ROOT)}
    return Drafts(**{**parts, **changes})


def sampled(**changes):
    rows = np.full((2, VOCAB), 1 / VOCAB)
    parts = {"kinds": ints(0, 1, 1, 0), "row_ids": ints(-1, 0, 1, -1), "rows": rows}
    return tree(**{**parts, **changes})


@pytest.mark.parametrize("drafts", [tree(), sampled(), Drafts.chains([(1, 2, 3), (4,)]), Drafts.chains([(), ()])])
def test_whole_drafts_pass(drafts):
    check_drafts(WHO, drafts, BUDGETS, VOCAB)


BROKEN = {
    "a list": ([[1], [2]], "returned a list; return accelplug.hooks.Drafts"),
    "nothing": (None, "returned a NoneType"),
    "an offset too few": (tree(offsets=ints(0, 4)), r"offsets \[0, 4\] for 2 requests and 4 nodes"),
    "offsets past the tokens": (tree(offsets=ints(0, 3, 5)), r"offsets \[0, 3, 5\] for 2 requests and 4 nodes"),
    "offsets that go back": (Drafts(ints(0, -1, 1), ints(1)), r"drafted \[-1, 2\] nodes"),
    "more than the budget": (Drafts.chains([(1, 2, 3, 4), (5,)]), r"drafted \[4, 1\] nodes where \[3, 2\] were allowed"),
    "a negative token": (Drafts.chains([(1, -1), ()]), "token ids from -1 to 1, outside 0 .. 31"),
    "a token past the vocabulary": (Drafts.chains([(1, VOCAB), ()]), "token ids from 1 to 32, outside 0 .. 31"),
    "a node that is its own parent": (tree(parents=ints(ROOT, 1, 0, ROOT)), r"returned parents \[-1, 1, 0\]"),
    "a parent after its child": (tree(parents=ints(ROOT, 2, 0, ROOT)), r"returned parents \[-1, 2, 0\]"),
    "a parent before the root": (tree(parents=ints(ROOT, -2, 0, ROOT)), r"returned parents \[-1, -2, 0\]"),
    "a parent in another request": (tree(parents=ints(ROOT, 0, 0, 0)), r"returned parents \[0\]"),
    "sampled nodes without rows": (sampled(rows=None), "sampled nodes without their probability rows"),
    "sampled nodes without row ids": (sampled(row_ids=None), "sampled nodes without their probability rows"),
    "a sampled node without its row": (sampled(row_ids=ints(-1, 0, -1, -1)), "sampled nodes without their probability rows"),
    "a row that is not there": (sampled(row_ids=ints(-1, 0, 2, -1)), "points at row 2 of 2 probability rows"),
}


@pytest.mark.parametrize(("drafts", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_drafts_are_refused_by_name(drafts, reason):
    with pytest.raises(PluginError, match=rf"^drafter 'odd' \(strange 2\.0\) .*{reason}"):
        check_drafts(WHO, drafts, BUDGETS, VOCAB)


chains = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=5), max_size=5)


@given(chains)
def test_chains_keep_every_guess_in_its_request(guesses):
    drafts = Drafts.chains(guesses)
    check_drafts(WHO, drafts, np.array([len(guess) for guess in guesses], dtype=np.int64), VOCAB)
    assert [drafts.tokens[a:b].tolist() for a, b in zip(drafts.offsets[:-1], drafts.offsets[1:], strict=True)] == guesses


def test_a_history_is_the_requests_own_row_and_no_copy():
    shown = view()
    assert shown.history(0).tolist() == [10, 11, 12]
    assert shown.history(1).tolist() == [0, 1, 2, 3]
    assert np.shares_memory(shown.history(0), shown.tokens)
    commit = CommitView(shown.slots, shown.rows, shown.tokens, shown.lengths, fresh=ints(1, 1), accepted=ints(0, 0))
    assert commit.history(1).tolist() == [0, 1, 2, 3]


def test_propose_one_is_asked_per_request_within_its_budget(drafter):
    class OneByOne:
        def __init__(self):
            self.asked = []

        def propose_one(self, tokens, budget):
            self.asked.append((tokens.tolist(), budget))
            return tokens[-1:]

    bound = bind_drafter(drafter(instance := OneByOne()))
    drafts = bound.propose(view())
    assert instance.asked == [([10, 11, 12], 3), ([0, 1, 2, 3], 2)]
    assert (drafts.offsets.tolist(), drafts.tokens.tolist()) == ([0, 1, 2], [12, 3])
    assert bound.propose(view(ints(0, 2))).offsets.tolist() == [0, 0, 1]
    assert len(instance.asked) == 3, "a request without a budget is not asked"


def test_propose_wins_over_propose_one(drafter):
    class Both:
        def propose(self, view):
            return Drafts.chains([(1,), (2,)])

        def propose_one(self, tokens, budget):
            raise AssertionError("propose is there")

    assert bind_drafter(drafter(Both())).propose(view()).tokens.tolist() == [1, 2]


def test_absent_optional_methods_do_nothing_and_present_ones_are_bound(drafter):
    class Plain:
        def propose_one(self, tokens, budget):
            return ()

    class Listening(Plain):
        heard: list[str]

        def start(self, slots):
            self.heard = [f"start {slots.tolist()}"]

    bound = bind_drafter(drafter(Plain()))
    bound.start(ints(0))
    bound.observe(None)
    bound.finish(ints(0))
    assert bound.propose_on_device is None
    listening = Listening()
    bind_drafter(drafter(listening)).start(ints(3))
    assert listening.heard == ["start [3]"]


def test_a_drafter_without_a_way_to_propose_is_refused(drafter):
    with pytest.raises(PluginError, match=r"drafter 'odd' \(strange 2\.0\) has no propose\(view\), propose_one"):
        bind_drafter(drafter(object()))


def test_a_device_drafter_is_refused_by_a_host_that_asks_in_host_memory(drafter):
    class OnDevice:
        def propose_on_device(self, view):
            return view

    bound = bind_drafter(drafter(instance := OnDevice()))
    assert bound.propose_on_device == instance.propose_on_device
    with pytest.raises(PluginError, match="drafts on the device only, and this host asks in host memory"):
        bound.propose(view())


def test_the_kinds_keep_their_numbers():
    assert {kind.name: int(kind) for kind in NodeKind} == {"DELTA": 0, "SAMPLED": 1, "WITHOUT_REPLACEMENT": 2}
