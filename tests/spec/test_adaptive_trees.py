"""The drafter adaptive over sources of trees. In them each level has a wrong sibling before the right one, both behind the right one above."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelplug.hooks import CommitView, DrafterTraits, Drafts, DraftView, NodeKind
from accelplug.hooks.paying import MARGIN
from accelplug.spec.adaptive import Adaptive
from accelplug.spec.branches import above_bar, bar_of, pruned
from tests.support.adaptive import FLAT, RIGHT, STEEP, WRONG, Always, Given, seconds_of


@dataclass
class Bushy:
    """Draft levels of `width` siblings, of which the one at `place` goes on; all others are of a token that never comes."""

    place: int = 1
    width: int = 2
    kinds: frozenset = frozenset({NodeKind.DELTA})
    needs: frozenset = frozenset()
    asked: list = field(default_factory=list)

    @property
    def traits(self):
        return DrafterTraits(shape="tree", kinds=self.kinds, needs=self.needs)

    def propose(self, view):
        self.asked.append(view.budgets.tolist())
        trees = []
        for budget in view.budgets.tolist():
            tokens, parents, above = [], [], -1
            while len(tokens) + self.width <= budget:
                tokens += [RIGHT if place == self.place else 2 + place for place in range(self.width)]
                parents += [above] * self.width
                above = len(tokens) - self.width + self.place
            trees.append((tokens, parents))
        return Drafts.trees(trees)


def run_trees(source, right, steps, table=FLAT, num_tokens=8):
    """The same as `run` for a source of trees; return the tokens drafted in each step, and tokens per second x plain."""
    context = Given(table, source, vocab_size=2 + source.width)
    drafter, slots, text = Adaptive(num_tokens=num_tokens, context=context), np.zeros(1, np.int64), np.zeros((1, 10 * steps + 10), np.int64)
    drafter.start(slots)
    drafted, length, fresh, accepted, seconds = [], 4, 4, 0, 0.0
    for step in range(steps):
        drafter.observe(CommitView(slots, slots, text, np.array([length]), np.array([fresh]), np.array([accepted])))
        drafts = drafter.propose(DraftView(slots, slots, text, np.array([length]), np.array([100])))
        tokens = drafts.tokens.tolist()
        parents = list(range(-1, len(tokens) - 1)) if drafts.parents is None else drafts.parents.tolist()
        drafted.append(tokens)
        at, accepted = -1, 0
        while accepted < right(step):
            child = next((node for node, parent in enumerate(parents) if parent == at and tokens[node] == RIGHT), None)
            if child is None:
                break
            at, accepted = child, accepted + 1
        fresh = 1 + accepted
        text[0, length : length + fresh] = RIGHT
        if right(step) <= accepted:
            text[0, length + accepted] = WRONG
        length += fresh
        seconds += seconds_of(table, 1 + len(tokens))
    drafter.finish(slots)
    assert not drafter._requests
    return drafted, (length - 4) / seconds * table[1]


def test_of_a_tree_the_places_that_are_right_are_kept():
    drafted, gain = run_trees(Bushy(), lambda _: 99, 60)
    assert drafted[0] == []  # what was right is known without verifying it
    assert all(tokens == [RIGHT] * 4 for tokens in drafted[1:])
    assert gain > 4


def test_chains_of_a_source_of_trees_are_pruned_each_by_its_own_nodes():
    """Chains have no parents, so that they are worked out: from each request's own first node."""

    class Long(Always):
        traits = DrafterTraits(shape="tree")

    drafter = Adaptive(num_tokens=3, context=Given(source=Long()))
    slots, text, lengths = np.arange(2), np.zeros((2, 100), np.int64), np.array([4, 4])
    drafter.start(slots)
    drafted = []
    for _ in range(20):
        drafts = drafter.propose(DraftView(slots, slots, text, lengths.copy(), np.array([3, 3])))
        drafted.append(drafts.offsets.tolist())
        lengths += 4
        drafter.observe(CommitView(slots, slots, text, lengths.copy(), np.array([4, 4]), np.array([3, 3])))
    assert drafted[-1] == [0, 3, 6]
    assert drafter._requests[0].rates(in_order=False) == drafter._requests[1].rates(in_order=False)


def test_drawn_siblings_are_kept_in_order():
    """What is drawn without replacement is exact only behind what was drawn before it."""
    kinds = frozenset({NodeKind.DELTA, NodeKind.WITHOUT_REPLACEMENT})
    drafted, _ = run_trees(Bushy(kinds=kinds), lambda _: 99, 60)
    assert all(tokens in ([], [2, RIGHT]) for tokens in drafted), "the first sibling never comes, so that the second is in tries alone"
    drafted, _ = run_trees(Bushy(place=0, kinds=kinds), lambda _: 99, 60)
    assert all(tokens == [RIGHT] * 4 for tokens in drafted[1:])


