"""Which nodes of a tree of drafts pay for themselves: counted acceptance by place among siblings, against measured steps.

What is kept is decided before the tree is seen: a node stays or goes by its place alone and by what earlier steps showed,
never by its token or its probability. Dropping a node that was drawn at random is exact only so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from accelplug.hooks.drafting import ROOT, Drafts
from accelplug.hooks.paying import DOUBT, MARGIN, MEMORY, Pause

NEVER = 3.0  # a bar for steps in which nothing may be drafted


@dataclass(slots=True)
class Branches:
    """How one request's trees fared: how often the first, second, ... of the siblings at a node was the token that came."""

    came: list[float] = field(default_factory=list)
    judged: list[float] = field(default_factory=list)
    tokens: Sequence[int] = ()  # of the last tree, with what was not verified
    parents: Sequence[int] = ()
    pause: Pause = field(default_factory=Pause)

    def tries(self, *, is_worth: bool) -> bool:
        """Whether to draft in this step although it is not known to be worth it."""
        self.pause.is_trying = False
        if is_worth:
            self.pause.over()
        return not is_worth and self.pause.tries()

    def went(self, tokens: Sequence[int], parents: Sequence[int], *, is_judged: bool) -> None:
        """Remember a tree, to be judged by what comes; a try that found nothing to draft cost nothing and is repeated."""
        self.tokens, self.parents = (tokens, parents) if is_judged else ((), ())
        if tokens:
            self.pause.spent()

    def learn(self, fresh: Sequence[int]) -> None:
        """Walk down the last tree along the tokens that came, and judge the siblings at every node on the way."""
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(self.parents):
            children.setdefault(parent, []).append(node)
        at, came, judged = ROOT, [0] * len(self.parents), [0] * len(self.parents)
        for token in fresh:
            siblings = children.get(at, ())
            for rank in range(len(siblings)):
                judged[rank] += 1
            found = next((rank for rank, node in enumerate(siblings) if self.tokens[node] == token), None)
            if found is None:
                break
            came[found] += 1
            at = siblings[found]
        if at != ROOT:
            self.pause.over()
        self._count(came, judged[: judged.index(0)] if 0 in judged else judged)
        self.tokens = self.parents = ()

    def _count(self, came: Sequence[int], judged: Sequence[int]) -> None:
        missing = [0.0] * (len(judged) - len(self.judged))
        self.came, self.judged = self.came + missing, self.judged + missing
        for rank, times in enumerate(judged):
            self.came[rank] = MEMORY * self.came[rank] + came[rank]
            self.judged[rank] = MEMORY * self.judged[rank] + times

    def rates(self, *, in_order: bool) -> list[float]:
        """Return how likely the sibling of each place is the token that comes.

        :param in_order: a later sibling counts as no likelier than one before it, so that it is not kept without that one: what is drawn
            without replacement is exact only behind what was drawn before it.
        """
        rates = [came / (judged + DOUBT) for came, judged in zip(self.came, self.judged, strict=True)]
        return list(accumulate(rates, min)) if in_order else rates


def bar_of(rates: Sequence[float], seconds: Sequence[float], most: int) -> float:
    """Return the least chance of a node that pays for itself: that of the last one in the tree of most tokens per second, if every node
    could be had. Above 1: none does now.

    :param seconds: of steps over 1, 2, ... positions.
    """
    likely = sorted((rate for rate in rates if rate), reverse=True)
    gain, highest, bar = 1.0, MARGIN / seconds[0], 2.0
    heap = [(-rate, 1.0, place) for place, rate in enumerate(likely[:1])]  # chance of a node, of its parent, place among siblings
    for count in range(1, most + 1 if heap else 1):
        chance, above, place = heappop(heap)
        gain -= chance
        if gain / seconds[count] > highest:
            highest, bar = gain / seconds[count], -chance
        heappush(heap, (chance * likely[0], -chance, 0))
        if place + 1 < len(likely):
            heappush(heap, (-above * likely[place + 1], above, place + 1))
    return bar


def parents_of(drafts: Drafts) -> npt.NDArray[np.integer]:
    """Return every node's parent, [num_nodes], a chain's too."""
    if drafts.parents is not None:
        return drafts.parents
    counts = np.diff(drafts.offsets)
    parents: npt.NDArray[np.integer] = np.arange(len(drafts.tokens)) - np.repeat(drafts.offsets[:-1], counts) + ROOT
    return parents


def above_bar(parents: Sequence[int], rates: Sequence[float], bar: float) -> list[bool]:
    """Return which nodes of a tree reach the bar, by their places alone; a node's parent then does, too."""
    kept: list[bool] = []
    chances: list[float] = []
    ranks = [0] * (len(parents) + 1)  # the last one is ROOT's
    for parent in parents:
        rank, ranks[parent] = ranks[parent], ranks[parent] + 1
        chances.append((1.0 if parent == ROOT else chances[parent]) * (rates[rank] if rank < len(rates) else 0.0))
        kept.append(chances[-1] >= bar)
    return kept


def pruned(drafts: Drafts, parents: npt.NDArray[np.integer], kept: npt.NDArray[np.bool_]) -> Drafts:
    """Return the drafts with the nodes of `kept`, bool [num_nodes], alone; each one's parent is among them.

    :param parents: [num_nodes], as `drafts` has them, of chains too.
    """
    before = np.concatenate([[0], np.cumsum(kept)])  # [num_nodes + 1] how many nodes are kept before each
    first = np.repeat(drafts.offsets[:-1], np.diff(drafts.offsets))
    moved = np.where(parents == ROOT, ROOT, before[parents + first] - before[first])
    kinds, row_ids, sources = (None if each is None else each[kept] for each in (drafts.kinds, drafts.row_ids, drafts.sources))
    return Drafts(before[drafts.offsets], drafts.tokens[kept], moved[kept], kinds, row_ids, drafts.rows, sources)
