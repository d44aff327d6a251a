"""Binding a drafter's methods, and refusing every broken shape that it may return."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelplug import PluginError
from accelplug.hooks import ROOT, CommitView, DrafterTraits, Drafts, DraftView, NodeKind, Owner, Technique
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
    rows = torch.full((2, VOCAB), 1 / VOCAB)
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
    "rows narrower than the vocabulary": (sampled(rows=torch.ones(2, 8)), rf"rows \[2, 8\]; make them \[num_rows, {VOCAB}\]"),
    "rows of one dimension": (sampled(rows=torch.ones(VOCAB)), rf"probability rows \[{VOCAB}\]"),
    "rows of numpy's": (sampled(rows=np.full((2, VOCAB), 1 / VOCAB)), r"probability rows as a ndarray; make them a torch\.Tensor"),
    "a kind that is none": (sampled(kinds=ints(0, 7, 1, 0)), r"node kinds \[7\]; the kinds are NodeKind.DELTA"),
    "offsets that begin late": (Drafts(ints(1, 3, 4), ints(1, 2, 3, 4)), r"offsets \[1, 3, 4\] for 2 requests and 4 nodes"),
    "offsets that go forth and back": (Drafts(ints(0, 2, 0), ints()), r"drafted \[2, -2\] nodes"),
    "tokens in a list": (Drafts(ints(0, 1, 1), [3]), "tokens as a list; make it a NumPy array of integers"),
    "offsets in a list": (Drafts([0, 1, 1], ints(3)), "offsets as a list; make it a NumPy array of integers"),
    "no tokens at all": (Drafts(ints(0, 0, 0), None), "tokens as a NoneType"),
    "fractions of tokens": (Drafts(ints(0, 1, 1), np.array([3.0])), r"tokens as float64 \[1\]"),
    "tokens of two dimensions": (Drafts(ints(0, 1, 1), ints(3).reshape(1, 1)), r"tokens as int64 \[1, 1\]"),
    "kinds in a list": (sampled(kinds=[0, 1, 1, 0]), "kinds as a list"),
    "too few parents": (tree(parents=ints(ROOT, 0, 0)), "returned 3 parents for 4 nodes; give every node one"),
    "too many kinds": (sampled(kinds=ints(0, 1, 1, 0, 0)), "returned 5 kinds for 4 nodes"),
    "too few row ids": (sampled(row_ids=ints(-1, 0)), "returned 2 row_ids for 4 nodes"),
    "too few sources": (tree(sources=ints(1)), "returned 1 sources for 4 nodes"),
}


@pytest.mark.parametrize(("drafts", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_drafts_are_refused_by_name(drafts, reason):
    with pytest.raises(PluginError, match=rf"^drafter 'odd' \(strange 2\.0\) .*{reason}"):
        check_drafts(WHO, drafts, BUDGETS, VOCAB)


CHAIN = Drafts(ints(0, 3, 4), ints(1, 2, 3, 4), parents=ints(ROOT, 0, 1, ROOT))
KINDS = frozenset(NodeKind)
ANNOUNCED = {
    "a chain without parents": (DrafterTraits(), Drafts.chains([(1, 2, 3), (4,)])),
    "a chain with parents": (DrafterTraits(), CHAIN),
    "a chain of a tree drafter": (DrafterTraits(shape="tree"), CHAIN),
    "a tree": (DrafterTraits(shape="tree"), tree()),
    "kinds that are all DELTA": (DrafterTraits(shape="tree"), tree(kinds=ints(0, 0, 0, 0))),
    "a sampled tree": (DrafterTraits(shape="tree", kinds=KINDS), sampled()),
    "nothing, of a drafter that samples": (DrafterTraits(kinds={NodeKind.SAMPLED}), Drafts.chains([(), ()])),
}
UNANNOUNCED = {
    "a tree": (DrafterTraits(), tree(), r"drafted a tree, its traits say chain; declare traits = DrafterTraits\(shape='tree'\)"),
    "two roots": (DrafterTraits(), tree(parents=ints(ROOT, 0, ROOT, ROOT)), "drafted a tree, its traits say chain"),
    "sampled nodes": (
        DrafterTraits(shape="tree"),
        sampled(),
        r"drafted delta, sampled nodes, its traits say delta; declare traits = DrafterTraits\(kinds=\{NodeKind.DELTA, NodeKind.SAMPLED\}\)",
    ),
    "DELTA nodes": (
        DrafterTraits(kinds={NodeKind.SAMPLED}),
        Drafts.chains([(1,), ()]),
        r"drafted delta nodes, its traits say sampled; declare traits = .*NodeKind.DELTA, NodeKind.SAMPLED",
    ),
}


class Declared:
    """A drafter that is its traits."""

    def __init__(self, traits):
        self.traits = traits

    def propose(self, view):
        raise AssertionError("the drafts are given")


@pytest.mark.parametrize(("traits", "drafts"), ANNOUNCED.values(), ids=ANNOUNCED.keys())
def test_drafts_that_the_traits_announce_pass(drafter, traits, drafts):
    bind_drafter(drafter(Declared(traits))).check(drafts, BUDGETS, VOCAB)


@pytest.mark.parametrize(("traits", "drafts", "reason"), UNANNOUNCED.values(), ids=UNANNOUNCED.keys())
def test_drafts_that_the_traits_do_not_announce_are_refused(drafter, traits, drafts, reason):
    with pytest.raises(PluginError, match=rf"^drafter 'odd' \(strange 2\.0\) {reason}"):
        bind_drafter(drafter(Declared(traits))).check(drafts, BUDGETS, VOCAB)
    check_drafts(WHO, drafts, BUDGETS, VOCAB)  # nothing else is wrong with them


def test_a_drafter_without_traits_promised_the_smallest_kind(drafter):
    class Plain:
        def propose(self, view):
            return tree()

    bound = bind_drafter(drafter(Plain()))
    assert bound.traits == DrafterTraits()
    with pytest.raises(PluginError, match="its traits say chain"):
        bound.check(bound.propose(view()), BUDGETS, VOCAB)


chains = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=5), max_size=5)


@settings(deadline=None)
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


GUESSES = [None, 3, [1.5], np.array([1.0, 2.0]), "12", [[1], [2, 3]], [[1, 2]], [True], {1, 2}, [None]]


@pytest.mark.parametrize("budgets", [ints(3, 0), ints(3, 2)], ids=["one guess", "two guesses"])
@pytest.mark.parametrize("guess", GUESSES, ids=repr)
def test_a_guess_that_is_none_is_refused_by_name(drafter, guess, budgets):
    class Guessing:
        def propose_one(self, tokens, budget):
            return guess

    sentence = r"^drafter 'odd' \(strange 2\.0\): propose_one.* a guess is a flat sequence of token ids, got"
    with pytest.raises(PluginError, match=sentence):
        bind_drafter(drafter(Guessing())).propose(view(budgets))
    for beside in ([], [[1]]):
        with pytest.raises(TypeError, match="a guess is a flat sequence of token ids, got"):
            Drafts.chains([guess, *beside])


@pytest.mark.parametrize("guess", [[1, 2], (1, 2), np.array([1, 2], dtype=np.uint16), [np.int32(1), 2], range(1, 3)], ids=repr)
def test_every_sequence_of_whole_numbers_is_a_guess(guess):
    assert Drafts.chains([guess]).tokens.tolist() == [1, 2]
    drafts = Drafts.chains([guess, ()])
    assert (drafts.tokens.tolist(), drafts.tokens.dtype) == ([1, 2], np.int64)


def test_what_propose_one_raises_itself_is_heard_unchanged(drafter):
    class Failing:
        def propose_one(self, tokens, budget):
            raise TypeError("its own")

    with pytest.raises(TypeError, match=r"^its own$"):
        bind_drafter(drafter(Failing())).propose(view())


@pytest.mark.parametrize("name", ["propose", "propose_one", "propose_on_device", "observe", "start", "finish"])
def test_something_else_under_a_methods_name_is_refused(drafter, name):
    instance = Declared(DrafterTraits())
    setattr(instance, name, 5)
    with pytest.raises(PluginError, match=rf"has a {name} that is a int; make it a method"):
        bind_drafter(drafter(instance))


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
