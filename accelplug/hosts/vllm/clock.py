"""What this engine's steps take, for techniques that weigh drafts against their cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from accelplug._errors import HostError
from accelplug.hosts.costs import StepCosts


class Clock:
    """Times steps that only decode, from the beginning of one to that of the next: drafting and scheduling are part of a step.

    A step's width is the mean number of positions of its requests. Nothing is timed until somebody asks.

    :param pads: whether every step verifies drafts of one length, however many there are.
    :param ranks: how many tensor-parallel ranks run the drafter.
    """

    def __init__(self, *, pads: bool, ranks: int) -> None:
        self.costs = StepCosts()
        self.pads, self.ranks = pads, ranks
        self.wanted = False
        self._running: tuple[int, int] | None = None  # width and requests of the step that began last, where it counts
        self._began = 0.0

    def seconds(self) -> Mapping[int, float]:
        """Return width -> seconds, of batches as large as the one that runs.

        :raises HostError: steps are padded, or ranks would decide by clocks of their own.
        """
        if self.pads:
            raise HostError(
                "drafts are padded to one length under asynchronous scheduling and full CUDA graphs, where a step costs the same whatever is "
                "drafted, and a technique asks for that cost; set async_scheduling=False, or runner 'v1'"
            )
        if self.ranks > 1:
            raise HostError("each tensor-parallel rank has a clock of its own, by which they would draft differently; run with tensor_parallel_size=1")
        self.wanted = True
        return self.costs.seconds

    def begin(self, scheduler_output: Any) -> None:
        """Begin a step, which ends the one before. Where new requests come in, the engine may have been idle."""
        if not self.wanted:
            return
        now = time.perf_counter()
        if self._running is not None and not scheduler_output.scheduled_new_reqs:
            width, count = self._running
            self.costs.add(width, now - self._began, count)
        self._began = now
        self._running = decodes(scheduler_output.num_scheduled_tokens, scheduler_output.scheduled_spec_decode_tokens)


def decodes(scheduled: Mapping[str, int], drafts: Mapping[str, list[int]]) -> tuple[int, int] | None:
    """Return width (the mean number of positions, rounded up) and requests of a step, None where a request reads its prompt or there is none."""
    if not scheduled or any(count != 1 + len(drafts.get(req_id, ())) for req_id, count in scheduled.items()):
        return None
    return -(-sum(scheduled.values()) // len(scheduled)), len(scheduled)
