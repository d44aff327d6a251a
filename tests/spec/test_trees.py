"""Tree policies by themselves: shapes, budgets, and the best trees found by trying all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelplug.hooks import ROOT, NodeKind
from accelplug.spec.trees.best_first import BestFirst
from accelplug.spec.trees.chain import Chain
from accelplug.spec.trees.gumbel_top_k import GumbelTopK
from accelplug.spec.trees.nodes import Draws, Nodes
from accelplug.spec.trees.sequoia import Sequoia, best_shape
from accelplug.spec.trees.stochastic_beam import StochasticBeam, truncated
from accelplug.spec.trees.top_k import TopK

VOCAB = 5
POLICIES = [Chain(), TopK(3, 4), BestFirst(4), GumbelTopK((3, 2, 1)), StochasticBeam(3, 4), Sequoia()]


def row_after(seed, path):
    row = np.random.default_rng([seed, *(token + 1 for token in path)]).dirichlet([0.5] * VOCAB)
    return torch.from_numpy(row)


def grown(policy, budget, seed, draws=None, stop_after=None):
    """Run a policy to its end; return its nodes, those kept, and the number of levels read."""
    nodes = Nodes(draws)
    growth, levels, kept = policy.grow(nodes, budget), 0, None
    try:
        level = next(growth)
        while True:
            levels += 1
            rows = torch.stack([row_after(seed, path_of(nodes, node)) for node in level])
            level = growth.send(rows)
            if levels == stop_after:
                growth.send(None)
    except StopIteration as complete:
        kept = complete.value
    return nodes, list(range(len(nodes))) if kept is None else kept, levels


def path_of(nodes, node):
    return () if node == ROOT else (*path_of(nodes, nodes.parents[node]), nodes.tokens[node])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(policy=st.sampled_from(POLICIES), budget=st.integers(1, 9), seed=st.integers(0, 99), sampled=st.booleans(), stop=st.sampled_from([None, 1, 2]))
def test_every_policy_keeps_to_its_budget_and_its_kinds(policy, budget, seed, sampled, stop):
    torch.manual_seed(seed)
    nodes, kept, levels = grown(policy, budget, seed, Draws() if sampled else None, stop)
    assert 1 <= len(kept) <= budget
    assert levels <= (stop or budget)
    assert kept == sorted(kept)
    assert all(nodes.parents[node] in (ROOT, *kept) and nodes.parents[node] < node for node in kept), "ancestors are kept"
    kinds = {nodes.kinds[node] for node in kept}
    assert kinds == (set(policy.kinds) if sampled else {NodeKind.DELTA})
    siblings = [(nodes.parents[node], nodes.tokens[node]) for node in kept]
    assert len(set(siblings)) == len(siblings)
    if kinds != {NodeKind.DELTA}:
        assert len(kept) == len(nodes), "what was drawn is never dropped"
    for node in kept:
        row = row_after(seed, path_of(nodes, nodes.parents[node]))
        assert nodes.paths[node] == pytest.approx(nodes.path(nodes.parents[node]) * float(row[nodes.tokens[node]]))
        if kinds != {NodeKind.DELTA}:
            assert torch.equal(nodes.rows[nodes.row_ids[node]], row)


@pytest.mark.parametrize("budget", [1, 3, 6])
@pytest.mark.parametrize("policy", [BestFirst(6), TopK(VOCAB, 6)], ids=["best_first", "top_k"])
def test_for_a_greedy_target_the_likeliest_paths_are_kept(policy, budget):
    """Compared with all paths of up to four tokens."""
    for seed in range(4):
        nodes, kept, _ = grown(policy, budget, seed)
        chances = []
        for length in range(1, 5):
            paths = itertools.product(range(VOCAB), repeat=length)
            chances += [(float(np.prod([row_after(seed, path[:i])[t] for i, t in enumerate(path)])), path) for path in paths]
        best = {path for _, path in sorted(chances, reverse=True)[:budget]}
        found = {path_of(nodes, node) for node in kept}
        assert found == best or max(map(len, found)) > 4


def expected_length(children, acceptance, place=0):
    return sum(acceptance[k] * (1 + expected_length(children, acceptance, child + 1)) for k, child in enumerate(children[place]))


def all_shapes(num_nodes, depth):
    """Return every tree as its children lists, nodes numbered in order of making."""
    for parents in itertools.product(*(range(i + 1) for i in range(num_nodes))):
        depths, children = [0], [[] for _ in range(num_nodes + 1)]
        for node, parent in enumerate(parents):
            depths.append(depths[parent] + 1)
            children[parent].append(node)
        if max(depths) <= depth:
            yield children


@pytest.mark.parametrize(("acceptance", "depth"), [((0.6, 0.25), 5), ((0.9, 0.05), 5), ((0.4, 0.3, 0.2), 2), ((0.8, 0.1), 1)])
def test_sequoia_finds_the_best_of_all_shapes(acceptance, depth):
    for num_nodes in range(1, 6):
        shapes = (shape for shape in all_shapes(num_nodes, depth) if max(map(len, shape)) <= len(acceptance))
        best = max((expected_length(shape, acceptance) for shape in shapes), default=None)
        found = best_shape(acceptance, num_nodes, depth)
        assert expected_length(found, acceptance) == pytest.approx(best) if best is not None else len(found) - 1 <= num_nodes


def test_a_truncated_beam_peaks_at_its_parents_score():
    scores = torch.tensor([[1.0, 0.5, -2.0, -torch.inf]], dtype=torch.float64)
    shifted = truncated(scores, torch.tensor([[-0.7]], dtype=torch.float64))
    assert shifted[0, 0] == pytest.approx(-0.7)
    assert shifted[0].argsort(descending=True).tolist() == [0, 1, 2, 3]
    assert shifted[0, 3] == -torch.inf
