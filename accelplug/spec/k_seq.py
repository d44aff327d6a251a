"""K-sequential selection: judge all siblings that were drawn from one row together (SpecTr).

Paper      Sun et al. 2023, "SpecTr: Fast Speculative Decoding via Optimal Transport", arXiv 2310.15141, algorithm 3
Output     unchanged under greedy decoding; unchanged in distribution under sampling
Needs      siblings drawn independently, with their row; other SAMPLED and DELTA nodes are judged one after the other
Hosts      transformers, vllm (chains)
Devices    cpu, cuda
Cost       16 passes over the vocabulary per level with such siblings, one otherwise; on vllm no wait for the device
Good for   several chains or siblings drawn independently from a draft model
Poor for   siblings drawn without replacement, which it does not take: token_wise and traversal accept more at the same number of nodes
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accelplug.hooks.drafting import ROOT, NodeKind
from accelplug.hooks.verifying import ChainsChoice, ChainsView, Choice, PathView, VerifierTraits
from accelplug.spec import chains

if TYPE_CHECKING:
    from torch import Tensor

_HALVINGS = 16  # of the interval in which the scale is looked for; any number of them is exact


@dataclass(frozen=True, slots=True)
class KSeq:
    """At each level accept the first of k equal candidates with probability min(1, q(x) / (scale p(x)))."""

    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless="sampling", kinds=frozenset({NodeKind.DELTA, NodeKind.SAMPLED}))

    def choose(self, view: PathView) -> Choice:
        """Walk down from the root, following every chain that shares the accepted tokens."""
        nodes = [ROOT]
        while True:
            target = view.target[nodes[0] + 1]
            candidates = [child for node in nodes for child in view.children(node)]
            chosen = None
            for drawn, group in _groups(view, candidates):
                chosen, target = _select(view, group, drawn, target)
                if chosen is not None:
                    break
            if chosen is None:
                return Choice(_path_to(view, nodes[0]), target)
            nodes = [node for node in candidates if view.tokens[node] == view.tokens[chosen]]

    def choose_on_device(self, view: ChainsView) -> ChainsChoice:
        """Return the same on chains: of one candidate the scale is 1, and the rule is token_wise."""
        return chains.up_to_first_rejection(view, chains.accepted(view))


def _groups(view: PathView, candidates: Iterable[int]) -> list[tuple[Tensor, list[int]]]:
    """Return the candidates by the row they were drawn from, in drawing order; a DELTA node stands alone."""
    groups: list[tuple[Tensor, list[int]]] = []
    for node in candidates:
        drawn = view.drawn_from(node)
        same = [
            group
            for row, group in groups
            if view.kinds[node] == NodeKind.SAMPLED == view.kinds[group[0]] and (row is drawn or bool((row == drawn).all()))
        ]
        if same:
            same[0].append(node)
        else:
            groups.append((drawn, [node]))
    return groups


def _select(view: PathView, group: list[int], drawn: Tensor, target: Tensor) -> tuple[int | None, Tensor]:
    """Return the group's accepted node, or None and what its rejection leaves of the target."""
    import torch

    scale = _scale(drawn, target, len(group))
    tokens = [view.tokens[node] for node in group]
    wanted, likely = target[tokens].tolist(), drawn[tokens].tolist()
    for node, q, p in zip(group, wanted, likely, strict=True):
        # A certain token is kept whatever the scale: nothing else could follow.
        if view.below(1.0 if q >= 1.0 else min(1.0, q / (scale * p)) if p > 0 else 0.0):
            return node, target
    kept = torch.minimum(drawn, target / scale)
    once = float(kept.sum())
    if once <= 0.0:
        return None, target
    left = (target - kept * ((1.0 - (1.0 - once) ** len(group)) / once)).clamp(min=0)
    total = float(left.sum())
    return None, left / total if total > 0 else target


def _scale(drawn: Tensor, target: Tensor, count: int) -> float:
    """Return nearly the least scale for which `count` candidates are not accepted more often than the target allows."""
    import torch

    low, high = 1.0, float(count)  # `high` is always allowed
    if count == 1:
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        once = float(torch.minimum(drawn, target / middle).sum())
        low, high = (low, middle) if 1.0 - (1.0 - once) ** count <= middle * once else (middle, high)
    return high


def _path_to(view: PathView, node: int) -> list[int]:
    path: list[int] = []
    while node != ROOT:
        path.append(node)
        node = view.parents[node]
    return path[::-1]
