"""A drafter that knows the answer: for limits, and for tests that must see acceptance of every length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from accelplug.hooks.drafting import ROOT, DrafterTraits, Drafts, DraftView, IntArray


@dataclass
class Oracle:
    """Draft the known continuation: `right` correct tokens, then `wrong` incorrect ones, cycling through the pattern.

    :param sequence: prompt and continuation, token ids, as plain decoding produced them.
    :param pattern: one ``(right, wrong)`` pair per step, repeated.
    :param vocab_size: incorrect tokens are the correct ones plus one, modulo this.
    :param width: above 1, every level of a tree has `width` siblings, the incorrect ones first.
    """

    sequence: Sequence[int]
    pattern: Sequence[tuple[int, int]]
    vocab_size: int
    width: int = 1
    steps: int = field(init=False, default=0)

    traits: ClassVar[DrafterTraits] = DrafterTraits(shape="tree")

    def start(self, _slots: IntArray) -> None:
        """Begin the pattern again."""
        self.steps = 0

    def propose(self, view: DraftView) -> Drafts:
        """Draft for a batch of one request."""
        right, wrong = self.pattern[self.steps % len(self.pattern)]
        self.steps += 1
        length = int(view.lengths[0])
        known = list(self.sequence[length : length + right + wrong])
        chain = [token if i < right else (token + 1) % self.vocab_size for i, token in enumerate(known)]
        if self.width == 1:
            return Drafts.chains([chain[: max(0, int(view.budgets[0]))]])
        return self._tree(chain, int(view.budgets[0]))

    def _tree(self, chain: Sequence[int], budget: int) -> Drafts:
        tokens, parents, parent = [], [], ROOT
        for token in chain[: max(0, budget) // self.width]:
            siblings = [(token + 1 + i) % self.vocab_size for i in range(self.width - 1)]
            tokens += [*siblings, token]
            parents += [parent] * self.width
            parent = len(tokens) - 1
        return Drafts(np.array([0, len(tokens)]), np.array(tokens, dtype=np.int64), np.array(parents, dtype=np.int64))
