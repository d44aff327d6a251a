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
    forced: int = 0  # how many of the first nodes a grammar forces

    @classmethod
    def of(cls, drafts: Drafts, begin: int, end: int) -> Tree:
        """Take one request's nodes, ``begin`` to ``end``, out of a batch's drafts."""
        tokens = drafts.tokens[begin:end].tolist()
        if drafts.parents is None and drafts.kinds is None:
            return cls(tokens)
        parents = None if drafts.parents is None else drafts.parents[begin:end].tolist()
        kinds = None if drafts.kinds is None or not drafts.kinds[begin:end].any() else drafts.kinds[begin:end].tolist()
        row_ids = None if drafts.row_ids is None else drafts.row_ids[begin:end].tolist()
        return cls.grown(tokens, parents, kinds, row_ids, drafts.rows)

    @classmethod
    def grown(
        cls,
        tokens: list[int],
        parents: list[int] | None,
        kinds: list[int] | None = None,
        row_ids: list[int] | None = None,
        rows: Tensor | None = None,
        forced: int = 0,
    ) -> Tree:
        """Return the tree of these nodes, a chain where each is the next one's parent."""
        if parents == list(range(ROOT, len(tokens) - 1)):
            parents = None
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(parents or ()):
            children.setdefault(parent, []).append(node)
        return cls(tokens, parents, kinds, row_ids, rows, children, forced)

    def until(self, token: int, last: int) -> Tree:
        """Return a chain's nodes up to the first that is `token`; none where the `last` committed one is."""
        if last == token:
            return EMPTY
        if token not in self.tokens[:-1]:
            return self
        count = 1 + self.tokens.index(token)
        kinds, row_ids = (None if given is None else given[:count] for given in (self.kinds, self.row_ids))
        return Tree(self.tokens[:count], None, kinds, row_ids, self.rows, {}, min(self.forced, count))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def above(self) -> Sequence[int]:
        """Every node's parent, a chain's too."""
        return range(ROOT, len(self.tokens) - 1) if self.parents is None else self.parents

    def children_of(self, node: int) -> Sequence[int]:
        """Return the nodes drafted after `node` (ROOT: after the last committed token), in drawing order."""
        if self.parents is None:
            return (node + 1,) if node + 1 < len(self.tokens) else ()
        return self.children.get(node, ())

    def follow(self, node: int, token: int) -> int | None:
        """Return the child of `node` that drafted `token`, if there is one."""
        for child in self.children_of(node):
            if self.tokens[child] == token:
                return child
        return None

    def kind(self, node: int) -> int:
        """Return how the node was drawn."""
        return NodeKind.DELTA if self.kinds is None else self.kinds[node]

    def depths(self) -> list[int]:
        """Return each slot's distance from the last committed token, slot 0 included."""
        found = [0]
        for parent in self.above:
            found.append(found[parent + 1] + 1)
        return found

    def ancestors(self, width: int) -> Tensor:
        """Return which slots each slot attends to among the step's own: bool [width, width]. What lies behind the
        tree's last node fills up to the width of a batch's widest tree, and attends to itself.
        """
        seen = torch.eye(width, dtype=torch.bool)
        seen[:, 0] = True
        for node, parent in enumerate(self.above):
            if parent != ROOT:
                seen[node + 1] = seen[parent + 1]
            seen[node + 1, node + 1] = True
        return seen


EMPTY = Tree([])
