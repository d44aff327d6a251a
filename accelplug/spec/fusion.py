"""Fusion: ask several drafters and verify what they draft as one tree.

Paper      Quan et al. 2025, "RASD", arXiv 2503.03434; here for any drafters of deterministic nodes, without pruning
Output     unchanged (the verifier decides)
Needs      trees, and whatever the sources need
Hosts      transformers
Devices    cpu, cuda
Cost       that of the sources, and about a microsecond per node
Good for   sources that are right at different times, such as one that copies and one that recycles
Poor for   large batches, where wide trees are not free; sources that agree, since one of them would do
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import InitVar, dataclass, field, replace
from typing import TypeVar

import numpy as np

from accelplug._errors import OptionError
from accelplug.hooks.binding import BoundDrafter, bind_drafter
from accelplug.hooks.context import BuildContext
from accelplug.hooks.drafting import ROOT, CommitView, DrafterTraits, Drafts, DraftView, IntArray, NodeKind, Verified
from accelplug.hooks.options import option

V = TypeVar("V")
R = TypeVar("R")
_OVER = object()
_SCOPES = ("request", "salt", "process")  # narrowest first


class _Merged:
    """One request's tree: each node once, whoever drafted it, after the one it follows."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.sources: list[int] = []
        self.nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node

    def insert(self, source: int, tokens: Sequence[int], parents: Sequence[int]) -> Iterator[None]:
        """Walk one source's drafts into the tree by their longest common prefix; yield after each node that it adds."""
        places: list[int] = []
        for token, above in zip(tokens, parents, strict=True):
            parent = ROOT if above == ROOT else places[above]
            node = self.nodes.get((parent, token))
            if node is None:
                if len(self.tokens) >= self.most:
                    return
                node = self.nodes[parent, token] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(parent)
                self.sources.append(source)
                yield
            places.append(node)


@dataclass(slots=True)
class Fusion:
    """Merge the sources' drafts by longest common prefix, in turns, a node each, until the budget is spent."""

    context: InitVar[BuildContext]
    sources: Sequence[object] = option(("prompt_lookup", "token_recycling"), help="the drafters to ask, as anybody would write them")
    num_nodes: int = option(64, ge=1, le=512, help="most nodes of the merged tree")
    traits: DrafterTraits = field(init=False, repr=False)
    _sources: list[BoundDrafter] = field(init=False, repr=False)
    _vocab_size: int = field(init=False, repr=False)

    def __post_init__(self, context: BuildContext) -> None:
        if not isinstance(self.sources, list | tuple) or not self.sources:
            raise OptionError(f"fusion: sources={self.sources!r} are none; write them like sources=('prompt_lookup', 'token_recycling')")
        self._sources = [bind_drafter(context.build("drafter", source)) for source in self.sources]
        self._vocab_size = context.vocab_size
        for source in self._sources:
            if source.traits.kinds - {NodeKind.DELTA}:
                raise OptionError(f"fusion cannot merge the sampled nodes of {source.technique}; name sources of deterministic drafts")
            if source.is_device_only:
                raise OptionError(f"fusion asks in host memory and {source.technique} drafts on the device only; name another source")
        every = [source.traits for source in self._sources]
        self.traits = DrafterTraits(
            shape="tree",
            needs=frozenset().union(*(traits.needs for traits in every)),
            scope=max((traits.scope for traits in every), key=_SCOPES.index),
            top_k=max(traits.top_k for traits in every),
        )

    def start(self, slots: IntArray) -> None:
        """Start each source."""
        for source in self._sources:
            _call(source, source.start, slots)

    def finish(self, slots: IntArray) -> None:
        """Finish each source."""
        for source in self._sources:
            _call(source, source.finish, slots)

    def observe(self, view: CommitView) -> None:
        """Show each source what was committed, and as many runners-up as it asked for."""
        for source in self._sources:
            _call(source, source.observe, replace(view, verified=_first(view.verified, source.traits.top_k)))

    def propose(self, view: DraftView) -> Drafts:
        """Ask each source for as much as the whole tree may hold, and merge."""
        budgets = np.minimum(view.budgets, self.num_nodes)
        asked = replace(view, budgets=budgets)
        trees = [_Merged(int(budget)) for budget in budgets]
        answers = [self._ask(source, asked) for source in self._sources]
        for i, tree in enumerate(trees):
            in_turn = [tree.insert(number, *_nodes(drafts, i)) for number, drafts in enumerate(answers)]
            while in_turn:  # one node of each, then the next of those that have more
                in_turn = [walk for walk in in_turn if next(walk, _OVER) is not _OVER]
        merged = Drafts.trees([(tree.tokens, tree.parents) for tree in trees])
        return replace(merged, sources=np.array([source for tree in trees for source in tree.sources], dtype=np.int64))

    def _ask(self, source: BoundDrafter, view: DraftView) -> Drafts:
        drafts = _call(source, source.propose, view)
        source.check(drafts, view.budgets, self._vocab_size)
        return drafts


def _call(source: BoundDrafter, method: Callable[[V], R], view: V) -> R:
    """Call a source's method; an exception names the source."""
    try:
        return method(view)
    except Exception as exc:
        source.technique.blame(exc)
        raise


def _first(verified: Verified | None, top_k: int) -> Verified | None:
    return replace(verified, top=verified.top[:, :top_k]) if verified is not None and top_k else None


def _nodes(drafts: Drafts, i: int) -> tuple[list[int], list[int]]:
    """Return the tokens and parents of the i-th request."""
    begin, end = drafts.offsets[i : i + 2].tolist()
    parents = range(ROOT, end - begin - 1) if drafts.parents is None else drafts.parents[begin:end].tolist()
    return drafts.tokens[begin:end].tolist(), list(parents)
