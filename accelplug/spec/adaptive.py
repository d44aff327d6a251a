"""Adaptive: draft as many tokens of another drafter's as pay for themselves, often none.

Paper      Leviathan et al. 2023, arXiv 2211.17192, section 3.4 (the best length); Saxena et al. 2025, "Utility-Driven Speculative Decoding"
Output     unchanged (the verifier decides)
Needs      a drafter of chains; a host that measures its steps
Hosts      transformers
Devices    cpu, cuda
Cost       a few microseconds per request and step, beside the other drafter's own
Good for   texts where drafts are sometimes useless: it comes back to plain speed there, and tries again ever more rarely
Poor for   drafts that are nearly always right: they are best taken whole
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from accelplug._errors import OptionError
from accelplug.hooks.binding import BoundDrafter, bind_drafter
from accelplug.hooks.context import BuildContext
from accelplug.hooks.drafting import CommitView, DrafterTraits, Drafts, DraftView, IntArray
from accelplug.hooks.options import option

_MEMORY = 0.9  # how much of what was counted stays from one verified draft to the next
_LONGEST_PAUSE = 4096


def seconds_of(table: Mapping[int, float], width: int) -> float:
    """Return a step's seconds over `width` positions, between and beyond those measured along straight lines.

    :param table: positions -> seconds, 1 among them. A plain step takes no longer than any other: one measured in another
        context would make useless drafts look cheap.
    """
    known = sorted(table)
    if width == 1 or len(known) == 1:
        return min(table.values())
    if width in table:
        return table[width]
    right = next((i for i, each in enumerate(known) if each > width), len(known) - 1)
    low, high = known[right - 1], known[right]
    slope = (table[high] - table[low]) / (high - low)
    return table[low] + max(slope, 0.0) * (width - low)


@dataclass(slots=True)
class _Request:
    """How one request's drafts fared, recent ones counting more, and when to try again after giving up."""

    accepted: float = 0.0
    judged: float = 0.0
    drafted: int = 0  # in the last step
    pause: int = 1
    wait: int = 0
    is_trying: bool = False

    def learn(self, accepted: int) -> None:
        """Count the last draft: each of its tokens up to the first rejected one was judged."""
        if self.drafted:
            self.accepted = _MEMORY * self.accepted + accepted
            self.judged = _MEMORY * self.judged + min(accepted + 1, self.drafted)

    def length(self, table: Mapping[int, float], most: int) -> int:
        """Return how many tokens to draft: those of most tokens per second."""
        if 1 not in table or not self.judged:
            return most if 1 in table else 0  # a plain step is the measure of all others
        rate = (self.accepted + 0.1) / (self.judged + 0.2)
        gains = 1.0 + np.cumsum([0.0, *(rate**i for i in range(1, most + 1))])
        best = int(np.argmax(gains / [seconds_of(table, 1 + count) for count in range(most + 1)]))
        if best:
            self.pause, self.wait, self.is_trying = 1, 0, False
            return best
        self.wait = max(0, self.wait - 1)
        self.is_trying = not self.wait
        return most if self.is_trying else 0

    def went(self, drafted: int) -> None:
        """Note what was drafted; a try that found nothing to draft cost nothing and is repeated."""
        self.drafted = drafted
        if drafted and self.is_trying:
            self.pause = min(2 * self.pause, _LONGEST_PAUSE)
            self.wait = self.pause


@dataclass(slots=True)
class Adaptive:
    """Ask another drafter for as many tokens as are worth their cost, by what was accepted and what steps took."""

    source: object = option("prompt_lookup", help="the drafter, spelled as always")
    num_tokens: int = option(8, ge=1, le=128, help="most tokens to draft")
    context: BuildContext = field(kw_only=True, repr=False)
    _inner: BoundDrafter = field(init=False, repr=False)
    _requests: dict[int, _Request] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._inner = bind_drafter(self.context.build("drafter", self.source))
        if self._inner.traits.shape != "chain" or self._inner.is_device_only:
            raise OptionError(f"adaptive: {self._inner.technique} drafts no chains in host memory; give a source that does")
        self.context.step_seconds()  # refused here where the host measures none

    @property
    def traits(self) -> DrafterTraits:
        """The source's own."""
        return self._inner.traits

    def start(self, slots: IntArray) -> None:
        """Begin with nothing known of each slot."""
        self._requests |= {slot: _Request() for slot in slots.tolist()}
        self._inner.start(slots)

    def finish(self, slots: IntArray) -> None:
        """Forget each slot."""
        for slot in slots.tolist():
            self._requests.pop(slot, None)
        self._inner.finish(slots)

    def observe(self, view: CommitView) -> None:
        """Count what became of the drafts."""
        for slot, accepted in zip(view.slots.tolist(), view.accepted.tolist(), strict=True):
            self._requests[slot].learn(accepted)
        self._inner.observe(view)

    def propose(self, view: DraftView) -> Drafts:
        """Ask the source within smaller budgets, and not at all where none is worth it."""
        requests = [self._requests[slot] for slot in view.slots.tolist()]
        table = self.context.step_seconds()
        budgets = [r.length(table, max(0, min(self.num_tokens, b))) for r, b in zip(requests, view.budgets.tolist(), strict=True)]
        asked: Any = np.array(budgets, dtype=np.int64)
        drafts = self._inner.propose(replace(view, budgets=asked)) if asked.any() else Drafts.chains([()] * len(budgets))
        for request, drafted in zip(requests, np.diff(drafts.offsets).tolist(), strict=True):
            request.went(drafted)
        return drafts
