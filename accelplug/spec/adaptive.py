"""Adaptive: draft as many tokens of another drafter's as pay for themselves, often none; of a tree the branches that do.

Paper      Leviathan et al. 2023, arXiv 2211.17192, section 3.4 (the best length); Saxena et al. 2025, "Utility-Driven Speculative Decoding"
Output     unchanged (the verifier decides)
Needs      a drafter in host memory; a host that measures its steps
Hosts      transformers, vllm
Devices    cpu, cuda
Cost       host: 20 to 150 microseconds a step, two a node of a tree, beside the other drafter's own
Good for   texts where drafts are sometimes useless: it comes back to plain speed there, and sees when they become useful
Poor for   drafts that are nearly always right: they are best taken whole
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from accelplug._errors import OptionError
from accelplug.hooks.binding import BoundDrafter, bind_drafter
from accelplug.hooks.context import BuildContext
from accelplug.hooks.drafting import CommitView, DrafterTraits, Drafts, DraftView, IntArray, NodeKind
from accelplug.hooks.options import option
from accelplug.hooks.paying import TRY, ByWidth
from accelplug.spec.branches import NEVER, Branches, above_bar, bar_of, parents_of, pruned
from accelplug.spec.worth import Worth


@dataclass(slots=True)
class Adaptive:
    """Ask another drafter for as many tokens as are worth their cost, by what was accepted and what steps took.

    While none are, a source of deterministic drafts that needs nothing but tokens is still asked for one, or for its tree, which is
    not verified but compared with what comes; for one in every fourth step only, once it was wrong often enough in a row. Others
    are tried, ever more rarely. A request's first draft is verified, and of a source that can be asked like that no other before
    a token of its was right. Trees are drafted whole and pruned.
    """

    source: object = option("suffix", help="the drafter, spelled as always")
    num_tokens: int = option(64, ge=1, le=512, help="most tokens to draft")
    context: BuildContext = field(kw_only=True, repr=False)
    _inner: BoundDrafter = field(init=False, repr=False)
    _guesses: bool = field(init=False, repr=False)
    _requests: dict[int, Any] = field(init=False, repr=False, default_factory=dict)
    _step: int = field(init=False, repr=False, default=0)
    _idle_until: int = field(init=False, repr=False, default=0)  # the step before which nothing can be worth asking for
    _by_width: ByWidth = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._inner = bind_drafter(self.context.build("drafter", self.source))
        traits = self._inner.traits
        if self._inner.is_device_only:
            raise OptionError(f"adaptive asks in host memory and {self._inner.technique} drafts on the device only; give another source")
        self._guesses = traits.kinds == {NodeKind.DELTA} and not traits.needs
        self._by_width = ByWidth(1 + self.num_tokens)
        self.context.step_seconds()  # refused here where the host measures none

    @property
    def traits(self) -> DrafterTraits:
        """The source's own."""
        return self._inner.traits

    def start(self, slots: IntArray) -> None:
        """Begin hopefully with each slot."""
        self._idle_until = 0
        self._requests |= {slot: Branches() if self.traits.shape == "tree" else Worth(self._guesses) for slot in slots.tolist()}
        self._inner.technique.call(self._inner.start, slots)

    def finish(self, slots: IntArray) -> None:
        """Forget each slot."""
        for slot in slots.tolist():
            self._requests.pop(slot, None)
        self._inner.technique.call(self._inner.finish, slots)

    def observe(self, view: CommitView) -> None:
        """Count what became of the drafts."""
        if self.traits.shape == "tree":
            for i, slot in enumerate(view.slots.tolist()):
                self._requests[slot].learn(view.history(i)[view.lengths[i] - view.fresh[i] :].tolist())
        elif self._step >= self._idle_until:
            came = view.tokens[view.rows, view.lengths - view.fresh].tolist()
            for slot, accepted, token in zip(view.slots.tolist(), view.accepted.tolist(), came, strict=True):
                self._requests[slot].learn(accepted, token)
        self._inner.technique.call(self._inner.observe, view)

    def propose(self, view: DraftView) -> Drafts:
        """Ask the source within smaller budgets, and not at all where none is worth it; prune a tree."""
        self._step += 1
        if self._step < self._idle_until:
            return Drafts.chains([[]] * len(view.slots))
        requests = [self._requests[slot] for slot in view.slots.tolist()]
        rooms = [max(0, min(self.num_tokens, budget)) for budget in view.budgets.tolist()]
        if self.traits.shape == "tree":
            return self._trees(view, requests, rooms)
        lengths = self._lengths(requests, rooms)
        guessed = [not length and self._guesses and request.guesses(self._step) for length, request in zip(lengths, requests, strict=True)]
        asked = [length or min(room, guess) for length, room, guess in zip(lengths, rooms, guessed, strict=True)]
        if not any(asked):
            for request in requests:
                request.went(0, None)
            self._rest()
            return Drafts.chains([[]] * len(view.slots))
        drafts = self._inner.ask(replace(view, budgets=np.array(asked)), self.context.vocab_size)
        bounds, tokens = drafts.offsets.tolist(), drafts.tokens
        counts = [(bounds[i + 1] - bounds[i]) if length else 0 for i, length in enumerate(lengths)]
        led = _led(view)
        for i, request in enumerate(requests):
            is_guess = not lengths[i] and bounds[i] < bounds[i + 1] and not led[i]
            request.went(counts[i], int(tokens[bounds[i]]) if is_guess else None)
        if sum(counts) == len(tokens):
            return drafts
        return Drafts.chains([tokens[begin : begin + count] for begin, count in zip(bounds, counts, strict=False)])

    def _rest(self) -> None:
        """Be idle until the next guess where no draft can pay: nothing is learnt in between, which is most of the time where drafts are useless."""
        requests = self._requests.values()
        if self._guesses and not any(request.may_pay for request in requests):
            self._idle_until = min(request.next_guess(self._step) for request in requests)

    def _lengths(self, requests: Sequence[Worth], rooms: Sequence[int]) -> list[int]:
        """Return how many tokens to draft for each request."""
        may_pay = not self._guesses or any(request.may_pay for request in requests)
        seconds = self._by_width(self.context.step_seconds()) if may_pay else None
        if seconds is None:
            return [0] * len(rooms)
        lengths = [request.length(seconds, room) for request, room in zip(requests, rooms, strict=True)]
        if self._guesses:
            return lengths
        return [length or min(room, request.tries()) for request, length, room in zip(requests, lengths, rooms, strict=True)]

    def _trees(self, view: DraftView, requests: Sequence[Branches], rooms: Sequence[int]) -> Drafts:
        """Ask for whole trees, and keep of each the nodes that reach a bar that was set before."""
        rates, bars = self._bars(requests, rooms)
        tries = [not self._guesses and bar < NEVER and request.tries(is_worth=bar <= 1) for request, bar in zip(requests, bars, strict=True)]
        asked = [room if self._guesses or bar <= 1 else min(room, TRY * trial) for room, bar, trial in zip(rooms, bars, tries, strict=True)]
        if not any(asked):
            return Drafts.chains([[]] * len(view.slots))
        drafts = self._inner.ask(replace(view, budgets=np.array(asked)), self.context.vocab_size)
        parents = parents_of(drafts)
        bounds, tokens, above = drafts.offsets.tolist(), drafts.tokens.tolist(), parents.tolist()
        led = _led(view)
        kept: list[bool] = []
        for i, request in enumerate(requests):
            nodes = slice(bounds[i], bounds[i + 1])
            request.went(tokens[nodes], above[nodes], is_judged=not led[i])
            kept += [True] * len(tokens[nodes]) if tries[i] else above_bar(above[nodes], rates[i], bars[i])
        return drafts if all(kept) else pruned(drafts, parents, np.array(kept, dtype=bool))

    def _bars(self, requests: Sequence[Branches], rooms: Sequence[int]) -> tuple[list[list[float]], list[float]]:
        """Return each request's chances by place among siblings, and the least chance of a node that pays for itself."""
        rates = [request.rates(in_order=self.traits.kinds != {NodeKind.DELTA}) for request in requests]
        seconds = self._by_width(self.context.step_seconds())
        if seconds is None:
            return rates, [NEVER] * len(requests)
        return rates, [bar_of(rate, seconds.tolist(), room) for rate, room in zip(rates, rooms, strict=True)]


def _led(view: DraftView) -> list[bool]:
    """Return of which requests the next token is known already."""
    return [False] * len(view.slots) if view.ahead is None else (view.ahead > 0).tolist()
