"""Best first: always grow where the next node is likeliest to be accepted.

Paper      Xiong et al. 2024, "DySpec", arXiv 2410.11744; for greedy targets Wang et al. 2024, "OPT-Tree", arXiv 2406.17276
Output     unchanged (the verifier decides)
Needs      the draft model's rows; sampled nodes carry theirs
Hosts      transformers
Devices    cpu, cuda
Cost       at most `rounds` forwards of the draft model; a heap of the nodes
Good for   draft models whose certainty varies from token to token: deep where sure, wide where not
Poor for   very small budgets, where a chain is as good and cheaper
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accelplug.hooks.drafting import ROOT, NodeKind
from accelplug.hooks.options import option
from accelplug.spec.trees.nodes import Growth, Nodes

if TYPE_CHECKING:
    from torch import Tensor


class _Slots:
    """Places for one more child, best first: (-estimated acceptance, order of arrival, parent)."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.rows: dict[int, Tensor] = {}  # parent -> its row, [vocab_size]
        self.left: dict[int, Tensor] = {}  # parent -> the row less the children drawn from it
        self.heap: list[tuple[float, int, int]] = []
        self.count = 0
        self.push(ROOT, 1.0)

    def push(self, parent: int, value: float) -> None:
        if value > 0:
            heapq.heappush(self.heap, (-value, self.count, parent))
            self.count += 1

    def unread(self, most: int) -> list[int]:
        """Return the best parents whose rows are not known yet."""
        return [parent for _, _, parent in sorted(self.heap) if parent not in self.rows][:most]

    def learn(self, parents: list[int], rows: Tensor) -> None:
        for parent, row in zip(parents, rows, strict=True):
            self.rows[parent], self.left[parent] = row, row.clone()

    def value(self, parent: int) -> float:
        """Return the next child's estimated acceptance: the likeliest one left is chosen, but a drawn one may be any of those left."""
        left = self.left[parent]
        return self.nodes.path(parent) * float(left.max() if self.nodes.draws is None else left.sum())

    def draw(self, parent: int) -> None:
        """Add a child to the parent, and make room for its next sibling and for the child's own first."""
        row, left, draws = self.rows[parent], self.left[parent], self.nodes.draws
        token = int(left.argmax()) if draws is None else draws.one(left)
        kind = NodeKind.DELTA if draws is None else NodeKind.WITHOUT_REPLACEMENT
        (child,) = self.nodes.add(parent, row, [token], kind)
        left[token] = 0
        self.push(parent, self.value(parent))
        self.push(child, self.nodes.paths[child])


@dataclass(frozen=True, slots=True)
class BestFirst:
    """Draft the nodes of highest path probability: chosen for a greedy target, drawn without replacement for a sampled one."""

    rounds: int = option(6, ge=1, le=64, help="forwards of the draft model, and so the depth")
    shape: ClassVar[str] = "tree"
    kinds: ClassVar[frozenset[NodeKind]] = frozenset({NodeKind.WITHOUT_REPLACEMENT})

    def grow(self, nodes: Nodes, budget: int) -> Growth:
        """Take the best slot until the budget is spent; read all nodes that lack a row when the best one does."""
        slots, rounds = _Slots(nodes), 0
        while slots.heap and len(nodes) < budget:
            value, order, parent = heapq.heappop(slots.heap)
            if parent in slots.rows:
                if slots.value(parent) < -value:  # it was estimated before its row was known
                    slots.push(parent, slots.value(parent))
                else:
                    slots.draw(parent)
            elif rounds < self.rounds:
                heapq.heappush(slots.heap, (value, order, parent))
                unread = slots.unread(budget - len(nodes))
                rows = yield unread
                if rows is None:
                    break
                rounds += 1
                slots.learn(unread, rows)
        return None
