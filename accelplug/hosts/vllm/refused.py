"""The attachment of an engine that serves although accelplug refused to run in it: ``on_refused="serve"``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelplug._errors import AccelplugError
from accelplug.hosts.vllm.attachment import trims
from accelplug.hosts.vllm.board import Counters, write_refusal
from accelplug.hosts.vllm.log import LOG


class Refused:
    """Drafts nothing, in a place that was kept for a drafter.

    :param reason: the sentence of the refusal.
    :param drafts: whether that place is accelplug's; otherwise vLLM's own drafter has it.
    """

    quiet = True

    def __init__(self, runner: Any, reason: AccelplugError, *, v2: bool, drafts: bool) -> None:
        LOG.error("accelplug: %s; the engine serves without it, as on_refused='serve' asks", reason)
        self.reason, self.v2, self.drafts = str(reason), v2, drafts
        write_refusal(self.reason)
        self.config = runner.vllm_config
        if drafts and v2:
            from accelplug.hosts.vllm.v2 import Speculator
            from accelplug.hosts.vllm.v2_source import Nothing

            num_tokens = self.config.speculative_config.num_speculative_tokens
            source = Nothing(runner.req_states.max_num_reqs, runner.device)
            runner.speculator = Speculator(source, runner.req_states.max_num_reqs, num_tokens, runner.device)
            self.trims = trims(self.config)
        elif drafts:
            from accelplug.hosts.vllm.undrafted import Undrafted
            from accelplug.hosts.vllm.v1 import repair

            runner.drafter.attachment = self
            repair(runner)  # vLLM still takes it that something drafts
            Undrafted(runner, lambda _: None)
            self.trims = True

    def propose(self, sampled: list[list[int]], *_: Any) -> list[list[int]]:
        """Return no chains; V1's proposer asks for them."""
        return [[] for _ in sampled]

    def begin_step(self, scheduler_output: Any) -> None:
        """Do nothing."""

    def end_step(self, output: Any) -> None:
        """Do nothing."""

    def trim(self, drafts: Any) -> Any:
        """Return no drafts, where vLLM can do with fewer than it expects."""
        if drafts is None or not self.drafts or not self.trims:
            return drafts
        none: Sequence[list[int]] = [[] for _ in drafts.req_ids]
        return type(drafts)(drafts.req_ids, none)

    def verify(self) -> None:
        """Do nothing: there is nothing that could be replaced."""

    def counters(self) -> list[Counters]:
        """Return none."""
        return []

    def status(self) -> dict[str, Any]:
        """Say why nothing runs."""
        is_async = bool(self.config.scheduler_config.async_scheduling)
        return {"runner": "V2" if self.v2 else "V1", "async": is_async, "drafter": None, "verifier": None, "refused": self.reason, "stats": None, "seams": []}
