"""Stochastic beam: a beam search over perturbed probabilities, whose beams are a sample without replacement of paths.

Paper      Jeon et al. 2024, "Recursive Speculative Decoding" (RSD-S), arXiv 2402.14160, section 3.3; Kool et al. 2019, arXiv 1903.06059
Output     unchanged (the verifier decides)
Needs      the draft model's rows; sampled nodes carry theirs
Hosts      transformers
Devices    cpu, cuda
Cost       `depth` forwards of the draft model, over `width` nodes each
Good for   sampling, where certainty varies from token to token: unlikely beginnings are given up early
Poor for   greedy decoding, where re-ranked top_k keeps better nodes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accelplug.hooks.drafting import ROOT, NodeKind
from accelplug.hooks.options import option
from accelplug.spec.trees.nodes import Growth, Nodes

if TYPE_CHECKING:
    from torch import Tensor


def truncated(scores: Tensor, maximum: Tensor) -> Tensor:
    """Shift perturbed log-probabilities [n, vocab_size] so that every row's largest is `maximum` [n, 1], as if they had been
    drawn under that condition. Source: Kool et al. 2019, appendix B.3.
    """
    import torch

    highest = scores.max(-1, keepdim=True).values
    v = maximum - scores + torch.log1p(-(scores - highest).exp())
    return maximum - v.clamp(min=0) - torch.log1p((-v.abs()).exp())


@dataclass(frozen=True, slots=True)
class StochasticBeam:
    """Draft `width` nodes per level: the best perturbed ones for a sampled target, the likeliest paths for a greedy one."""

    width: int = option(3, ge=1, le=64, help="nodes per level")
    depth: int = option(4, ge=1, le=64, help="levels")
    shape: ClassVar[str] = "tree"
    kinds: ClassVar[frozenset[NodeKind]] = frozenset({NodeKind.WITHOUT_REPLACEMENT})

    def grow(self, nodes: Nodes, budget: int) -> Growth:
        """Grow every beam by one token per forward pass, and keep the best over all beams."""
        beams, above = [ROOT], None
        for _ in range(self.depth):
            count = min(self.width, budget - len(nodes))
            rows = (yield beams) if count and beams else None
            if rows is None:
                break
            paths = rows.new_tensor([nodes.path(beam) for beam in beams]).log().unsqueeze(1) + rows.log()
            scores = paths
            if nodes.draws is not None:
                scores = paths + nodes.draws.gumbel(paths)
                scores = scores if above is None else truncated(scores, above)
            beams, above = self._keep(nodes, beams, rows, scores, count)
        return None

    def _keep(self, nodes: Nodes, beams: list[int], rows: Tensor, scores: Tensor, count: int) -> tuple[list[int], Tensor]:
        """Add the `count` best children; return them with their scores [num_children, 1]."""
        kind = NodeKind.DELTA if nodes.draws is None else NodeKind.WITHOUT_REPLACEMENT
        vocab_size, own = rows.shape[1], list(rows)  # each row once, since siblings share it
        best = scores.flatten().topk(min(count, scores.numel()))
        possible = best.values.isfinite()
        made = []
        for place in best.indices[possible].tolist():  # siblings among them in drawing order, which is that of their scores
            made += nodes.add(beams[place // vocab_size], own[place // vocab_size], [place % vocab_size], kind)
        return made, best.values[possible].unsqueeze(1)
