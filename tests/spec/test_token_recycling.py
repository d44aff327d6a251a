"""The matrix holds each token's newest row, the template is the best tree, and what was never seen is left out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelplug.hooks import ROOT, DrafterTraits, Verified
from accelplug.spec.token_recycling import TokenRecycling, template
from tests.spec.feeding import blocks_left_behind, commit, finish, paths, propose, start

K = 3


def verified(rows: list[tuple[int, list[int]]]) -> Verified:
    return Verified(np.array([0, len(rows)]), np.array([token for token, _ in rows]), np.array([top for _, top in rows]).reshape(-1, K))


def ranks_of(shape: list[tuple[int, int]]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for parent, rank in shape:
        found.append((*(found[parent] if parent != ROOT else ()), rank))
    return found


@settings(deadline=None)
@given(num_nodes=st.integers(1, 40), depth=st.integers(1, 4), k=st.integers(1, 4))
def test_the_template_is_the_best_tree_at_every_size(num_nodes, depth, k):
    every = [ranks for level in range(1, depth + 1) for ranks in itertools.product(range(k), repeat=level)]
    chance = {ranks: float(np.prod([0.6 * (rank + 1) ** -1.5 for rank in ranks])) for ranks in every}
    taken = ranks_of(template(num_nodes, depth, k))
    assert len(set(taken)) == len(taken) == min(num_nodes, len(every))
    assert [chance[ranks] for ranks in taken] == pytest.approx(sorted(chance.values(), reverse=True)[: len(taken)])


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.lists(st.tuples(st.integers(0, 6), st.permutations(range(7)).map(lambda row: row[:K])), max_size=8), max_size=4),
    root=st.integers(0, 6),
    num_nodes=st.integers(1, 30),
    depth=st.integers(1, 4),
    budget=st.integers(0, 30),
    shape=st.sampled_from(["tree", "chain"]),
    max_rows=st.sampled_from([2, 99]),
)
def test_drafts_are_the_templates_paths_through_the_newest_rows(steps, root, num_nodes, depth, budget, shape, max_rows):
    drafter = TokenRecycling(num_nodes=num_nodes, depth=depth, k=K, shape=shape, max_rows=max_rows)
    start(drafter)
    matrix: dict[int, list[int]] = {}
    for rows in steps:
        commit(drafter, [root], verified=verified(rows))
        for token, top in rows:
            matrix.pop(token, None)
            matrix[token] = top
        for oldest in list(matrix)[: max(0, len(matrix) - max_rows)]:
            del matrix[oldest]
    expected = []
    for ranks in ranks_of(template(num_nodes, depth, K if shape == "tree" else 1)):
        path = [root]
        for rank in ranks:
            path += [matrix[path[-1]][rank]] if path[-1] in matrix else [-1]
        if -1 not in path and path[:-1].count(-1) == 0:
            expected.append(tuple(path[1:]))
    drafts = propose(drafter, [1, root], budget)
    assert paths(drafts) == expected[:budget]


def test_traits_ask_for_what_the_shape_uses():
    assert TokenRecycling(k=5).traits == DrafterTraits(shape="tree", top_k=5, continues=True)
    assert TokenRecycling(k=5, shape="chain").traits == DrafterTraits(shape="chain", top_k=1, continues=True)


def test_nothing_seen_drafts_nothing():
    drafter = TokenRecycling()
    start(drafter)
    commit(drafter, [1, 2, 3])
    assert propose(drafter, [1, 2, 3], 9).tokens.tolist() == []


def test_rows_are_copied_and_slots_are_isolated_recycled_and_freed():
    drafter = TokenRecycling(k=K)
    for slot in (0, 1):
        start(drafter, slot)
        seen = verified([(5, [slot, 3, 4])])
        commit(drafter, [5], slot=slot, verified=seen)
        seen.top[:] = 77
    assert [paths(propose(drafter, [5], 9, slot)) for slot in (0, 1)] == [[(0,), (3,), (4,)], [(1,), (3,), (4,)]]
    start(drafter, 0)
    assert propose(drafter, [5], 9, 0).tokens.tolist() == []
    finish(drafter, 0)
    finish(drafter, 1)
    assert drafter._slots == {}


def test_ten_thousand_short_requests_leave_no_memory_behind():
    seen = verified([(token, [token + 1, token + 2, token + 3]) for token in range(20)])
    assert blocks_left_behind(TokenRecycling(k=K), [1, 2, 3], seen) < 200
