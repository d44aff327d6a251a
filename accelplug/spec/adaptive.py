"""Adaptive: draft as many tokens of another drafter's as pay for themselves, often none.

Paper      Leviathan et al. 2023, arXiv 2211.17192, section 3.4 (the best length); Saxena et al. 2025, "Utility-Driven Speculative Decoding"
Output     unchanged (the verifier decides)
Needs      a drafter of chains; a host that measures its steps
Hosts      transformers
Devices    cpu, cuda
Cost       host: ten to twenty microseconds a step, beside the other drafter's own
Good for   texts where drafts are sometimes useless: it comes back to plain speed there, and tries again ever more rarely
Poor for   drafts that are nearly always right: they are best taken whole
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def seconds_by_width(table: Mapping[int, float], most: int) -> list[float]:
    """Return a step's seconds over 1, 2, ... `most` positions, between and beyond those measured along straight lines.

    :param table: positions -> seconds, 1 among them. A plain step takes no longer than any other: one measured in another
        context would make useless drafts look cheap.
    """
    known = sorted(table)
    plain = min(table.values())
    if len(known) == 1:
        return [plain] * most
    seconds, right = [plain], 1
    for width in range(2, most + 1):
        while width > known[right] and right + 1 < len(known):
            right += 1
        low, high = known[right - 1], known[right]
        slope = (table[high] - table[low]) / (high - low)
        seconds.append(table[high] if width == high else table[low] + max(slope, 0.0) * (width - low))
    return seconds


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

    def length(self, seconds: Sequence[float], most: int) -> int:
        """Return how many tokens to draft: those of most tokens per second.

        :param seconds: of steps over 1, 2, ... positions; none as long as no plain step was measured, the measure of all others.
        """
        if not seconds or not self.judged:
            return most if seconds else 0
        rate = (self.accepted + 0.1) / (self.judged + 0.2)
        gain, likely, best, highest = 1.0, 1.0, 0, 1.0 / seconds[0]
        for count in range(1, most + 1):
            likely *= rate
            gain += likely
            if gain / seconds[count] > highest:
                best, highest = count, gain / seconds[count]
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
        seconds = seconds_by_width(table, 1 + self.num_tokens) if 1 in table else []
        budgets = [r.length(seconds, max(0, min(self.num_tokens, b))) for r, b in zip(requests, view.budgets.tolist(), strict=True)]
        asked: Any = np.array(budgets, dtype=np.int64)
        drafts = self._inner.propose(replace(view, budgets=asked)) if asked.any() else Drafts.chains([()] * len(budgets))
        for request, drafted in zip(requests, np.diff(drafts.offsets).tolist(), strict=True):
            request.went(drafted)
        return drafts
