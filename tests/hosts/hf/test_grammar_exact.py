"""What a grammar does to drafts leaves the distribution as it is: every outcome of a step, by enumeration."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from accelplug.hooks import NodeKind
from accelplug.hosts.hf.guided import merged, pruned
from accelplug.hosts.hf.tree import Tree
from accelplug.testing.enumeration import Context, Enumeration, Judged, Table, error, step, table
from accelplug.testing.plans import PLANS, Grow, S, W

EXACT, WRONG = 1e-12, 1e-3
MASKED = table(4, masked=True)  # one token of three is forbidden, another one from context to context
RULES = {
    "token_wise": lambda _: True,
    "block": lambda levels: all(len(level) == 1 for level in levels),
    "traversal": lambda _: True,
    "k_seq": lambda levels: not any(W in level for level in levels),
}
EVENTS: dict[str, Counter[str]] = {rule: Counter() for rule in RULES}
CASES = [(rule, plan) for rule, fits in RULES.items() for plan, levels in PLANS.items() if levels and fits(levels)]


@dataclass
class TableMatcher:
    """A grammar that allows what the table gives a chance, behind a context."""

    table: Table
    context: Context

    def validate(self, tokens: Any) -> int:
        context = self.context
        for count, token in enumerate(tokens):
            if not float(self.table(context)[token]):
                return count
            context = (*context, token)
        return len(tokens)


@dataclass
class Pruned:
    """Another draft, as a grammar leaves it."""

    inner: Any
    events: Counter[str]
    table: Table = MASKED

    @property
    def depth(self) -> int:
        return self.inner.depth

    def __call__(self, chance: Enumeration, context: Context, budget: int) -> Tree:
        tree = self.inner(chance, context, budget)
        kept = pruned(tree, TableMatcher(self.table, context))
        self.events["cut"] += len(tree) - len(kept)
        self.events["whole"] += len(tree) == len(kept)
        self.events["illegal leaf kept"] += len(kept) > len(pruned(deterministic(tree), TableMatcher(self.table, context)))
        return kept


def deterministic(tree: Tree) -> Tree:
    return dataclasses.replace(tree, kinds=None)


@pytest.mark.parametrize("data_dependent", [False, True], ids=["fixed", "data dependent"])
@pytest.mark.parametrize(("rule", "plan"), CASES)
def test_pruning_is_exact(rule, plan, data_dependent):
    judged, draft = Judged(), Pruned(Grow(PLANS[plan], data_dependent), EVENTS[rule])
    assert error(MASKED, step(MASKED, draft, rule, judged=judged)) < EXACT
    EVENTS[rule]["accepted in part"] += sum(count for (kept, levels), count in judged.ends.items() if 0 < kept < levels)


@pytest.mark.parametrize("rule", RULES)
def test_drafts_were_cut_and_kept(rule):
    print(rule, dict(EVENTS[rule]))
    assert min(EVENTS[rule][event] for event in ("cut", "whole", "illegal leaf kept", "accepted in part")) > 10


@dataclass
class PrunedAltogether(Pruned):
    """The mistake: illegal draws are left out as if nothing had been drawn."""

    def __call__(self, chance: Enumeration, context: Context, budget: int) -> Tree:
        tree = self.inner(chance, context, budget)
        kept = pruned(deterministic(tree), TableMatcher(self.table, context))
        return dataclasses.replace(kept, kinds=(tree.kinds or [])[: len(kept)])  # all of one kind here


@pytest.mark.parametrize("rule", ["token_wise", "block", "traversal"])
def test_enumeration_catches_that_illegal_draws_are_left_out(rule):
    draft = PrunedAltogether(Grow([[S], [S]]), Counter())
    off = error(MASKED, step(MASKED, draft, rule))
    print(f"{rule}: total variation {off:.4f}")
    assert off > WRONG


@dataclass
class Behind:
    """Forced tokens before another draft of point masses: here the grammar allows one token at the first level."""

    inner: Any
    forced: list[int]

    @property
    def depth(self) -> int:
        return self.inner.depth

    def __call__(self, chance: Enumeration, context: Context, budget: int) -> Tree:
        tree = self.inner(chance, context, budget)
        return merged(self.forced, pruned(tree, TableMatcher(FORCING, context)), 64)


def _forcing(context: Context) -> Any:
    row = table(1)(context)
    if not context:
        row = row.clone()
        row[[0, 2]] = 0
        row = row / row.sum()
    return row


FORCING: Table = _forcing


@pytest.mark.parametrize("rule", ["token_wise", "traversal"])
@pytest.mark.parametrize("forced", [[1], [1, 0], [1, 2]], ids=str)
@pytest.mark.parametrize("plan", ["delta chain", "delta tree"])
def test_forced_tokens_are_exact_whether_certain_or_guessed(rule, forced, plan):
    """The second forced token is a guess here: a split of forced bytes that the model need not choose."""
    judged = Judged()
    assert error(FORCING, step(FORCING, Behind(Grow(PLANS[plan]), forced), rule, judged=judged)) < EXACT
    assert judged.nodes["accepted", 1, NodeKind.DELTA]
    assert not judged.nodes["rejected", 1, NodeKind.DELTA], "an illegal first node was verified"
    if len(forced) > 1:
        assert judged.nodes["accepted", 2, NodeKind.DELTA]
        assert judged.nodes["rejected", 2, NodeKind.DELTA]
