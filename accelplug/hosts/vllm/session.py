"""One worker's drafter while it serves: its methods, its counters, and the switch that turns it off when it fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from accelplug._errors import PluginError
from accelplug.hooks.binding import BoundDrafter, check_drafts
from accelplug.hooks.capabilities import Selection
from accelplug.hooks.drafting import CommitView, DeviceDrafts, DeviceView, Drafts, DraftView
from accelplug.hooks.registry import Technique
from accelplug.hosts.stats import Stats, TechniqueStats
from accelplug.hosts.vllm.board import Counters
from accelplug.hosts.vllm.clock import Clock
from accelplug.hosts.vllm.judging import Judge
from accelplug.hosts.vllm.log import LOG
from accelplug.hosts.vllm.requests import CAP, RequestOptions, defaults_of

V = TypeVar("V")
R = TypeVar("R")


class Session:
    """Calls the drafter. Whatever it raises while serving switches it off for good; the engine goes on without drafts.

    :param bound: the drafter's methods.
    :param vocab_size: width of the model's logits.
    :param judge: applies the verifier; None where that is vLLM's own.
    :param clock: times the engine's steps, for drafters that ask; None where none can.
    """

    def __init__(self, bound: BoundDrafter, selection: Selection, vocab_size: int, judge: Judge | None = None, clock: Clock | None = None) -> None:
        self.bound = bound
        self.verifier = selection.verifier
        self.judge = judge
        self.clock = clock or Clock(pads=True, ranks=1)
        self.requests = RequestOptions()
        self.defaults = defaults_of(bound.technique)
        self.vocab_size = vocab_size
        self.stats = Stats(techniques=[TechniqueStats.of(technique) for technique in (bound.technique, selection.verifier)])
        self.switched_off: str | None = None
        self.observes = hasattr(bound.technique.instance, "observe")

    def begin(self, req_id: str, params: Any, num_tokens: int) -> int:
        """Remember what a request sets for itself.

        :param params: vLLM's SamplingParams.
        :returns: the most tokens to draft for it in a step, at most `num_tokens`.
        """
        most: int = self.requests.begin(req_id, params).get(CAP, num_tokens)
        return min(most, num_tokens)

    def start(self, slots: list[int]) -> None:
        """Tell the drafter that requests begin in these slots."""
        if slots:
            self._call("start", self.bound.start, np.array(slots))

    def finish(self, slots: list[int]) -> None:
        """Tell the drafter that the requests in these slots ended."""
        if slots:
            self._call("finish", self.bound.finish, np.array(slots))

    def observe(self, view: CommitView) -> None:
        """Show the drafter what was committed."""
        self._call("observe", self.bound.observe, view)

    def propose(self, view: DraftView) -> Drafts | None:
        """Return the drafter's chains, or None once it is switched off.

        Every step comes through here, those that draft nothing too, so it does what `_call` does without the calls in between.
        """
        if self.switched_off is not None:
            return None
        bound, begin = self.bound, time.perf_counter()
        try:
            drafts = bound.propose(view)
            check_drafts(bound.technique, drafts, view.budgets, self.vocab_size, bound.traits)
        except Exception as exc:  # noqa: BLE001  as in `_call`
            self._switch_off("propose", exc)
            return None
        finally:
            self.stats.propose_seconds += time.perf_counter() - begin
        return drafts

    def propose_on_device(self, view: DeviceView) -> DeviceDrafts | None:
        """Return the drafter's chains, or None once it is switched off."""
        return self._call("propose_on_device", self._propose_on_device, view)

    def _propose_on_device(self, view: DeviceView) -> DeviceDrafts:
        assert self.bound.propose_on_device is not None, "a drafter of host memory is asked there"
        drafts = self.bound.propose_on_device(view)
        check_device_drafts(self.bound.technique, drafts, view, self.vocab_size)
        return drafts

    def _call(self, name: str, method: Callable[[V], R], view: V) -> R | None:
        """Return what the drafter answers; None where it is switched off, or is now since it raised."""
        if self.switched_off is not None:
            return None
        begin = time.perf_counter()
        try:
            return method(view)
        except Exception as exc:  # noqa: BLE001  a plugin that fails must not take the server with it
            self._switch_off(name, exc)
            return None
        finally:
            self.stats.propose_seconds += time.perf_counter() - begin

    def _switch_off(self, name: str, exc: Exception) -> None:
        self.switched_off = f"{name} raised {type(exc).__name__}: {exc}"
        LOG.error(
            "%s %s; it is switched off and the engine goes on without drafts; report it to %s",
            self.bound.technique, self.switched_off, self.bound.technique.owner.distribution, exc_info=exc,
        )  # fmt: skip

    def counters(self) -> list[Counters]:
        """Return the drafter's counters and the verifier's."""
        drafter, rule = self.stats.techniques
        lossy, seconds, off = (0, 0.0, False) if self.judge is None else (self.judge.counts()[3], self.judge.seconds, self.judge.switched_off is not None)
        return [
            counters_of(drafter, 0, self.stats.propose_seconds, off=self.switched_off is not None),
            counters_of(rule, lossy, seconds, off=off),
        ]

    def status(self) -> dict[str, Any]:
        """Return who drafts, who verifies, and what came of it, as plain JSON values."""
        drafter = describe(self.bound.technique, self.switched_off)
        if self.judge is not None:
            self.stats.lossy_accepts = self.judge.counts()[3]
        verifier = describe(self.verifier, None if self.judge is None else self.judge.switched_off)
        return {"drafter": drafter, "verifier": verifier, "stats": self.stats.as_dict()}


def check_device_drafts(who: Technique, drafts: DeviceDrafts, view: DeviceView, vocab_size: int) -> None:
    """Refuse device drafts of a wrong shape and, where looking costs no synchronisation, wrong token ids.

    :raises PluginError: naming the drafter and what is wrong.
    """
    if not isinstance(drafts, DeviceDrafts):
        raise PluginError(f"{who} returned a {type(drafts).__name__}; return accelplug.hooks.DeviceDrafts")
    num_reqs, tokens, counts = len(view.slots), drafts.tokens, drafts.counts
    if tuple(tokens.shape) != (num_reqs, view.num_tokens) or tuple(counts.shape) != (num_reqs,):
        raise PluginError(
            f"{who} returned tokens {list(tokens.shape)} and counts {list(counts.shape)}; "
            f"{num_reqs} requests of {view.num_tokens} tokens each were asked for"
        )
    if tokens.is_floating_point() or counts.is_floating_point():
        raise PluginError(f"{who} returned {tokens.dtype} tokens and {counts.dtype} counts; both are integers")
    if tokens.device.type == "cpu" and num_reqs and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise PluginError(f"{who} drafted token ids from {tokens.min()} to {tokens.max()}, outside 0 .. {vocab_size - 1}; pad with valid ids")


def counters_of(stats: TechniqueStats, lossy: int, seconds: float, *, off: bool) -> Counters:
    """Return a technique's counters as they go to ``/metrics``."""
    who = stats.kind, stats.name, stats.distribution, stats.version
    return Counters(who, (float(stats.drafts), float(stats.drafted), float(stats.accepted), float(lossy), seconds, float(off)))


def describe(technique: Technique, switched_off: str | None) -> dict[str, Any]:
    """Return who a technique is, and why it is no longer called, as plain JSON values."""
    owner = technique.owner
    described = {"name": technique.name, "spec": technique.spec, "distribution": owner.distribution, "version": owner.version}
    return described if switched_off is None else {**described, "switched_off": switched_off}

