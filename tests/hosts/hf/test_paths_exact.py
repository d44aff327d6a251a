"""Rules that judge whole drafts keep the target's distribution: every outcome of a step two levels deep, by enumeration."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper

from accelplug.hooks import Choice, NodeKind, PathView, VerifierTraits
from accelplug.hosts.hf.tree import Tree
from accelplug.spec.block import Block
from accelplug.spec.k_seq import KSeq, _groups, _path_to
from accelplug.spec.traversal import Traversal
from accelplug.testing.enumeration import Judged, error, step, table
from accelplug.testing.plans import PLANS, D, Grow, S, W, possible_ends

EXACT, WRONG = 1e-12, 1e-3
CASES = [
    *(("block", plan) for plan, levels in PLANS.items() if all(len(level) == 1 for level in levels)),
    *(("traversal", plan) for plan in PLANS),
    *(("k_seq", plan) for plan, levels in PLANS.items() if not any(W in level for level in levels)),
]


def expected_length(outcomes):
    return sum(len(tokens) * weight for tokens, weight in outcomes.items())


@pytest.mark.parametrize("data_dependent", [False, True], ids=["fixed", "data dependent"])
@pytest.mark.parametrize(("rule", "plan"), CASES)
def test_exact(rule, plan, data_dependent):
    judged, draft = Judged(), Grow(PLANS[plan], data_dependent)
    assert error(table(1), step(table(1), draft, rule, judged=judged)) < EXACT
    assert possible_ends(draft) <= set(judged.ends)


@dataclass
class CountBySibling(Grow):
    """The second sibling is drawn only where the first one's token is even; below, there is one at most."""

    def _draw(self, grown, parent, kinds, row):
        first = len(grown.tokens)
        super()._draw(grown, parent, kinds[:1], row)
        if len(kinds) > 1 and grown.tokens[first] % 2 == 0:
            again = row.clone()
            if kinds[0] == W:
                again[grown.tokens[first]] = 0
            token = grown.chance.choose((again / again.sum()).tolist())
            grown.add(token, parent, kinds[0])


@pytest.mark.parametrize(("rule", "kind"), [("traversal", W), ("traversal", S), ("token_wise", W)])
def test_the_number_of_siblings_may_depend_on_earlier_ones(rule, kind):
    assert error(table(1), step(table(1), CountBySibling([[kind, kind], [kind]]), rule)) < EXACT


class LaterSiblingDecides:
    """Drafts below the first sibling only where the second one is even, as trees grown under one budget do."""

    depth = 2

    def __call__(self, chance, context, budget):
        row = table(2)(())
        first = chance.choose(row.tolist())
        left = row.clone()
        left[first] = 0
        second = chance.choose((left / left.sum()).tolist())
        if second % 2:
            return Tree([first, second], [-1, -1], [int(W)] * 2, [0, 0], row[None], {-1: [0, 1]})
        below = table(2)((first,))
        third = chance.choose(below.tolist())
        return Tree([first, second, third], [-1, -1, 0], [int(W)] * 3, [0, 0, 1], torch.stack([row, below]), {-1: [0, 1], 0: [2]})


@pytest.mark.parametrize("rule", ["traversal", "token_wise"])
def test_what_is_drafted_below_a_node_may_depend_on_its_later_siblings(rule):
    assert error(table(1), step(table(1), LaterSiblingDecides(), rule)) < EXACT


@pytest.mark.parametrize(("rule", "plan"), [("block", [[S], [S]]), ("traversal", [[W, W], [W]]), ("k_seq", [[S], [S, S]])])
def test_exact_behind_processors_and_masked_targets(rule, plan):
    processors = LogitsProcessorList([TemperatureLogitsWarper(0.7), TopKLogitsWarper(2)])

    def warped(context):
        return processors(None, table(1)(context).log()[None])[0].softmax(-1)

    assert error(warped, step(table(1), Grow(plan), rule, processors)) < EXACT
    masked = table(4, masked=True)
    assert error(masked, step(masked, Grow(plan), rule)) < EXACT


def test_a_draft_equal_to_the_target_is_kept_whole():
    for rule, plan in (("block", [[S], [S]]), ("traversal", [[W, W], [W]]), ("traversal", [[S, S]])):
        outcomes = step(table(1), Grow(plan, drafter=table(1)), rule)
        assert expected_length(outcomes) == pytest.approx(1 + len(plan), abs=1e-12)


class CommonPrefixes:
    """Two chains drawn independently, as two branches that may begin with the same token."""

    depth = 2

    def __call__(self, chance, context, budget):
        drafter = table(2)
        tokens, parents, rows = [], [], []
        for _ in range(2):
            first = chance.choose(drafter(()).tolist())
            tokens += [first, chance.choose(drafter((first,)).tolist())]
            parents += [-1, len(parents)]
            rows += [drafter(()), drafter((first,))]
        children = {-1: [0, 2], 0: [1], 2: [3]}
        return Tree(tokens, parents, [int(S)] * 4, [0, 1, 2, 3], torch.stack(rows), children)