@pytest.mark.parametrize("table", [FLAT, STEEP], ids=["flat", "steep"])
def test_useless_trees_of_tokens_alone_are_never_verified(table):
    drafted, gain = run_trees(Bushy(), lambda _: 0, 1000, table)
    assert (set(map(len, drafted)), gain) == ({0}, pytest.approx(1.0))


@pytest.mark.parametrize("table", [FLAT, STEEP], ids=["flat", "steep"])
def test_other_useless_trees_are_tried_ever_more_rarely(table):
    source = Bushy(needs=frozenset({"model.second"}))
    drafted, gain = run_trees(source, lambda _: 0, 1000, table)
    tries = [step for step, tokens in enumerate(drafted) if tokens]
    assert [len(drafted[step]) for step in tries] == [2] * len(tries)
    assert len(source.asked) == len(tries) < 10, "a draft model is not asked in vain"
    pauses = np.diff(tries)
    assert (pauses[:3] == [4, 8, 16]).all()
    assert gain > 0.99


def test_trees_that_become_useful_are_seen_and_grown():
    source = Bushy(needs=frozenset({"model.second"}))
    drafted, _ = run_trees(source, lambda step: 0 if step < 40 else 99, 200)
    assert sum(map(len, drafted[20:40])) <= 4
    assert all(len(tokens) == 4 for tokens in drafted[-60:])


def test_a_tree_that_costs_more_than_it_gains_is_cut():
    """Of two places each right half the time both pay where steps are cheap, and fewer levels where they are dear."""
    flat, steep = ([len(tokens) for tokens in run_trees(Bushy(), lambda step: step % 3, 200, table)[0][20:]] for table in (FLAT, STEEP))
    assert np.mean(flat) > np.mean(steep)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    rates=st.lists(st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.9]), max_size=4),
    step=st.sampled_from([0.0, 0.01, 0.1, 0.3]),
    most=st.integers(0, 12),
)
def test_the_bar_is_that_of_the_best_tree_by_hand(rates, step, most):
    seconds = [1.0 + step * width for width in range(most + 1)]
    every, level = [], [1.0]  # the chance of every node of four levels, which twelve nodes of such rates do not leave but for chains
    for _ in range(12):
        level = sorted((chance * rate for chance in level for rate in rates if chance * rate), reverse=True)[:most]
        every += level
    best = sorted(every, reverse=True)[:most]
    speeds = [(1 + sum(best[:count])) / seconds[count] for count in range(len(best) + 1)]
    bar = bar_of(rates, seconds, most)
    kept = sum(chance >= bar for chance in best)
    assert speeds[kept] == pytest.approx(max(speeds) if max(speeds) > MARGIN * speeds[0] else speeds[0])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(0, 7), min_size=1, max_size=4), drawn=st.booleans(), data=st.data())
def test_what_is_kept_of_a_tree_is_a_tree_of_the_same_nodes(sizes, drawn, data):
    parents = [data.draw(st.integers(-1, node - 1)) for size in sizes for node in range(size)]
    rates = data.draw(st.lists(st.floats(0, 1), max_size=3).map(lambda found: sorted(found, reverse=True) if drawn else found))
    bar = data.draw(st.floats(0.01, 1.0))
    offsets, tokens = np.cumsum([0, *sizes]), np.arange(100, 100 + len(parents))
    drafts = Drafts(offsets, tokens, np.array(parents, dtype=np.int64), tokens % 3, tokens * 2)
    kept = [keep for begin, end in pairwise(offsets.tolist()) for keep in above_bar(parents[begin:end], rates, bar)]
    left = pruned(drafts, drafts.parents, np.array(kept, dtype=bool))
    assert left.tokens.tolist() == [token for token, keep in zip(tokens.tolist(), kept, strict=True) if keep]
    assert (left.kinds.tolist(), left.row_ids.tolist()) == ((left.tokens % 3).tolist(), (left.tokens * 2).tolist())
    for i, (begin, end) in enumerate(pairwise(offsets.tolist())):
        own = left.tokens[left.offsets[i] : left.offsets[i + 1]].tolist()
        above = left.parents[left.offsets[i] : left.offsets[i + 1]].tolist()
        for token, parent in zip(own, above, strict=True):
            before = parents[token - 100]
            assert (parent == -1) == (before == -1)
            assert parent == -1 or own[parent] == 100 + begin + before
        siblings = [[node for node in range(end - begin) if parents[begin + node] == parent] for parent in range(-1, end - begin)]
        for group in siblings if drawn else ():
            assert [kept[begin + node] for node in group] == sorted((kept[begin + node] for node in group), reverse=True)
