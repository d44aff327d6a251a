"""Token recycling: draft a tree of the tokens that the target model lately thought likely after each token.

Paper      Luo et al. 2024, "Turning Trash into Treasure", arXiv 2408.08696
Output     unchanged (the verifier decides)
Needs      the target's top-k after every verified node; trees, or shape="chain"
Hosts      transformers
Devices    cpu, cuda
Cost       host: under a microsecond per drafted node; memory: one row of k ids for each token verified so far
Good for   any text, long answers above all: it needs no repetition, and learns from rejected drafts too
Poor for   short answers, since it starts from nothing; large batches, where wide trees are not free
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from accelplug.hooks.drafting import ROOT, CommitView, DrafterTraits, Drafts, DraftView, IntArray
from accelplug.hooks.options import option

Template = list[tuple[int, int]]
"""Nodes as (parent node, rank among the parent's likeliest), parents first."""


def template(num_nodes: int, depth: int, k: int) -> Template:
    """Return the best tree of a size if the r-th likeliest token is right about 0.6 / r^1.5 of the time.

    Best first over the products of these chances along each path, so that every beginning of it is the best tree of
    that smaller size; ranks count from 0.
    """
    heap = [(-_chance(0), 0, 1, ROOT, 0)]  # (-chance of the path, order of discovery, depth, parent, rank)
    found: Template = []
    order = 0
    while heap and len(found) < num_nodes:
        chance, _, level, parent, rank = heapq.heappop(heap)
        node = len(found)
        found.append((parent, rank))
        if rank + 1 < k:
            order += 1
            heapq.heappush(heap, (chance / _chance(rank) * _chance(rank + 1), order, level, parent, rank + 1))
        if level < depth:
            order += 1
            heapq.heappush(heap, (chance * _chance(0), order, level + 1, node, 0))
    return found


def _chance(rank: int) -> float:
    return 0.6 / math.pow(rank + 1, 1.5)


class _Successors:
    """One request's matrix, sparse: token -> its likeliest successors, for the tokens verified lately."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.rows: OrderedDict[int, Sequence[int]] = OrderedDict()

    def learn(self, tokens: Iterable[int], top: Iterable[Sequence[int]]) -> None:
        """Take the newest row of every token; drop the tokens not seen for longest."""
        for token, row in zip(tokens, top, strict=True):
            self.rows[token] = row
            self.rows.move_to_end(token)
        while len(self.rows) > self.most:
            self.rows.popitem(last=False)

    def grow(self, shape: Template, root: int, budget: int) -> tuple[list[int], list[int]]:
        """Fill the template from `root` down, without what hangs below tokens never seen; return tokens and parents."""
        tokens: list[int] = []
        parents: list[int] = []
        drafted = [ROOT] * len(shape)  # template node -> drafted node
        rows = [self.rows.get(root), *[None] * len(shape)]  # template node + 1 -> what follows it
        for node, (parent, rank) in enumerate(shape):
            row = rows[parent + 1]
            if row is None or rank >= len(row):
                continue
            if len(tokens) >= budget:
                break
            token = row[rank]
            drafted[node] = len(tokens)
            parents.append(ROOT if parent == ROOT else drafted[parent])
            tokens.append(token)
            rows[node + 1] = self.rows.get(token)
        return tokens, parents


@dataclass(slots=True)
class TokenRecycling:
    """Follow each token with its likeliest successors as the target last saw them; nothing crosses requests."""

    num_nodes: int = option(80, ge=1, le=512, help="nodes of the tree")
    depth: int = option(6, ge=1, le=32, help="levels of the tree")
    k: int = option(8, ge=1, le=64, help="successors remembered for each token")
    shape: Literal["chain", "tree"] = option("tree", help="'tree', or 'chain' of each token's likeliest successor for hosts without trees")
    max_rows: int = option(16384, ge=1, help="tokens remembered for each request; about 0.4 KB each")
    _template: Template = field(init=False, repr=False)
    _slots: dict[int, _Successors] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._template = template(self.num_nodes, self.depth, self.traits.top_k)

    @property
    def traits(self) -> DrafterTraits:
        """A chain needs each token's likeliest successor alone."""
        return DrafterTraits(shape=self.shape, top_k=self.k if self.shape == "tree" else 1, continues=True)

    def start(self, slots: IntArray) -> None:
        """Begin with nothing learned in each slot."""
        for slot in slots.tolist():
            self._slots[slot] = _Successors(self.max_rows)

    def finish(self, slots: IntArray) -> None:
        """Forget what each slot learned."""
        for slot in slots.tolist():
            self._slots.pop(slot, None)

    def observe(self, view: CommitView) -> None:
        """Learn from every verified node, accepted or not; of a token's several rows the last in the tree's order."""
        if view.verified is None:
            return
        tokens, top = view.verified.tokens.tolist(), view.verified.top.tolist()
        bounds = view.verified.offsets.tolist()
        for i, slot in enumerate(view.slots.tolist()):
            begin, end = bounds[i], bounds[i + 1]
            self._slots[slot].learn(tokens[begin:end], top[begin:end])

    def propose(self, view: DraftView) -> Drafts:
        """Fill the template below each request's last token."""
        budgets = view.budgets.tolist()
        return Drafts.trees(
            [self._slots[slot].grow(self._template, int(view.history(i)[-1]), budgets[i]) for i, slot in enumerate(view.slots.tolist())]
        )
