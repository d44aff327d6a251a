"""Sequoia: the one shape of tree that gains most, given how often each sibling is the accepted one.

Paper      Chen et al. 2024, "Sequoia", arXiv 2402.12374, section 4.1
Output     unchanged (the verifier decides)
Needs      the draft model's rows; sampled nodes carry theirs
Hosts      transformers
Devices    cpu, cuda
Cost       one forward of the draft model per level; the shape is found once per number of nodes
Good for   a pair of models whose acceptance was measured, and large budgets
Poor for   prompts that differ much from those it was measured on
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

from accelplug._errors import OptionError
from accelplug.hooks.drafting import NodeKind
from accelplug.hooks.options import option
from accelplug.spec.trees.gumbel_top_k import grow_shape
from accelplug.spec.trees.nodes import Growth, Nodes


def best_shape(acceptance: Sequence[float], num_nodes: int, depth: int) -> list[list[int]]:
    """Return the children of the root and of each node, in the tree of greatest expected accepted length.

    :param acceptance: of the k-th sibling: how often it is the one accepted, whatever its parent.
    :param depth: most levels.
    Source: dynamic programming over (children so far, nodes left, levels left), Sequoia section 4.1.
    """

    @cache
    def gain(k: int, left: int, levels: int) -> tuple[float, int]:
        """Return what the children from the k-th on gain with `left` nodes, and how many of these the k-th's subtree takes."""
        if k == len(acceptance) or not left or not levels:
            return 0.0, 0
        sizes = range(1, left + 1)
        gains = [acceptance[k] * (1.0 + gain(0, size - 1, levels - 1)[0]) + gain(k + 1, left - size, levels)[0] for size in sizes]
        best = max(range(left), key=gains.__getitem__)
        return gains[best], sizes[best]

    children: list[list[int]] = [[]]
    grown = [(0, num_nodes, depth)]  # place, nodes below it, levels below it
    for place, below, levels in grown:
        k, left = 0, below
        while size := gain(k, left, levels)[1]:
            children[place].append(len(children) - 1)
            grown.append((len(children), size - 1, levels - 1))
            children.append([])
            k, left = k + 1, left - size
    return children


@dataclass(frozen=True, slots=True)
class Sequoia:
    """Draft a tree of the best shape; `acceptance` says how often the first, second, ... sibling is the accepted one.

    ``session.stats.sibling_acceptance`` has it after a run with wide trees, such as ``gumbel_top_k(branching=[4, 2])``.
    """

    acceptance: Sequence[float] = option(
        (0.7, 0.15, 0.06, 0.03), help="how often each sibling is the accepted one, best first: stats.sibling_acceptance of a run with wide trees"
    )
    depth: int = option(8, ge=1, le=32, help="most levels")
    shape: ClassVar[str] = "tree"
    kinds: ClassVar[frozenset[NodeKind]] = frozenset({NodeKind.WITHOUT_REPLACEMENT})
    _shapes: dict[int, list[list[int]]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        chances = self.acceptance
        numbers = isinstance(chances, list | tuple) and all(type(chance) in {int, float} and chance > 0 for chance in chances)
        if not numbers or not chances or sum(chances) > 1 or sorted(chances, reverse=True) != list(chances):
            raise OptionError(f"sequoia: acceptance={chances!r} is no falling list of chances; write it like acceptance=[0.7, 0.15, 0.05]")

    def grow(self, nodes: Nodes, budget: int) -> Growth:
        """Draw the children of one level per forward pass."""
        if budget not in self._shapes:
            self._shapes[budget] = best_shape(self.acceptance, budget, self.depth)
        return (yield from grow_shape(nodes, self._shapes[budget], budget))
