"""Drafts for the enumeration: trees of every mixture of node kinds, drawn as the kinds say or, on purpose, otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from accelplug.hooks.drafting import ROOT, NodeKind
from accelplug.hosts.hf.tree import Tree
from accelplug.testing.enumeration import VOCAB, Context, Enumeration, Table, table

D, S, W = NodeKind.DELTA, NodeKind.SAMPLED, NodeKind.WITHOUT_REPLACEMENT
Plan = Sequence[Sequence[NodeKind]]
"""The kinds of the siblings at each depth, in drawing order."""

PLANS: Final[Mapping[str, Plan]] = {
    "no drafts": [],
    "delta chain": [[D], [D]],
    "sampled chain": [[S], [S]],
    "chain without replacement": [[W], [W]],
    "delta then sampled": [[D], [S]],
    "sampled then delta": [[S], [D]],
    "delta tree": [[D, D], [D, D]],
    "independent siblings": [[S, S], [S]],
    "independent siblings below": [[S], [S, S]],
    "three independent siblings": [[S, S, S]],
    "delta among independent siblings": [[S, D, S]],
    "independent behind delta": [[D, S], [S]],
    "siblings without replacement": [[W, W], [W]],
    "siblings without replacement below": [[W], [W, W]],
    "all siblings without replacement": [[W, W, W]],
    "all siblings without replacement below": [[D], [W, W, W]],
    "delta behind without replacement": [[W, D], [D, S]],
    "without replacement behind delta": [[D, W], [W, D]],
    "all three kinds": [[S, D, W]],
}
"""As few as have every kind at both levels, alone and among its like, for rules of any shape and kinds. Two siblings drawn at both
levels would say nothing more and take ten times as long."""


@dataclass
class Grow:
    """Drafts a tree as planned.

    :param data_dependent: a node whose token is even gets only the first sibling below it.
    :param relabel: what every node is called, whatever it is: a lie about its kind.
    :param drop_below: nodes with a smaller draft probability are left out: a lie about how they were drawn.
    """

    plan: Plan
    data_dependent: bool = False
    relabel: NodeKind | None = None
    drop_below: float = 0.0
    drafter: Table = field(default_factory=lambda: table(2))

    @property
    def depth(self) -> int:
        """How many levels are planned."""
        return len(self.plan)

    def __call__(self, chance: Enumeration, context: Context, budget: int) -> Tree:
        """Draft at most `budget` levels after `context`."""
        grown = _Nodes(chance, min(len(self.plan), budget))
        self._grow(grown, ROOT, context, 0)
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(grown.parents):
            children.setdefault(parent, []).append(node)
        rows = torch.stack(grown.rows) if grown.rows else None
        return Tree(grown.tokens, grown.parents, grown.kinds, grown.row_ids, rows, children)

    def _grow(self, grown: _Nodes, parent: int, context: Context, depth: int) -> None:
        if depth >= grown.levels:
            return
        siblings = self.plan[depth]
        if self.data_dependent and context and context[-1] % 2 == 0:
            siblings = siblings[:1]
        first = len(grown.tokens)
        self._draw(grown, parent, siblings, self.drafter(context))
        for node in range(first, len(grown.tokens)):
            self._grow(grown, node, (*context, grown.tokens[node]), depth + 1)

    def _draw(self, grown: _Nodes, parent: int, kinds: Sequence[NodeKind], row: Tensor) -> None:
        grown.rows.append(row)
        left, used = row.clone(), set[int]()
        for kind in kinds:
            token = _pick(grown.chance, kind, row, left, used)
            if row[token] < self.drop_below:
                continue
            used.add(token)
            if kind == W:
                left[token] = 0
                left = left / left.sum()
            grown.add(token, parent, kind if self.relabel is None else self.relabel)


def possible_ends(grow: Grow) -> set[tuple[int, int]]:
    """Return the (nodes accepted, levels drafted) that a useful rule brings about: where every token was drafted, one is accepted."""
    levels = grow.depth
    return {(kept, levels) for kept in range(levels + 1) if kept == levels or grow.plan[kept].count(W) < VOCAB}


@dataclass
class _Nodes:
    """The nodes so far. Parents stand before their children, siblings in drawing order."""

    chance: Enumeration
    levels: int
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    row_ids: list[int] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)

    def add(self, token: int, parent: int, kind: NodeKind) -> None:
        """Add a node drawn from the newest row."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.kinds.append(int(kind))
        self.row_ids.append(len(self.rows) - 1)


def _pick(chance: Enumeration, kind: NodeKind, row: Tensor, left: Tensor, used: set[int]) -> int:
    if kind == D:
        return next(int(token) for token in row.argsort(descending=True).tolist() if token not in used)
    return chance.choose((left if kind == W else row).tolist())
