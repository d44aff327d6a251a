"""Length policies: whether another forward pass of the draft model is worth it.

A policy sees what was drawn and says whether to go on. It cannot take a drawn node back: dropping one for its own
probability would change the output's distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from accelplug.hooks.drafting import ROOT
from accelplug.hooks.options import option
from accelplug.spec.trees.nodes import Nodes

POLICIES: Final = {"fixed": "accelplug.spec.lengths:Fixed", "confidence": "accelplug.spec.lengths:Confidence"}
"""What may stand in a drafter's option ``length``."""


class LengthPolicy(Protocol):
    """Decides how long a draft grows."""

    def more(self, nodes: Nodes, level: Sequence[int]) -> bool:
        """Whether to read the nodes of `level`, whose children would be drafted next."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Spend the whole budget."""

    def more(self, nodes: Nodes, level: Sequence[int]) -> bool:  # noqa: ARG002 the budget alone decides
        """Always."""
        return True


@dataclass(frozen=True, slots=True)
class Confidence:
    """Stop when the draft model is unsure of the best node it would go on from.

    :param threshold: least probability to go on at.
    :param joint: of the node and its ancestors together, rather than of the node alone.
    """

    threshold: float = option(0.4, ge=0.0, le=1.0, help="least probability to go on at")
    joint: bool = option(False, help="of the whole path rather than of its last token")

    def more(self, nodes: Nodes, level: Sequence[int]) -> bool:
        """Whether a node of the level is probable enough."""
        return max(self._probability(nodes, node) for node in level) >= self.threshold

    def _probability(self, nodes: Nodes, node: int) -> float:
        path = nodes.path(node)
        if self.joint or node == ROOT or not path:
            return path
        return path / nodes.path(nodes.parents[node])
