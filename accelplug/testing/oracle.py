"""A drafter that knows the answer: for limits, and for tests that must see acceptance of every length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from accelplug.hooks.drafting import ROOT, DrafterTraits, Drafts, DraftView, IntArray


@dataclass
class Oracle:
    """Draft the known continuation: `right` correct tokens, then `wrong` incorrect ones, cycling through the pattern.

    :param sequences: prompt and continuation of every slot, token ids, as plain decoding produced them.
    :param pattern: one ``(right, wrong)`` pair per step, repeated; slot i begins i pairs further on.
    :param vocab_size: incorrect tokens are the correct ones plus one, modulo this.
    :param width: above 1, every level of a tree has `width` siblings, the incorrect ones first.
    """

    sequences: Sequence[Sequence[int]]
    pattern: Sequence[tuple[int, int]]
    vocab_size: int
    width: int = 1
    steps: int = field(init=False, default=0)

    @property
    def traits(self) -> DrafterTraits:
        """A tree only where there are siblings."""
        return DrafterTraits(shape="tree" if self.width > 1 else "chain")

    def start(self, _slots: IntArray) -> None:
        """Begin the pattern again."""
        self.steps = 0

    def propose(self, view: DraftView) -> Drafts:
        """Draft for every request of the batch."""
        trees = [self._tree(int(slot), int(view.lengths[i]), max(0, int(view.budgets[i]))) for i, slot in enumerate(view.slots)]
        self.steps += 1
        offsets = np.cumsum([0, *(len(tokens) for tokens, _ in trees)])
        tokens = np.array([token for row, _ in trees for token in row], dtype=np.int64)
        parents = np.array([parent for _, row in trees for parent in row], dtype=np.int64)
        return Drafts(offsets, tokens, parents if self.width > 1 else None)

    def _tree(self, slot: int, length: int, budget: int) -> tuple[list[int], list[int]]:
        right, wrong = self.pattern[(self.steps + slot) % len(self.pattern)]
        known = self.sequences[slot][length : length + right + wrong]
        tokens: list[int] = []
        parents: list[int] = []
        parent = ROOT
        for i, token in enumerate(known[: budget // self.width]):
            drafted = token if i < right else (token + 1) % self.vocab_size
            siblings = [(token + 2 + j) % self.vocab_size for j in range(self.width - 1)]
            tokens += [*siblings, drafted]
            parents += [parent] * self.width
            parent = len(tokens) - 1
        return tokens, parents
