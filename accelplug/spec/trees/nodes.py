"""One request's draft while a tree policy grows it, and where its random numbers come from."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from accelplug.hooks.drafting import ROOT, Drafts, NodeKind

if TYPE_CHECKING:
    from torch import Tensor


class Draws:
    """Random draws from probability rows, out of torch's default generator, as hosts take theirs."""

    def one(self, weights: Tensor) -> int:
        """Draw a token from `weights` [vocab_size], which need not add up to 1."""
        import torch

        return int(torch.multinomial(weights, 1))

    def several(self, row: Tensor, count: int) -> list[int]:
        """Draw `count` tokens without replacement from `row` [vocab_size], in drawing order; fewer where fewer have a probability.

        The Gumbel-top-k trick (Kool et al. 2019, arXiv 1903.06059), in its exponential form.
        """
        import torch

        race = row / torch.empty_like(row).exponential_()
        keys, tokens = race.topk(min(count, len(row)))
        drawn: list[int] = tokens[keys > 0].tolist()
        return drawn

    def gumbel(self, scores: Tensor) -> Tensor:
        """Return standard Gumbel noise of the shape of `scores`."""
        import torch

        return -torch.empty_like(scores).exponential_().log()


@dataclass(slots=True)
class Nodes:
    """The nodes drawn so far, parents before children. `paths[i]` is the draft's probability of node i and its ancestors.

    :param draws: None drafts for a greedy target: every node is chosen, none drawn.
    """

    draws: Draws | None
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    kinds: list[NodeKind] = field(default_factory=list)
    row_ids: list[int] = field(default_factory=list)
    paths: list[float] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)  # [vocab_size] each

    def __len__(self) -> int:
        return len(self.tokens)

    def path(self, node: int) -> float:
        """Return the draft's probability of the node and its ancestors; 1 for ROOT."""
        return 1.0 if node == ROOT else self.paths[node]

    def add(self, parent: int, row: Tensor, tokens: Sequence[int], kind: NodeKind) -> list[int]:
        """Append siblings that were drawn from `row` [vocab_size], in drawing order; return their numbers."""
        first, path = len(self.tokens), self.path(parent)
        row_id = -1
        if kind != NodeKind.DELTA and len(tokens):
            row_id = next((i for i, known in enumerate(self.rows) if known is row), len(self.rows))
            if row_id == len(self.rows):
                self.rows.append(row)
        self.tokens += tokens
        self.parents += [parent] * len(tokens)
        self.kinds += [kind] * len(tokens)
        self.row_ids += [row_id] * len(tokens)
        self.paths += [path * p for p in (row[list(tokens)].tolist() if len(tokens) else ())]
        return list(range(first, len(self.tokens)))

    def add_best(self, parent: int, row: Tensor, count: int) -> list[int]:
        """Append the `count` best siblings: the likeliest for a greedy target, drawn without replacement for a sampled one."""
        if self.draws is None:
            return self.add(parent, row, row.topk(min(count, len(row))).indices.tolist(), NodeKind.DELTA)
        return self.add(parent, row, self.draws.several(row, count), NodeKind.WITHOUT_REPLACEMENT)


def drafts_of(grown: Sequence[tuple[Nodes, Sequence[int] | None] | None]) -> Drafts:
    """Lay the requests' nodes out behind each other.

    :param grown: each request's nodes with those of them to keep, None for all; None for a request that drafts nothing.
    """
    import torch

    offsets, flat = [0], []
    rows: list[Tensor] = []
    for each in grown:
        if each is not None:
            nodes, chosen = each
            kept = range(len(nodes)) if chosen is None else chosen
            place = {ROOT: ROOT} | {node: i for i, node in enumerate(kept)}
            for node in kept:
                row_id = nodes.row_ids[node] + len(rows) if nodes.row_ids[node] >= 0 else ROOT
                flat.append((nodes.tokens[node], place[nodes.parents[node]], nodes.kinds[node], row_id))
            rows += nodes.rows
        offsets.append(len(flat))
    tokens, parents, kinds, row_ids = np.array(flat, dtype=np.int64).reshape(-1, 4).T
    return Drafts(np.array(offsets), tokens, parents, kinds, row_ids, torch.stack(rows) if rows else None)


Growth = Generator[list[int], "Tensor | None", "list[int] | None"]
"""What a policy's `grow` is: it yields nodes to be read by the draft model (ROOT at first) and is sent their rows
[num_nodes, vocab_size], or None to stop there. It returns the nodes to keep, or None for all.
"""


class TreePolicy(Protocol):
    """Grows one request's draft. The only place that decides how a node is drawn.

    `kinds` are those it draws for sampled targets; for greedy ones all nodes are DELTA.
    """

    kinds: frozenset[NodeKind]

    def grow(self, nodes: Nodes, budget: int) -> Growth:
        """Draw at most `budget` nodes. What was drawn by chance must not be dropped again, whatever it turned out to be."""
