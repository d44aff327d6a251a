"""Draft model: a smaller model of the same family drafts, in chains or trees.

Paper      Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, 2302.01318; other tokenizers: Timor et al. 2025, 2502.05202; trees: see spec/trees
Output     unchanged (the verifier decides)
Needs      a second model with the target's tokens; with others say tokens="intersection" or "text"
Hosts      transformers
Devices    cpu, cuda
Cost       one forward of the draft model per level of the draft, for all requests together
Good for   everything that the small model is right about: most of the text, at any temperature
Poor for   targets that are small themselves, where drafting costs as much as decoding
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from accelplug._errors import OptionError
from accelplug.hooks.context import BuildContext
from accelplug.hooks.drafting import ROOT, DrafterTraits, Drafts, DraftView, IntArray, NodeKind
from accelplug.hooks.options import option
from accelplug.spec import lengths, trees
from accelplug.spec.parts import build_part
from accelplug.spec.trees.nodes import Draws, Nodes, drafts_of

if TYPE_CHECKING:
    from torch import Tensor


_NEEDS = frozenset({"model.second"})


class _Growing:
    """One request's draft, grown by the policies from the rows it is fed."""

    def __init__(self, drafter: DraftModel, budget: int, temperature: float) -> None:
        self.nodes = Nodes(drafter.draws if temperature > 0 else None)
        self.temperature = temperature if temperature > 0 else 1.0
        self.length, self.policy = drafter._length, drafter._tree.grow(self.nodes, budget)
        self.ids = {ROOT: ROOT}  # node -> its number for the second model
        self.kept: list[int] | None = None
        self.level: list[int] = next(self.policy)

    def parent_id(self, node: int) -> int:
        """Return the number of the node's parent for the second model."""
        return self.ids[self.nodes.parents[node]]

    def feed(self, rows: Tensor) -> None:
        """Grow from the level's rows [num_nodes, vocab_size] to the next level; none is left when the draft is complete."""
        try:
            self.level = self.policy.send(rows)
            if not self.length.more(self.nodes, self.level):
                self.policy.send(None)
        except StopIteration as complete:
            self.level, self.kept = [], complete.value


@dataclass(slots=True)
class DraftModel:
    """Draft with a second model, by a tree policy and a length policy."""

    model: object = option(help="a folder, a name on the hub, or a loaded model")
    num_tokens: int = option(5, ge=1, le=512, per_request=True, help="most tokens to draft per step, all nodes of a tree counted")
    tree: object = option("chain", help="chain, top_k, best_first, gumbel_top_k, stochastic_beam or sequoia")
    length: object = option("fixed", help="fixed or confidence")
    tokens: Literal["same", "intersection", "text"] = option(
        "same", help="'same' as the target's; for a model with others 'intersection' drafts those that both have, 'text' all, without drawing"
    )
    context: BuildContext = field(kw_only=True, repr=False)
    draws: Draws = field(init=False, repr=False, default_factory=Draws)
    _tree: Any = field(init=False, repr=False)
    _length: Any = field(init=False, repr=False)
    _second: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._tree = build_part("draft_model: tree", self.tree, trees.POLICIES, "grow")
        self._length = build_part("draft_model: length", self.length, lengths.POLICIES, "more")
        self._second = self.context.load_model(self.model, self.tokens)
        if self.tokens == "text" and self._tree.shape != "chain":
            raise OptionError(f"draft_model: tokens='text' writes one text, and tree={str(self.tree)!r} asks for several; use tree='chain'")

    @property
    def traits(self) -> DrafterTraits:
        """The tree policy decides the shape and the kinds."""
        tree = build_part("draft_model: tree", self.tree, trees.POLICIES, "grow")
        drawn = () if self.tokens == "text" else tree.kinds
        return DrafterTraits(shape=tree.shape, kinds=frozenset({NodeKind.DELTA, *drawn}), needs=_NEEDS, continues=True)

    def start(self, slots: IntArray) -> None:
        """Begin with nothing read in each slot."""
        self._second.start(slots)

    def finish(self, slots: IntArray) -> None:
        """Free the cache of each slot."""
        self._second.finish(slots)

    def propose(self, view: DraftView) -> Drafts:
        """Grow all requests' drafts together, one forward pass per level."""
        budgets = np.minimum(view.budgets, view.parameters.get("num_tokens", self.num_tokens))
        asked = np.flatnonzero(budgets > 0).tolist()
        if not asked:
            return Drafts.chains([()] * len(budgets))
        ahead = None if view.ahead is None else view.ahead[asked].tolist()
        logits = self._second.extend(view.slots[asked], [view.history(i) for i in asked], ahead)
        greedy = [0.0] * len(budgets)
        temperatures = greedy if view.temperatures is None or self.tokens == "text" else view.temperatures.tolist()
        drafts = {i: _Growing(self, int(budgets[i]), temperatures[i]) for i in asked}
        growing = list(drafts.values())
        warp = None if self.tokens == "text" else view.warp
        self._feed(growing, logits, warp)
        read = 0
        while any(draft.level for draft in growing):
            level = [(request, node) for request, draft in enumerate(growing) for node in draft.level]
            for i, (request, node) in enumerate(level):
                growing[request].ids[node] = read + i
            read += len(level)
            tokens = [growing[request].nodes.tokens[node] for request, node in level]
            parents = [growing[request].parent_id(node) for request, node in level]
            self._feed(growing, self._second.expand([request for request, _ in level], tokens, parents), warp)
        if self.tokens == "text":
            spelled = {i: self._second.spelled(draft.nodes.tokens)[: budgets[i]] for i, draft in drafts.items()}
            return Drafts.chains([spelled.get(i, []) for i in range(len(budgets))])
        return drafts_of([(drafts[i].nodes, drafts[i].kept) if i in drafts else None for i in range(len(budgets))])

    def _feed(self, growing: list[_Growing], logits: Tensor, warp: Callable[[Tensor], Tensor] | None) -> None:
        """Turn logits [num_nodes, vocab_size], one row per node of every draft's level, into probabilities and hand them out.

        Warped like the target's, they are more often accepted: nothing is drafted that a sampled request cannot draw.
        """
        import torch

        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scores = logits if warp is None else warp(logits)
        begin = 0
        for draft in growing:
            if draft.level:
                rows = scores[begin : (begin := begin + len(draft.level))]
                draft.feed((rows if warp is not None else rows / draft.temperature).softmax(-1))