@pytest.mark.parametrize("rule", ["k_seq", "traversal", "token_wise"])
def test_chains_that_share_a_prefix(rule):
    outcomes = step(table(1), CommonPrefixes(), rule)
    assert error(table(1), outcomes) < EXACT
    print(rule, expected_length(outcomes))


# Each rule once more, wrong in one place.


@dataclass(frozen=True)
class BlockFromTheTarget:
    """Block verification that goes on with the target instead of what is left of it."""

    traits: ClassVar[VerifierTraits] = Block.traits

    def choose(self, view: PathView) -> Choice:
        path = Block().choose(view).path
        return Choice(path, view.target[len(path)])


@dataclass(frozen=True)
class BlockOneByOne:
    """Block verification whose joint probability forgets to be cut at one."""

    traits: ClassVar[VerifierTraits] = Block.traits

    def choose(self, view: PathView) -> Choice:
        uncut = 1.0
        for node, token in enumerate(view.tokens):
            uncut *= float(view.target[node, token] / view.drawn_from(node)[token])
        if view.below(min(1.0, uncut)):
            return Choice(range(len(view.tokens)), view.target[-1])
        return Block().choose(view)


@dataclass(frozen=True)
class TraversalOfRemainders(Traversal):
    """Traversal that takes every sibling for one drawn from the whole row."""

    def choose(self, view: PathView) -> Choice:
        kinds = [int(S)] * len(view.kinds)
        return Traversal.choose(
            self, PathView(view.tokens, view.parents, kinds, view.target, view.logits, view.below, view.rows, view.row_ids)
        )


@dataclass(frozen=True)
class FirstOfK:
    """K-SEQ without its scale, each candidate accepted with min(1, q / p), then the residual of one."""

    traits: ClassVar[VerifierTraits] = KSeq.traits

    def choose(self, view: PathView) -> Choice:
        nodes = [-1]
        while True:
            target = view.target[nodes[0] + 1]
            candidates = [child for node in nodes for child in view.children(node)]
            for drawn, group in _groups(view, candidates):
                for node in group:
                    if view.below(min(1.0, float(target[view.tokens[node]] / drawn[view.tokens[node]]))):
                        break
                else:
                    left = (target - drawn).clamp(min=0)
                    return Choice(_path_to(view, nodes[0]), left / left.sum())
                break
            else:
                return Choice(_path_to(view, nodes[0]), target)
            nodes = [other for other in candidates if view.tokens[other] == view.tokens[node]]


MISTAKES = {
    "block goes on with the target": (BlockFromTheTarget(), Grow([[S], [S]])),
    "block multiplies without a limit": (BlockOneByOne(), Grow([[S], [S]])),
    "block on nodes that are not what they say": ("block", Grow([[D], [D]], relabel=S)),
    "traversal with whole rows": (TraversalOfRemainders(), Grow([[W, W], [W]])),
    "k_seq without a scale": (FirstOfK(), Grow([[S, S], [S]])),
    "k_seq on siblings without replacement": ("k_seq", Grow([[W, W], [W]], relabel=S)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_enumeration_catches(mistake):
    rule, draft = MISTAKES[mistake]
    off = error(table(1), step(table(1), draft, rule))
    print(f"{mistake}: total variation {off:.4f}")
    assert off > WRONG


def test_judging_together_accepts_more():
    """Block on chains and traversal on trees, against token-wise, over many pairs of models."""
    gains = Counter()
    for seed in (4, 10):
        target, drafter = table(20 + seed), table(21 + seed)
        for rule, plan in (("block", [[S], [S]]), ("traversal", [[W, W], [W]]), ("traversal", [[S, S]])):
            draft = Grow(plan, drafter=drafter)
            ours, theirs = (expected_length(step(target, draft, name)) for name in (rule, "token_wise"))
            assert ours >= theirs - EXACT, (rule, plan, seed)
            gains[rule] += ours - theirs
            print(f"{rule} {plan} seed {seed}: {ours:.4f} tokens, token_wise {theirs:.4f}")
    assert min(gains.values()) > 0.01


def test_point_masses_leave_nothing_to_gain():
    for rule, plan in (("block", [[D], [D]]), ("traversal", [[D, D], [D, D]]), ("k_seq", [[D, D], [D, D]])):
        ours, theirs = (expected_length(step(table(1), Grow(plan), name)) for name in (rule, "token_wise"))
        assert ours == pytest.approx(theirs, abs=EXACT)


def test_k_seq_takes_no_siblings_without_replacement():
    assert NodeKind.WITHOUT_REPLACEMENT not in KSeq.traits.kinds
