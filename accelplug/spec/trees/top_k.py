"""Top-k with re-ranking: grow the likeliest nodes of every level, then keep the likeliest of all.

Paper      Li et al. 2024, "EAGLE-2", arXiv 2406.16858, section 4
Output     unchanged (the verifier decides)
Needs      the draft model's rows, while drafting only: every node is chosen, none drawn
Hosts      transformers
Devices    cpu, cuda
Cost       `depth` forwards of the draft model, over `width` nodes each
Good for   greedy decoding, where the best tree is the likeliest one
Poor for   sampling at high temperature, where drawn nodes are accepted more often
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from accelplug.hooks.drafting import ROOT, NodeKind
from accelplug.hooks.options import option
from accelplug.spec.trees.nodes import Growth, Nodes


@dataclass(frozen=True, slots=True)
class TopK:
    """Draft the likeliest paths, by the product of the draft model's probabilities."""

    width: int = option(4, ge=1, le=64, help="nodes grown per level, and children of each")
    depth: int = option(5, ge=1, le=64, help="levels")
    shape: ClassVar[str] = "tree"
    kinds: ClassVar[frozenset[NodeKind]] = frozenset({NodeKind.DELTA})

    def grow(self, nodes: Nodes, budget: int) -> Growth:
        """Expand `width` nodes per level to `width` children each; keep the `budget` likeliest nodes."""
        level = [ROOT]
        for _ in range(min(self.depth, budget)):
            rows = yield level
            if rows is None:
                break
            best = rows.topk(min(self.width, rows.shape[1])).indices.tolist()
            made = [nodes.add(node, row, tokens, NodeKind.DELTA) for node, row, tokens in zip(level, rows, best, strict=True)]
            level = sorted((node for siblings in made for node in siblings), key=lambda node: -nodes.paths[node])[: self.width]
        # A child is never likelier than its parent and stands behind it, so the kept nodes keep their ancestors.
        ranked = sorted(range(len(nodes)), key=lambda node: -nodes.paths[node])
        return sorted(ranked[:budget])
