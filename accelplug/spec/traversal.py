"""Traversal verification: judge a tree from its leaves up, so that a whole branch is tried before its first token is given up.

Paper      Weng et al. 2025, "Traversal Verification for Speculative Tree Decoding", arXiv 2505.12398
Output     unchanged under greedy decoding; unchanged in distribution under sampling
Needs      the probability row of every sampled draft node
Hosts      transformers, vllm (chains)
Devices    cpu, cuda
Cost       one subtraction over the vocabulary and two waits for the device per node that is visited; on vllm no wait
Good for   trees of sampled nodes; on a chain it is block verification
Poor for   deterministic drafts, where token_wise accepts as much
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accelplug.hooks.drafting import ROOT, NodeKind
from accelplug.hooks.verifying import ChainsChoice, ChainsView, Choice, PathView, VerifierTraits, without
from accelplug.spec.block import Block

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Traversal:
    """Accept the first path, in depth-first order from the leaves, that passes; any mix of node kinds among siblings."""

    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless="sampling")

    def choose(self, view: PathView) -> Choice:
        """Return the first path accepted, and what the rejected branches left to draw from."""
        choice = self._visit(view, ROOT, 1.0, ())
        assert choice is not None  # the empty path has to be kept with probability one
        return choice

    def choose_on_device(self, view: ChainsView) -> ChainsChoice:
        """Return the same on chains, where it is block verification."""
        return Block().choose_on_device(view)

    def _visit(self, view: PathView, node: int, keep: float, path: tuple[int, ...]) -> Choice | None:
        """Return a path through `node`, which has to be kept with probability `keep`; None if it is not."""
        import torch

        if keep <= 0.0:
            return None
        target = view.target[node + 1]
        rows: dict[int, Tensor] = {}  # what the earlier siblings left of each draft row
        for child in view.children(node):
            drawn, token = _drawn(view, child, rows), view.tokens[child]
            wanted, likely = torch.stack((target[token], drawn[token])).tolist()
            through = min(1.0, keep * wanted / likely) if likely > 0 else 0.0
            if (choice := self._visit(view, child, through, (*path, child))) is not None:
                return choice
            left = (keep * target - drawn).clamp(min=0)
            total = float(left.sum())
            if total > 0:
                target = left / total
            keep = total / (total + 1.0 - keep) if keep < 1.0 else 1.0
        return Choice(path, target) if node == ROOT or view.below(keep) else None


def _drawn(view: PathView, node: int, rows: dict[int, Tensor]) -> Tensor:
    """Return what the node was drawn from after its earlier siblings; take the node itself out if later ones cannot be it."""
    import torch

    if view.kinds[node] != NodeKind.WITHOUT_REPLACEMENT or view.row_ids is None:
        return view.drawn_from(node)
    row = view.row_ids[node]
    drawn = rows.get(row, view.drawn_from(node))
    (rows[row],) = without(drawn[None], torch.tensor([view.tokens[node]], device=drawn.device))
    return drawn
