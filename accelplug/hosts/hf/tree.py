"""One request's draft nodes as the decoding loop walks them, and the masks they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from accelplug.hooks.drafting import ROOT, Drafts, NodeKind


@dataclass(frozen=True, slots=True)
class Tree:
    """Draft nodes of one request. Slot 0 of the forward pass is the last committed token, slot i + 1 is node i."""

    tokens: list[int]
    parents: list[int] | None = None  # None: a chain
    kinds: list[int] | None = None  # None: all DELTA
    row_ids: list[int] | None = None
    rows: Tensor | None = None  # [num_rows, vocab_size]
    children: dict[int, list[int]] = field(default_factory=dict)  # parent -> nodes in drawing order; empty for a chain

    @classmethod
    def of(cls, drafts: Drafts) -> Tree:
        """Take the drafts of a batch of one request."""
        tokens = drafts.tokens.tolist()
        if drafts.parents is None and drafts.kinds is None:
            return cls(tokens)
        parents = None if drafts.parents is None else drafts.parents.tolist()
        if parents == list(range(ROOT, len(tokens) - 1)):
            parents = None
        kinds = None if drafts.kinds is None or not drafts.kinds.any() else drafts.kinds.tolist()
        row_ids = None if drafts.row_ids is None else drafts.row_ids.tolist()
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(parents or ()):
            children.setdefault(parent, []).append(node)
        return cls(tokens, parents, kinds, row_ids, drafts.rows, children)

    def __len__(self) -> int:
        return len(self.tokens)

    def children_of(self, node: int) -> Sequence[int]:
        """Return the nodes drafted after `node` (ROOT: after the last committed token), in drawing order."""
        if self.parents is None:
            return (node + 1,) if node + 1 < len(self.tokens) else ()
        return self.children.get(node, ())

    def kind(self, node: int) -> int:
        """Return how the node was drawn."""
        return NodeKind.DELTA if self.kinds is None else self.kinds[node]

    def depths(self) -> list[int]:
        """Return each slot's distance from the last committed token, slot 0 included."""
        found = [0]
        for node in range(len(self.tokens)):
            parent = node - 1 if self.parents is None else self.parents[node]
            found.append(found[parent + 1] + 1)
        return found

    def ancestors(self) -> Tensor:
        """Return which slots each slot attends to among the tree's own: bool [1 + num_nodes, 1 + num_nodes]."""
        size = len(self.tokens) + 1
        seen = torch.zeros(size, size, dtype=torch.bool)
        seen[:, 0] = True
        for node, parent in enumerate(self.parents or range(ROOT, size - 2)):
            if parent != ROOT:
                seen[node + 1] = seen[parent + 1]
            seen[node + 1, node + 1] = True
        return seen


EMPTY = Tree([])
