"""How many tokens vLLM's own drafters draft: as many as pay for themselves, the same for every request of a step, and often none.

Where drafts have a length for each size of a batch (``num_speculative_tokens_per_batch_size``), vLLM's scheduler looks it up in a table in
every step, and everything behind it takes what it finds: drafters run up to there, no further, and one with a cache of its own keeps that
up to date where it drafts none. `Lengths` stands in the table's place, put there by a subclass of the scheduler that vLLM chose, which is
named in ``scheduler_cls``, vLLM's own setting::

    accelplug.hosts.vllm.lengths.vllm/v1/core/sched/scheduler/Scheduler
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from accelplug._errors import HostError
from accelplug.hooks.paying import DOUBT, HOPE, MEMORY, TRY, ByWidth, Pause, Seconds, best_length, may_pay
from accelplug.hosts.costs import StepCosts
from accelplug.hosts.vllm.clock import decodes
from accelplug.hosts.vllm.log import LOG
from accelplug.hosts.vllm.subclasses import Subclasses

TABLE: Final = "dynamic_sd_lookup"
SCHEDULE: Final = [(1, 1, 1 << 16), (2, 2, 0), (3, 3, 1 << 16)]
"""What vLLM is told, so that it readies itself for steps of both lengths: all tokens, which it cuts to ``num_speculative_tokens``, and none."""

EVEN: Final = ("ngram", "eagle", "eagle3", "mtp", "draft_model")
"""vLLM's drafters that draft fewer tokens than the most, and none, on the V1 runner; the others there take one length only, or were not read."""

_TRIED: Final = 4  # steps of a try: what is drafted in one is verified in the next, and only the steps in between are timed
_LASTS: Final = 256  # steps: one length runs for long, and what was measured of others before may come from a busy moment or shorter texts
_LONGEST_PAUSE: Final = 256  # steps: a whole batch waits, for requests that come in meanwhile too


def lengthened(scheduler_cls: str) -> str:
    """Return the name of accelplug's subclass of a scheduler.

    :param scheduler_cls: as vLLM takes it, ``"package.module.Name"``.
    """
    return _SUBCLASSES.name_of(scheduler_cls)


def __getattr__(name: str) -> type:
    return _SUBCLASSES(name)


_SUBCLASSES: Final = Subclasses(__name__, lambda base, _: type(f"Adaptive{base.__name__}", (AdaptiveScheduler, base), {"__module__": __name__}), dot="/")


def refuse_one_length(config: Any, *, v2: bool) -> None:
    """Refuse what drafts one length only, or whose steps take what nobody can measure here.

    :param config: vLLM's configuration, with drafts of a length for each size of a batch.
    :raises HostError: naming it.
    """
    drafter, parallel = config.speculative_config, config.parallel_config
    if not drafter.uses_dynamic_speculative_decoding():
        raise HostError("vLLM drafts one length for ever under data parallelism, and length 'adaptive' is one that changes; set length 'fixed'")
    if parallel.pipeline_parallel_size > 1:
        raise HostError("length 'adaptive' weighs drafts against what steps take, and under pipeline parallelism several run at once; set length 'fixed'")
    if getattr(drafter, "enable_adaptive_verification", False):
        raise HostError("vLLM's adaptive verification and length 'adaptive' both decide how many drafts are verified; remove one of them")
    if drafter.method == "extract_hidden_states" or (not v2 and (drafter.method not in EVEN or drafter.parallel_drafting or drafter.use_step3p5_mtp())):
        raise HostError(
            f"vLLM's drafter {drafter.method!r} drafts one length for ever in its {'V2' if v2 else 'V1'} runner, and length 'adaptive' is one that "
            "changes; set length 'fixed'"
        )


class AdaptiveScheduler:
    """What accelplug adds to a scheduler. It stands before vLLM's class in the order of inheritance."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if getattr(self, TABLE, None) is None:
            raise HostError(f"vLLM's scheduler has no {TABLE} any more, which length 'adaptive' needs; use a tested release")
        self.accelplug_lengths = Lengths(self.num_spec_tokens)  # type: ignore[attr-defined]
        setattr(self, TABLE, self.accelplug_lengths)
        LOG.info("accelplug: vLLM's drafter drafts as many tokens as pay for themselves, at most %d", self.accelplug_lengths.most)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take a step's tokens."""
        self.accelplug_lengths.end_step(scheduler_output, model_runner_output, time.perf_counter())
        return super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]


