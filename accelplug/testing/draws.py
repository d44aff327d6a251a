"""Hold drafted nodes to the probability rows that they say they were drawn from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from accelplug.hooks.binding import BoundDrafter
from accelplug.hooks.drafting import ROOT, Drafts, NodeKind
from accelplug.hooks.registry import Technique
from accelplug.testing.building import require, skip
from accelplug.testing.models import VOCAB
from accelplug.testing.toy_host import ToyHost, ToyRequest, answer_of

Counts = npt.NDArray[np.float64]
TEXTS = ([5, 6, 7, 8, 5, 6, 7, 8, 5, 6], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8])
DRAWS = {(0,): 100, (0, 1): 300}
"""Which texts are served at once, and how often."""
UNLIKELY = 1e-7  # of some dozens of comparisons; seeds are fixed, so a right drafter passes always or, rarely, never


@dataclass(frozen=True, slots=True)
class Place:
    """Which nodes are counted together: whether one is in a place, and its row, must be settled before it is drawn, as it is for a right drafter.

    :param led: the node drawn before it, its last sibling or else its parent, was the likeliest of its row: a node that goes by
        that one has its row's frequencies only on the whole.
    """

    batch: int
    text: int
    level: int
    sibling: int
    led: bool

    def __str__(self) -> str:
        text = "a request alone" if self.batch == 1 else f"request {self.text + 1} of {self.batch}"
        return f"at level {self.level}, sibling {self.sibling + 1}{', after a likeliest one' if self.led else ''}, of {text}"


@dataclass(slots=True)
class Node:
    """A node that was drawn: its token, and the distribution it says it has."""

    place: Place
    row: Counts
    token: int


@dataclass(slots=True)
class Tally:
    """How often every token should have been drawn in a place, and was."""

    expected: Counts = field(default_factory=lambda: np.zeros(VOCAB))
    found: Counts = field(default_factory=lambda: np.zeros(VOCAB))


def check_draws(drafter: BoundDrafter) -> None:
    """Draft with many seeds, after one text alone and after two at once; compare the nodes of every place with their rows by chi-square."""
    tallies: dict[Place, Tally] = {}
    host = ToyHost(drafter, VOCAB, temperature=1.0)
    for batch, count in DRAWS.items():
        for seed in range(count):
            torch.manual_seed(1000 * len(batch) + seed)
            for node in _drawn(host, batch):
                tally = tallies.setdefault(node.place, Tally())
                tally.expected += node.row
                tally.found[node.token] += 1
    if not tallies:
        skip(f"{drafter.technique} drew no node at random here")
    for place, tally in tallies.items():
        _compare(drafter, place, tally)


def _drawn(host: ToyHost, batch: tuple[int, ...]) -> Iterator[Node]:
    """Serve texts for one step, and yield what was drawn."""
    host.start({text: ToyRequest(TEXTS[text] * 2, len(TEXTS[text]), (4 + text,)) for text in batch})
    slots, drafts = host.step()
    host.finish(batch)
    for i, text in enumerate(slots):
        yield from _nodes(host.drafter.technique, drafts, i, len(batch), text)


def _nodes(who: Technique, drafts: Drafts, i: int, batch: int, text: int) -> Iterator[Node]:
    """Yield the i-th request's nodes that were drawn at random."""
    if drafts.kinds is None or drafts.row_ids is None or drafts.rows is None:
        return
    (tokens, parents), first = answer_of(drafts, i), int(drafts.offsets[i])
    likeliest, levels = {ROOT: False}, {ROOT: 0}
    for node, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        siblings = [earlier for earlier in range(node) if parents[earlier] == parent]
        levels[node], likeliest[node] = levels[parent] + 1, False
        kind, row_id = drafts.kinds[first + node], int(drafts.row_ids[first + node])
        if kind != NodeKind.DELTA:
            gone = [tokens[s] for s in siblings if kind == drafts.kinds[first + s] == NodeKind.WITHOUT_REPLACEMENT and drafts.row_ids[first + s] == row_id]
            row = _distribution(who, drafts.rows[row_id], gone)
            require(row[token] > 0, f"{who} drew token {token} from a row that gives it 0{', its siblings removed' if gone else ''}")
            likeliest[node] = bool(token == row.argmax())
            yield Node(Place(batch, text, levels[node], len(siblings), likeliest[siblings[-1] if siblings else parent]), row, token)


def _distribution(who: Technique, row: torch.Tensor, gone: list[int]) -> Counts:
    """Return a node's row without the siblings that were drawn from it before, as the rules that judge it take it."""
    left: Counts = row.double().cpu().numpy().copy()
    require((left >= 0).all() and abs(left.sum() - 1) < 1e-3, f"{who} drew a node from a row that sums to {left.sum():.6g}; make it a distribution")
    left[gone] = 0
    left /= max(left.sum(), 1e-300)
    return left


def _compare(drafter: BoundDrafter, place: Place, tally: Tally) -> None:
    """Compare counts; tokens that are expected too rarely for chi-square count together, or, where even that is too rare, not."""
    common = tally.expected >= 5
    expected, found = (np.append(counts[common], counts[~common].sum()) for counts in (tally.expected, tally.found))
    expected, found = expected[expected >= 5], found[expected >= 5]
    chi_square, freedom = float(((found - expected) ** 2 / expected).sum()), max(1, len(expected) - 1)
    chance = float(torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), torch.tensor(chi_square / 2, dtype=torch.float64)))
    told = f"{place}: chi-square {chi_square:.0f} for {freedom} degrees of freedom"
    require(chance > UNLIKELY, f"{drafter.technique} does not draw its nodes from their rows {told}")
