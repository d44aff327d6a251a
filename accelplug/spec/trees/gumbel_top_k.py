"""Gumbel-top-k: a tree of fixed branching, siblings drawn without replacement.

Paper      Jeon et al. 2024, "Recursive Speculative Decoding" (RSD-C), arXiv 2402.14160, section 3.2
Output     unchanged (the verifier decides)
Needs      the draft model's rows; sampled nodes carry theirs
Hosts      transformers
Devices    cpu, cuda
Cost       one forward of the draft model per level
Good for   sampling: siblings differ, and a well calibrated draft model is nearly always accepted at the first levels
Poor for   draft models whose certainty varies: the shape does not follow it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from accelplug._errors import OptionError
from accelplug.hooks.drafting import ROOT, NodeKind
from accelplug.hooks.options import option
from accelplug.spec.trees.nodes import Growth, Nodes


def grow_shape(nodes: Nodes, children: Sequence[Sequence[int]], budget: int) -> Growth:
    """Fill a shape with tokens, level by level.

    :param children: of the root, then of each node in order: the numbers of its children, in drawing order.
    :param budget: nodes from this number on are left out.
    """
    level = [(0, ROOT)]  # place in the shape (0: the root, i + 1: node i), node drawn for it
    while True:
        wanted = [[child for child in children[place] if child < budget] for place, _ in level]
        growing = [(node, own) for (_, node), own in zip(level, wanted, strict=True) if own]
        if not growing:
            return None
        rows = yield [node for node, _ in growing]
        if rows is None:
            return None
        level = []
        for (node, own), row in zip(growing, rows, strict=True):
            drawn = nodes.add_best(node, row, len(own))  # fewer where fewer tokens are possible
            level += [(child + 1, made) for child, made in zip(own, drawn, strict=False)]


@dataclass(frozen=True, slots=True)
class GumbelTopK:
    """Draft a tree in which every node of a level has as many children; `branching` counts them from the root down."""

    branching: Sequence[int] = option((2, 2, 1), help="children of every node, level by level")
    shape: ClassVar[str] = "tree"
    kinds: ClassVar[frozenset[NodeKind]] = frozenset({NodeKind.WITHOUT_REPLACEMENT})

    def __post_init__(self) -> None:
        counts = self.branching
        if not isinstance(counts, list | tuple) or not counts or not all(type(count) is int and count > 0 for count in counts):
            raise OptionError(f"gumbel_top_k: branching={counts!r} is no list of whole numbers above 0; write it like branching=[2, 2, 1]")

    def grow(self, nodes: Nodes, budget: int) -> Growth:
        """Draw the children of one level per forward pass."""
        children: list[list[int]] = [[]]  # of the root, then of each node
        level = [0]
        for count in self.branching:
            below = []
            for place in level if len(children) <= budget else ():
                children[place] = list(range(len(children) - 1, len(children) - 1 + count))
                below += [child + 1 for child in children[place]]
                children += [[] for _ in range(count)]
            level = below
        return (yield from grow_shape(nodes, children, budget))
