"""A fused tree holds what its sources drafted, each node once, fairly where there is not room for all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelplug import OptionError, PluginError, UnknownTechniqueError
from accelplug.hooks import ROOT, BuildContext, CommitView, DrafterTraits, Drafts, DraftView, NodeKind, Verified, load_registry
from accelplug.spec.fusion import Fusion
from tests.spec.feeding import blocks_left_behind, commit, finish, paths, propose, start

VOCAB = 50


def built(*sources: Any, **options: Any) -> Fusion:
    context = BuildContext("transformers", VOCAB, (), None, "cpu", 8, 64, None, list, list, list)  # type: ignore[arg-type]
    made = load_registry(entry_points=False).build("drafter", {"name": "fusion", "sources": sources, **options}, context)
    assert isinstance(made.instance, Fusion)
    return made.instance


@dataclass
class Scripted:
    """Drafts the same tree in every step, cut to the budget."""

    tree: tuple[list[int], list[int]]
    top_k: int = 0
    needs: frozenset[str] = frozenset()
    calls: list[Any] = field(default_factory=list)

    @property
    def traits(self) -> DrafterTraits:
        return DrafterTraits(shape="tree", top_k=self.top_k, needs=self.needs)

    def start(self, slots: Any) -> None:
        self.calls.append(("start", slots.tolist()))

    def finish(self, slots: Any) -> None:
        self.calls.append(("finish", slots.tolist()))

    def observe(self, view: CommitView) -> None:
        self.calls.append(("observe", None if view.verified is None else view.verified.top.tolist()))

    def propose(self, view: DraftView) -> Drafts:
        return Drafts.trees([(self.tree[0][:budget], self.tree[1][:budget]) for budget in view.budgets.tolist()])


trees = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), max_size=12).map(
    lambda nodes: ([token for token, _ in nodes], [int(share * (i + 1)) - 1 if share < 1 else i - 1 for i, (_, share) in enumerate(nodes)])
)


@settings(max_examples=300, deadline=None)
@given(drafted=st.lists(trees, min_size=1, max_size=4), budget=st.integers(0, 30), num_nodes=st.integers(1, 30))
def test_the_tree_is_the_union_of_the_sources_as_far_as_it_fits(drafted, budget, num_nodes):
    fusion = built(*map(Scripted, drafted), num_nodes=num_nodes)
    drafts = propose(fusion, [1, 2], budget)
    room = min(budget, num_nodes)
    asked = [paths(Drafts.trees([(tokens[:room], parents[:room])])) for tokens, parents in drafted]
    union = {path for source in asked for path in source}
    fused = paths(drafts)
    assert len(set(fused)) == len(fused) == min(room, len(union))
    assert set(fused) <= union
    for path, source in zip(fused, drafts.sources.tolist(), strict=True):
        assert path in asked[source]
        assert len(path) == 1 or path[:-1] in fused
    if len(fused) == len(union):
        assert set(fused) == union


def test_room_is_shared_in_turns_and_what_one_leaves_the_other_takes():
    long, short = ([1] * 20, list(range(-1, 19))), ([2, 3], [-1, 0])
    assert propose(built(Scripted(long), Scripted(([2] * 20, list(range(-1, 19))))), [9], 7).sources.tolist().count(0) == 4
    drafts = propose(built(Scripted(long), Scripted(short)), [9], 7)
    assert drafts.sources.tolist().count(1) == 2
    assert len(drafts.tokens) == 7


def test_one_source_alone_and_an_empty_one_beside_it_change_nothing():
    tree = ([1, 2, 3, 4], [ROOT, ROOT, 0, 2])
    for sources in ([Scripted(tree)], [Scripted(([], [])), Scripted(tree)], [Scripted(tree), Scripted(tree)]):
        drafts = propose(built(*sources), [9], 10)
        assert (drafts.tokens.tolist(), drafts.parents.tolist()) == tree


def test_every_source_sees_what_it_asked_for():
    asks, other = Scripted(([], []), top_k=2), Scripted(([], []))
    fusion = built(asks, other, Scripted(([], []), top_k=3, needs=frozenset({"embed"})))
    assert fusion.traits == DrafterTraits(shape="tree", top_k=3, needs=frozenset({"embed"}))
    start(fusion)
    commit(fusion, [5], verified=Verified(np.array([0, 1]), np.array([5]), np.array([[7, 8, 9]])))
    finish(fusion)
    assert asks.calls == [("start", [0]), ("observe", [[7, 8]]), ("finish", [0])]
    assert other.calls == [("start", [0]), ("observe", None), ("finish", [0])]


def test_built_ins_by_name_with_options_and_nested():
    fusion = built("prompt_lookup(num_tokens=2, min_ngram=1)", {"name": "fusion", "sources": ["suffix(min_match=1, factor=3.0)"]})
    tokens = [1, 2, 3, 4, 5, 1]
    start(fusion)
    commit(fusion, tokens)
    drafts = propose(fusion, tokens, 9)
    assert paths(drafts) == [(2,), (2, 3), (2, 3, 4)]
    assert drafts.sources.tolist() == [0, 0, 1]


class Samples:
    traits = DrafterTraits(kinds=frozenset({NodeKind.SAMPLED}))

    def propose(self, view: DraftView) -> Drafts:
        raise AssertionError("never asked")


class OnDevice:
    def propose_on_device(self, view: Any) -> Any:
        raise AssertionError("never asked")


@pytest.mark.parametrize(
    ("sources", "error", "sentence"),
    [
        ([Samples()], OptionError, "cannot merge the sampled nodes of drafter 'Samples'"),
        ([OnDevice()], OptionError, "drafter 'OnDevice' .* drafts on the device only"),
        ([], OptionError, "are none; write them like"),
        (["prompt_lokup"], UnknownTechniqueError, "did you mean 'prompt_lookup'"),
        (["prompt_lookup(num_tokens=0)"], OptionError, "prompt_lookup.*between 1 and 128"),
        ([object()], PluginError, "has no propose"),
    ],
)
def test_wrong_sources_are_one_sentence(sources, error, sentence):
    with pytest.raises(error, match=sentence):
        built(*sources)


def test_a_source_is_named_in_its_errors():
    class Raises:
        def propose_one(self, tokens: Any, budget: int) -> list[int]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        propose(built(Scripted(([], [])), Raises()), [1], 3)
    assert any("raised by drafter 'Raises'" in note for note in caught.value.__notes__)
    with pytest.raises(PluginError, match=r"drafter 'Scripted' .* drafted token ids from 77 to 77"):
        propose(built(Scripted(([77], [ROOT]))), [1], 3)


@dataclass
class Answers:
    """Returns what it is given, right or wrong."""

    drafts: Any
    traits: DrafterTraits = field(default_factory=lambda: DrafterTraits(shape="tree"))

    def propose(self, view: DraftView) -> Any:
        return self.drafts


WRONG = {
    "a parent before the root": Drafts.trees([([1, 2], [ROOT, -2])]),
    "a parent behind its child": Drafts.trees([([1, 2], [1, ROOT])]),
    "its own parent": Drafts.trees([([1], [0])]),
    "a negative token": Drafts.trees([([1, -1], [ROOT, ROOT])]),
    "a token outside the vocabulary": Drafts.chains([[VOCAB]]),
    "over the budget": Drafts.chains([[1, 2, 3, 4]]),
    "fewer parents than tokens": Drafts(np.array([0, 2]), np.array([1, 2]), np.array([ROOT])),
    "offsets of another length": Drafts(np.array([0, 1]), np.array([1, 2])),
    "fractions": Drafts(np.array([0, 1]), np.array([1.5])),
    "a list": Drafts(np.array([0, 1]), [1]),  # type: ignore[arg-type]
    "sampled nodes": Drafts(np.array([0, 1]), np.array([1]), kinds=np.array([NodeKind.SAMPLED])),
    "no offsets": Drafts(None, np.array([0, 1]), np.array([ROOT, 0])),  # type: ignore[arg-type]
    "no drafts": [1],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_answer_is_refused_in_its_sources_name(wrong):
    with pytest.raises(PluginError, match="drafter 'Answers'"):
        propose(built(Scripted(([5], [ROOT])), Answers(WRONG[wrong])), [1], 3)


def test_a_chain_that_is_none_is_refused_in_its_sources_name():
    with pytest.raises(PluginError, match=r"drafter 'Answers' .* drafted a tree, its traits say chain"):
        propose(built(Answers(Drafts.trees([([1, 2], [ROOT, ROOT])]), DrafterTraits())), [1], 3)


def test_a_token_drafted_twice_after_one_parent_is_one_node():
    drafts = propose(built(Scripted(([5, 5, 6], [ROOT, ROOT, 1])), Scripted(([7], [ROOT]))), [1], 9)
    assert sorted(paths(drafts)) == [(5,), (5, 6), (7,)]


def test_short_requests_leave_no_memory_behind():
    seen = Verified(np.array([0, 2]), np.array([1, 2]), np.array([[3] * 8, [4] * 8]))
    assert blocks_left_behind(built("suffix", "input_copy", "token_recycling"), [1, 2, 3, 1, 2], seen, requests=1000) < 300
