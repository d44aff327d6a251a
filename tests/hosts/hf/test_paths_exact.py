"""Rules that judge whole drafts keep the target's distribution: every outcome of a step two levels deep, by enumeration."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper
from transformers.generation.stopping_criteria import StoppingCriteriaList

from accelplug.hooks import Choice, NodeKind, PathView, VerifierTraits, load_registry
from accelplug.hosts.hf.request import Requests
from accelplug.hosts.hf.tree import Tree
from accelplug.hosts.hf.verify import Walk
from accelplug.spec.block import Block
from accelplug.spec.k_seq import KSeq, _groups, _path_to
from accelplug.spec.traversal import Traversal
from accelplug.testing.enumeration import VOCAB, Enumeration, table, total_variation
from accelplug.testing.plans import D, Grow, S, W

DEPTH = 2
EXACT, WRONG = 1e-12, 1e-3
CHAINS = {
    "sampled": [[S], [S]],
    "deterministic": [[D], [D]],
    "deterministic then sampled": [[D], [S]],
    "sampled then deterministic": [[W], [D]],
}
TREES = {
    "without replacement": [[W, W], [W]],
    "without replacement below": [[W], [W, W]],
    "every token": [[W, W, W], []],
    "independent": [[S, S], [S]],
    "independent below": [[S], [S, S]],
    "deterministic": [[D, D], [D, D]],
    "mixed": [[W, D], [S]],
    "mixed the other way": [[D, W], [W, D]],
    "all three kinds": [[S, D, W], []],
}
INDEPENDENT = {
    "pairs": [[S, S], [S]],
    "pairs below": [[S], [S, S]],
    "three": [[S, S, S], []],
    "one deterministic among them": [[S, D, S], []],
    "deterministic first": [[D, S], [S]],
    "deterministic": [[D, D], [D, D]],
}
RULES = {
    "block": CHAINS,
    "traversal": {**CHAINS, **TREES},
    "k_seq": {"chain": [[S], [S]], **INDEPENDENT},
    "token_wise": {name: TREES[name] for name in ("every token", "independent", "mixed", "all three kinds")},
}
CASES = [(rule, plan) for rule, plans in RULES.items() for plan in plans]


def step(target, draft, verifier, processors=None, events=None):
    """Return every outcome of one step with its probability."""
    rule = load_registry(entry_points=False).build("verifier", verifier, None)

    def run(chance):
        walk = Walk(rule, LogitsProcessorList(processors or []), do_sample=True, chance=chance)
        request = Requests(torch.tensor([[VOCAB]]), StoppingCriteriaList(), max_length=1 + DEPTH + 1, pad_token_id=0, on_device=True)
        tree = draft(chance, (), DEPTH)
        contexts = [()]
        for token, parent in zip(tree.tokens, tree.parents or range(-1, len(tree) - 1), strict=True):
            contexts.append((*contexts[parent + 1], token))
        verdict = walk(torch.stack([target(context).log() for context in contexts])[None], [tree], request)
        if events is not None:
            events[f"{len(verdict.paths[0])} of {max(tree.depths())}"] += 1
        return tuple(request.tokens[0, 1 : request.length].tolist())

    return Enumeration().outcomes(run)


def error(target, outcomes):
    """Return the distance from the target's joint distribution once plain sampling has completed every outcome."""
    joint, right = Counter(), Counter()
    for sequence in itertools.product(range(VOCAB), repeat=DEPTH + 1):
        chances = [float(target(sequence[:i])[token]) for i, token in enumerate(sequence)]
        right[sequence] = float(np.prod(chances))
        for known in range(1, DEPTH + 2):
            joint[sequence] += outcomes.get(sequence[:known], 0.0) * float(np.prod(chances[known:]))
    return total_variation(joint, right)


def expected_length(outcomes):
    return sum(len(tokens) * weight for tokens, weight in outcomes.items())


@pytest.mark.parametrize("data_dependent", [False, True], ids=["fixed", "data dependent"])
@pytest.mark.parametrize(("rule", "plan"), CASES)
def test_exact(rule, plan, data_dependent):
    events = Counter()
    target = table(5) if data_dependent else table(1)
    outcomes = step(target, Grow(RULES[rule][plan], data_dependent), rule, events=events)
    assert error(target, outcomes) < EXACT
    depth = sum(map(bool, RULES[rule][plan]))
    least = 1 if plan == "every token" else 0  # then nothing is left to reject
    assert {f"{kept} of {depth}" for kept in range(least, depth + 1)} <= set(events), events


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
    processors = [TemperatureLogitsWarper(0.7), TopKLogitsWarper(2)]

    def warped(context):
        return LogitsProcessorList(processors)(None, table(1)(context).log()[None])[0].softmax(-1)

    assert error(warped, step(table(1), Grow(plan), rule, processors)) < EXACT
    masked = table(3, masked=True)
    assert error(masked, step(masked, Grow(plan), rule)) < EXACT


def test_a_draft_equal_to_the_target_is_kept_whole():
    for rule, plan in (("block", [[S], [S]]), ("traversal", [[W, W], [W]]), ("traversal", [[S, S], []])):
        outcomes = step(table(1), Grow(plan, drafter=table(1)), rule)
        assert expected_length(outcomes) == pytest.approx(1 + sum(map(bool, plan)), abs=1e-12)


class CommonPrefixes:
    """Two chains drawn independently, as two branches that may begin with the same token."""

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
        for rule, plan in (("block", [[S], [S]]), ("traversal", [[W, W], [W]]), ("traversal", [[S, S], []])):
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
