"""Fusion: ask several drafters and verify what they draft as one tree.

Paper      Quan et al. 2025, "RASD", arXiv 2503.03434; here for any drafters of deterministic nodes, without pruning
Output     unchanged (the verifier decides)
Needs      trees, and whatever the sources need
Hosts      transformers
Devices    cpu, cuda
Cost       host: that of the sources, and one to two microseconds per node
Good for   sources that are right at different times, as the default's: one copies the prompt, one finds repeats, one recycles
Poor for   large batches, where wide trees are not free; sources that agree, since one of them would do
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field, replace

import numpy as np

from accelplug._errors import OptionError
from accelplug.hooks.binding import BoundDrafter, bind_drafter
from accelplug.hooks.context import BuildContext
from accelplug.hooks.drafting import ROOT, CommitView, DrafterTraits, Drafts, DraftView, IntArray, NodeKind, Verified
from accelplug.hooks.options import option
from accelplug.spec.merging import merged

_SOURCES = ("input_copy", "suffix", "token_recycling(num_nodes=32)")
_SCOPES = ("request", "salt", "process")  # narrowest first


@dataclass(slots=True)
class Fusion:
    """Merge the sources' drafts by longest common prefix, in turns, a node each, until the budget is spent."""

    context: InitVar[BuildContext]
    sources: Sequence[object] = option(_SOURCES, help="the drafters to ask, as anybody would write them")
    num_nodes: int = option(64, ge=1, le=512, help="most nodes of the merged tree")
    _sources: list[BoundDrafter] = field(init=False, repr=False)
    _vocab_size: int = field(init=False, repr=False)

    def __post_init__(self, context: BuildContext) -> None:
        if not isinstance(self.sources, list | tuple) or not self.sources:
            raise OptionError(f"fusion: sources={self.sources!r} are none; write them like sources=('suffix', 'token_recycling')")
        self._sources = [bind_drafter(context.build("drafter", source)) for source in self.sources]
        self._vocab_size = context.vocab_size
        for source in self._sources:
            if source.traits.kinds - {NodeKind.DELTA}:
                raise OptionError(f"fusion cannot merge the sampled nodes of {source.technique}; name sources of deterministic drafts")
            if source.is_device_only:
                raise OptionError(f"fusion asks in host memory and {source.technique} drafts on the device only; name another source")

    @property
    def traits(self) -> DrafterTraits:
        """A tree, even before there are sources, who say what else is needed."""
        every = [source.traits for source in getattr(self, "_sources", ())]
        return DrafterTraits(
            shape="tree",
            needs=frozenset().union(*(traits.needs for traits in every)),
            scope=max((traits.scope for traits in every), key=_SCOPES.index, default="request"),
            top_k=max((traits.top_k for traits in every), default=0),
            continues=all(traits.continues for traits in every),
            hidden_layers=frozenset().union(*(traits.hidden_layers for traits in every)),
        )

    def start(self, slots: IntArray) -> None:
        """Start each source."""
        for source in self._sources:
            source.technique.call(source.start, slots)

    def finish(self, slots: IntArray) -> None:
        """Finish each source."""
        for source in self._sources:
            source.technique.call(source.finish, slots)

    def observe(self, view: CommitView) -> None:
        """Show each source what was committed, and of runners-up and hidden states what it asked for."""
        for source in self._sources:
            hidden = view.hidden if source.traits.hidden_layers else None
            shown = replace(view, verified=_first(view.verified, source.traits.top_k), hidden=hidden)
            source.technique.call(source.observe, shown)

    def propose(self, view: DraftView) -> Drafts:
        """Ask each source for as much as the whole tree may hold, and merge."""
        budgets = np.minimum(view.budgets, self.num_nodes)
        asked = replace(view, budgets=budgets)
        answers = [source.ask(asked, self._vocab_size) for source in self._sources]
        trees = [merged([_nodes(drafts, i) for drafts in answers], most) for i, most in enumerate(budgets.tolist())]
        offsets = np.zeros(len(trees) + 1, dtype=np.int64)
        np.cumsum([len(tokens) for tokens, _, _ in trees], out=offsets[1:])
        tokens, parents, sources = (np.array([node for part in each for node in part], dtype=np.int64) for each in zip(*trees, strict=True))
        return Drafts(offsets, tokens, parents, sources=sources)


def _first(verified: Verified | None, top_k: int) -> Verified | None:
    return Verified(verified.offsets, verified.tokens, verified.top[:, :top_k]) if verified is not None and top_k else None


def _nodes(drafts: Drafts, i: int) -> tuple[list[int], Sequence[int]]:
    """Return the tokens and parents of the i-th request."""
    begin, end = drafts.offsets[i : i + 2].tolist()
    parents = range(ROOT, end - begin - 1) if drafts.parents is None else drafts.parents[begin:end].tolist()
    return drafts.tokens[begin:end].tolist(), parents
