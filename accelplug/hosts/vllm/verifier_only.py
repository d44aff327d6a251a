"""Our verifier behind a drafter of vLLM's own, which the user configured as always."""

from __future__ import annotations

from typing import Any

from accelplug.hooks.registry import Technique
from accelplug.hosts.stats import Stats, TechniqueStats
from accelplug.hosts.vllm.board import Counters
from accelplug.hosts.vllm.judging import Judge
from accelplug.hosts.vllm.seat import Seat
from accelplug.hosts.vllm.session import counters_of, describe


class VerifierOnly:
    """Watches over a rule; vLLM drafts.

    :param rule: the built verifier.
    :param seat: None where the rule is vLLM's own.
    :param repaired: faults of vLLM's that were worked around.
    """

    quiet = False

    def __init__(self, runner: Any, rule: Technique, seat: Seat | None, *, v2: bool, repaired: list[str]) -> None:
        self.runner, self.rule, self.seat, self.v2 = runner, rule, seat, v2
        self.seams = [*([] if seat is None else ["rejection_sampler"]), *repaired]

    def begin_step(self, scheduler_output: Any) -> None:
        """Remember what new requests set for themselves, and forget those that ended."""
        if self.seat is None:
            return
        self.seat.requests.end(scheduler_output.finished_req_ids)
        for request in scheduler_output.scheduled_new_reqs:
            self.seat.requests.begin(request.req_id, request.sampling_params)

    def end_step(self, output: Any) -> None:
        """Do nothing."""

    def trim(self, drafts: Any) -> Any:
        """Return them as they are."""
        return drafts

    def verify(self) -> None:
        """Refuse to serve if somebody replaced the rejection sampler."""
        if self.seat is not None:
            self.seat.verify()

    def counters(self) -> list[Counters]:
        """Return the verifier's counters."""
        if self.seat is None:
            return []
        stats, judge = self._counted(self.seat.judge), self.seat.judge
        return [counters_of(stats.techniques[0], stats.lossy_accepts, judge.seconds, off=judge.switched_off is not None)]

    def status(self) -> dict[str, Any]:
        """Return what runs, and what the rule decided; None in place of counters where the rule is vLLM's own."""
        config = self.runner.vllm_config
        speculative = config.speculative_config
        drafter = {"name": speculative.method, "spec": f"num_speculative_tokens={speculative.num_speculative_tokens}", "distribution": "vllm"}
        runner = {"runner": "V2" if self.v2 else "V1", "async": bool(config.scheduler_config.async_scheduling)}
        failed = None if self.seat is None else self.seat.judge.switched_off
        return {**runner, "drafter": drafter, "verifier": describe(self.rule, failed), "stats": self._stats(), "seams": self.seams}

    def _stats(self) -> dict[str, Any] | None:
        if self.seat is None:
            return None
        kept = self._counted(self.seat.judge).as_dict()
        return {name: kept[name] for name in ("drafts", "drafted", "accepted", "acceptance", "lossy_accepts", "techniques")}

    def _counted(self, judge: Judge) -> Stats:
        stats = Stats(techniques=[TechniqueStats.of(self.rule)])
        drafts, judged, accepted, stats.lossy_accepts = judge.counts()
        stats.count(drafts, judged, accepted)
        return stats
