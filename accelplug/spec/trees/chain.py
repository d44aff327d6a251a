"""Chain: one token after the other, as the draft model itself would decode.

Paper      Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318
Output     unchanged (the verifier decides)
Needs      the draft model's rows; sampled nodes carry theirs
Hosts      transformers
Devices    cpu, cuda
Cost       one forward of the draft model per token
Good for   draft models that are right most of the time
Poor for   uncertain ones, whose first mistake wastes the rest
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from accelplug.hooks.drafting import ROOT, NodeKind
from accelplug.spec.trees.nodes import Growth, Nodes


@dataclass(frozen=True, slots=True)
class Chain:
    """Draft a chain: the likeliest tokens for a greedy target, drawn ones for a sampled one."""

    shape: ClassVar[str] = "chain"
    kinds: ClassVar[frozenset[NodeKind]] = frozenset({NodeKind.SAMPLED})

    def grow(self, nodes: Nodes, budget: int) -> Growth:
        """Draw one node per forward pass."""
        last = ROOT
        while len(nodes) < budget:
            rows = yield [last]
            if rows is None:
                break
            if nodes.draws is None:
                (last,) = nodes.add(last, rows[0], [int(rows[0].argmax())], NodeKind.DELTA)
            else:
                (last,) = nodes.add(last, rows[0], [nodes.draws.one(rows[0])], NodeKind.SAMPLED)
        return None