class Lengths:
    """Stands in for the scheduler's table: number of requests -> how many tokens to draft for each of them, behind the step that is laid out.

    A step is timed from the end of the one before to its own, which is what it takes where steps overlap too, as under asynchronous
    scheduling. It verifies what was drafted before and drafts what comes next, so that only steps count in which that is as much.

    :param most: tokens.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.costs, self.worth = StepCosts(_LASTS), BatchWorth()
        self._by_width = ByWidth(1 + most)
        self._asked = 0  # of the step that ended last
        self._ended: float | None = None  # when; None where the engine had nothing to do
        self._laid = False  # whether a step was laid out since: behind the last one of several that overlap nothing fills the time

    def __getitem__(self, num_reqs: int) -> int:
        """Return it; vLLM asks once a step. Nothing is drafted until plain steps of such a batch were measured."""
        self._laid = True
        return self.worth.length(self._by_width(self.costs.seconds), self.most)

    def end_step(self, output: Any, sampled: Any, now: float) -> None:
        """Learn from a step.

        :param output: vLLM's SchedulerOutput.
        :param sampled: its ModelRunnerOutput.
        :param now: seconds, on any clock.
        """
        if not output.num_scheduled_tokens:
            self._ended = None
            return
        if self._ended is not None and self._laid and (step := self._timed(output)) is not None:
            width, requests = step
            self.costs.add(width, now - self._ended, requests)
        self._asked, self._ended, self._laid = output.num_spec_tokens_to_schedule, now, False
        self.worth.learn(list(_judged(output, sampled)))

    def _timed(self, output: Any) -> tuple[int, int] | None:
        """Return width and requests of a step if its time is that of others of its width. One in which no drafts were found is no plain one."""
        asked, step = output.num_spec_tokens_to_schedule, decodes(output.num_scheduled_tokens, output.scheduled_spec_decode_tokens)
        is_steady = asked == self._asked and not output.scheduled_new_reqs
        return step if is_steady and step is not None and (step[0] > 1 or not asked) else None


def _judged(output: Any, sampled: Any) -> Iterator[tuple[int, int]]:
    """Yield of each draft that a step verified how many tokens it had, without those that a grammar cut, and how many were kept."""
    cut = output.num_invalid_spec_tokens or {}
    for req_id, drafts in output.scheduled_spec_decode_tokens.items():
        new = sampled.sampled_token_ids[sampled.req_id_to_index[req_id]] if sampled.sampled_token_ids else []
        drafted = len(drafts) - cut.get(req_id, 0)
        if new and drafted > 0:
            yield drafted, len(new) - 1


@dataclass(slots=True)
class BatchWorth:
    """How the drafts of all requests fared, recent steps counting more, and when to try again after giving up."""

    accepted: float = HOPE
    judged: float = HOPE
    pause: Pause = field(default_factory=lambda: Pause(_LONGEST_PAUSE))
    trying: int = 0  # how many further steps
    latest: float = 0.0  # rate of the last step that verified drafts

    @property
    def rate(self) -> float:
        """How likely the next drafted token is right."""
        return self.accepted / (self.judged + DOUBT)

    def learn(self, drafts: Sequence[tuple[int, int]]) -> None:
        """Count a step's drafts, of each request the tokens up to the first rejected one.

        :param drafts: of each how many tokens there were, and how many were accepted.
        """
        if not drafts:
            return
        accepted, judged = sum(kept for _, kept in drafts), sum(min(kept + 1, count) for count, kept in drafts)
        self.accepted, self.judged = MEMORY * self.accepted + accepted / len(drafts), MEMORY * self.judged + judged / len(drafts)
        self.latest = accepted / judged

    def length(self, seconds: Seconds | None, most: int) -> int:
        """Return how many tokens to draft: those of most tokens per second, or a few to find out.

        :param seconds: of steps over 1, 2, ... positions, [1 + most] or more; None where not even plain ones were measured.
        """
        if seconds is None:
            return 0
        if best := self._best(self.rate, seconds, most):
            self.pause.over()
            self.trying = 0
            return best
        if not self.trying:
            self._begin_try(is_over=bool(self._best(self.latest, seconds, most)))
        if not self.trying:
            return 0
        self.trying -= 1
        return min(most, TRY)

    def _begin_try(self, *, is_over: bool) -> None:
        """Begin one when it is time to.

        :param is_over: the last try went so well that it would pay. It does not make up for all that went wrong: go on trying.
        """
        if is_over:
            self.pause.over()
        if self.pause.tries():
            self.pause.spent()
            self.trying = _TRIED

    @staticmethod
    def _best(rate: float, seconds: Seconds, most: int) -> int:
        return best_length(rate, seconds, most) if may_pay(rate) else 0
