"""Every tree policy keeps the target's distribution: all outcomes of drawing and of verifying, enumerated on a toy."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats

from accelplug.hooks import Drafts, DraftView, NodeKind, load_registry
from accelplug.hosts.hf.tree import Tree
from accelplug.hosts.hf.verify import Chance
from accelplug.spec.branches import above_bar, pruned
from accelplug.spec.draft_model import DraftModel
from accelplug.spec.trees.best_first import BestFirst
from accelplug.spec.trees.chain import Chain
from accelplug.spec.trees.gumbel_top_k import GumbelTopK
from accelplug.spec.trees.nodes import Draws
from accelplug.spec.trees.stochastic_beam import StochasticBeam
from accelplug.testing.enumeration import VOCAB, Enumeration, Judged, completed, error, step, table, take_step

TARGET, SMALL = table(1), table(2)
EXACT = 1e-12
RULE = load_registry(entry_points=False).build("verifier", "token_wise", None)


class TableModel:
    """A second model given by a table: the whole contract, without a network."""

    def extend(self, slots, histories, ahead=None):
        self.texts = [tuple(history[1:].tolist()) for history in histories]
        self.drafted = []
        return torch.stack([SMALL(text).log() for text in self.texts])

    def expand(self, requests, tokens, parents):
        for request, token, parent in zip(requests, tokens, parents, strict=True):
            self.drafted.append((*(self.texts[request] if parent < 0 else self.drafted[parent]), token))
        return torch.stack([SMALL(text).log() for text in self.drafted[-len(tokens) :]])


@dataclass
class Given:
    """What the drafter reads of a build context."""

    load_model: object = TableModel


@dataclass
class Listed(Draws):
    """Takes every outcome of every draw."""

    chance: object

    def one(self, weights):
        return self.chance.choose((weights / weights.sum()).tolist())

    def several(self, row, count):
        drawn, left = [], row.clone()
        for _ in range(min(count, int((row > 0).sum()))):
            drawn.append(self.one(left))
            left[drawn[-1]] = 0
        return drawn


@dataclass
class Drafting:
    """Drafts as the drafter itself does, with a given source of random numbers; `depth` is how far its policy goes."""

    options: dict
    depth: int = 2
    temperature: float = 1.0
    warp: object = None

    def __post_init__(self):
        self.drafter = DraftModel("toy", context=Given(lambda *_: TableModel()), **self.options)

    def __call__(self, chance, context, budget):
        self.drafter.draws = Listed(chance) if isinstance(chance, Enumeration) else Draws()
        tokens = np.array([[VOCAB, *context]])
        one = np.zeros(1, np.int64)
        view = DraftView(one, one, tokens, one + len(context) + 1, one + self.drafter.num_tokens, temperatures=np.array([self.temperature]), warp=self.warp)
        drafts = self.drafter.propose(view)
        KINDS.update(drafts.kinds.tolist())
        return Tree.of(drafts, 0, len(drafts.tokens))


KINDS: set[int] = set()
SETTINGS = {
    "chain": {"num_tokens": 2},
    "chain, unsure of a token": {"num_tokens": 2, "length": "confidence(threshold=0.5)"},
    "chain, unsure of the path": {"num_tokens": 3, "length": "confidence(threshold=0.15, joint=True)"},
    "top_k": {"num_tokens": 4, "tree": "top_k(width=2, depth=2)"},
    "best_first": {"num_tokens": 3, "tree": "best_first(rounds=2)"},
    "best_first, unsure": {"num_tokens": 3, "tree": "best_first(rounds=2)", "length": "confidence"},
    "gumbel_top_k": {"num_tokens": 6, "tree": "gumbel_top_k(branching=[1, 2])"},
    "gumbel_top_k, budget inside a level": {"num_tokens": 3, "tree": "gumbel_top_k(branching=[2, 2])"},
    "gumbel_top_k, all siblings": {"num_tokens": 4, "tree": "gumbel_top_k(branching=[3, 1])"},
    "sequoia": {"num_tokens": 3, "tree": "sequoia(acceptance=[0.5, 0.3], depth=2)"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_output_has_the_targets_distribution(name):
    KINDS.clear()
    depth = 3 if name.endswith("of the path") else 2
    judged, draft = Judged(), Drafting(SETTINGS[name], depth)
    for context in ((), (2,)):
        assert error(TARGET, step(TARGET, draft, RULE, context=context, judged=judged), context) < EXACT
    assert {(1, depth), (depth, depth)} <= set(judged.ends)
    assert not name.startswith("chain, unsure") or len({levels for _, levels in judged.ends}) > 1, "no draft stopped early"
    expected = {"chain": NodeKind.SAMPLED, "top_k": NodeKind.DELTA}.get(name.partition(",")[0], NodeKind.WITHOUT_REPLACEMENT)
    assert {expected} == KINDS


def test_at_another_temperature_than_the_targets_too():
    draft = Drafting({"num_tokens": 2, "tree": "best_first(rounds=1)"}, depth=1, temperature=0.5)
    assert error(TARGET, step(TARGET, draft, RULE)) < EXACT


def two_best(logits):
    """Cut what a top-k of 2 cuts."""
    return logits.masked_fill(logits < logits.topk(2).values[:, -1:], -torch.inf)


@pytest.mark.parametrize(("tree", "depth"), [("chain", 2), ("gumbel_top_k(branching=[2, 1])", 2), ("best_first(rounds=2)", 2)])
def test_drafts_warped_as_the_host_says(tree, depth):
    draft, judged = Drafting({"num_tokens": 2 if tree == "chain" else 4, "tree": tree}, depth=depth, warp=two_best), Judged()
    assert error(TARGET, step(TARGET, draft, RULE, judged=judged)) < EXACT
    assert {what for what, *_ in judged.nodes} == {"accepted", "rejected"}


@pytest.mark.parametrize("tree", ["chain", "gumbel_top_k(branching=[2, 2])", "top_k(width=3, depth=1)"])
def test_a_model_that_lacks_tokens_of_the_targets_drafts_the_others(tree):
    """Tokens that only the target has are impossible drafts: their logits are -inf, as for a model with another tokenizer."""

    class Lacking(TableModel):
        def extend(self, slots, histories, ahead=None):
            return self.lacking(super().extend(slots, histories, ahead))

        def expand(self, requests, tokens, parents):
            return self.lacking(super().expand(requests, tokens, parents))

        def lacking(self, logits):
            return logits.index_fill(1, torch.tensor([1]), -torch.inf)

    draft = Drafting({"num_tokens": 2 if tree == "chain" else 4, "tree": tree, "tokens": "intersection"}, depth=1 if "depth=1" in tree else 2)
    draft.drafter._second = Lacking()
    judged = Judged()
    assert error(TARGET, step(TARGET, draft, RULE, judged=judged)) < EXACT
    assert {what for what, *_ in judged.nodes} == {"accepted", "rejected"}


class DropsUnlikely(Chain):
    """Known wrong: a drawn node is dropped for its own probability."""

    def grow(self, nodes, budget):
        yield from super().grow(nodes, budget)
        return list(range(next((i for i, p in enumerate(nodes.paths) if p < 0.3), len(nodes))))


class Reversed(GumbelTopK):
    """Known wrong: siblings stand in another order than they were drawn in."""

    def grow(self, nodes, budget):
        several = nodes.draws.several
        nodes.draws.several = lambda row, count: several(row, count)[::-1]
        yield from super().grow(nodes, budget)


class Independent(BestFirst):
    """Known wrong: siblings drawn without replacement pass for independent ones."""

    kinds = frozenset({NodeKind.SAMPLED})

    def grow(self, nodes, budget):
        yield from super().grow(nodes, budget)
        nodes.kinds[:] = [NodeKind.SAMPLED] * len(nodes)


@pytest.mark.parametrize("wrong", [DropsUnlikely(), Reversed((2, 1)), Independent(rounds=2)], ids=lambda policy: type(policy).__name__)
def test_the_enumeration_catches_a_wrong_policy(wrong):
    draft = Drafting({"num_tokens": 3, "tree": wrong})
    assert error(TARGET, step(TARGET, draft, RULE)) > 0.01


@dataclass
class PrunedByPlace(Drafting):
    """Drafts of which `adaptive` keeps the nodes whose place among siblings, and those above them, reach a bar."""

    rates: tuple = ()
    bar: float = 0.3

    def __call__(self, chance, context, budget):
        tree = super().__call__(chance, context, budget)
        kept = above_bar(list(tree.above), self.rates, self.bar)
        CUT.add((sum(kept), len(kept)))
        drafts = Drafts(*(np.array(part) for part in ([0, len(tree)], tree.tokens, list(tree.above), tree.kinds, tree.row_ids)), tree.rows)
        left = pruned(drafts, drafts.parents, np.array(kept, dtype=bool))
        return Tree.of(left, 0, len(left.tokens))


CUT: set[tuple[int, int]] = set()


@pytest.mark.parametrize("tree", ["gumbel_top_k(branching=[2, 2])", "best_first(rounds=2)"])
@pytest.mark.parametrize(("rates", "depth"), [((0.7, 0.35), 2), ((0.5, 0.5), 1), ((0.6, 0.1), 2)])
def test_trees_pruned_by_place_keep_the_targets_distribution(tree, rates, depth):
    CUT.clear()
    judged, draft = Judged(), PrunedByPlace({"num_tokens": 5, "tree": tree}, depth, rates=rates)
    assert error(TARGET, step(TARGET, draft, RULE, judged=judged)) < EXACT
    assert any(0 < kept < drafted for kept, drafted in CUT)
    assert {what for what, *_ in judged.nodes} == {"accepted", "rejected"}


def test_a_later_sibling_without_an_earlier_one_would_be_wrong():
    """Why `adaptive` takes drawn siblings for no likelier than those before them."""
    draft = PrunedByPlace({"num_tokens": 2, "tree": "gumbel_top_k(branching=[2])"}, depth=1, rates=(0.1, 0.9))
    assert error(TARGET, step(TARGET, draft, RULE)) > 0.01


# The noise of a stochastic beam is continuous, so its drafts are sampled, and so are the outcomes.
SAMPLES, TOKENS, SIGNIFICANCE = 1500, 3, 1e-3


def p_value(policy, seed):
    """Sample steps, and what follows them from the target itself; return how well the sequences fit the target."""
    torch.manual_seed(seed)
    generator, draft = np.random.default_rng(seed), Drafting({"num_tokens": 4, "tree": policy})
    expected = completed({(): 1.0}, TARGET, TOKENS)
    counts = dict.fromkeys(expected, 0)
    for _ in range(SAMPLES):
        text = take_step(Chance(), TARGET, draft, RULE)
        while len(text) < TOKENS:
            text += (int(generator.choice(VOCAB, p=TARGET(text).numpy())),)
        counts[text[:TOKENS]] += 1
    likely = [key for key in expected if expected[key] * SAMPLES > 1]
    observed = [*(counts[key] for key in likely), SAMPLES - sum(counts[key] for key in likely)]
    frequencies = [*(expected[key] for key in likely), 1 - sum(expected[key] for key in likely)]
    return stats.chisquare(observed, np.array(frequencies) * SAMPLES).pvalue


class Unordered(StochasticBeam):
    """Known wrong: the beams in the order of the vocabulary, not of their perturbed scores."""

    def _keep(self, nodes, beams, rows, scores, count):
        best = scores.flatten().topk(min(count, scores.numel()))
        chosen = scores.flatten() >= best.values[-1]
        return super()._keep(nodes, beams, rows, torch.where(chosen, -torch.arange(scores.numel()), -torch.inf).view_as(scores), count)


def test_a_stochastic_beam_keeps_the_targets_distribution():
    assert p_value(StochasticBeam(2, 2), 3) > SIGNIFICANCE


def test_the_samples_suffice_to_catch_a_wrong_beam():
    assert p_value(Unordered(2, 2), 3) < SIGNIFICANCE**2


def test_several_draws_have_the_probabilities_of_drawing_one_after_the_other():
    """The Gumbel-top-k trick against the product of the shrinking row's probabilities, in every order."""
    torch.manual_seed(11)
    row = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    pairs = list(itertools.permutations(range(4), 2))
    counts = dict.fromkeys(pairs, 0)
    draws, samples = Draws(), 5_000
    for _ in range(samples):
        counts[tuple(draws.several(row, 2))] += 1
    expected = [samples * float(row[a] * row[b] / (1 - row[a])) for a, b in pairs]
    assert stats.chisquare(list(counts.values()), np.array(expected) * samples / sum(expected)).pvalue > SIGNIFICANCE
    assert len(draws.several(row, 9)) == 4, "a token without probability is never drawn"
