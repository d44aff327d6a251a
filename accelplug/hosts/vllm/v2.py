"""The seam of the V2 runner: the speculator, swapped on the instance after the model is loaded.

vLLM 0.32 admits no drafters of users on V2. So its own n-gram drafter is configured (``method="ngram_gpu"``), which
needs no second model, keeps every request's tokens on the device and may run under asynchronous scheduling; and
accelplug takes that drafter's place. vLLM's logs and metrics go on to say ``ngram_gpu``; accelplug's say who it is.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.worker.gpu.spec_decode.ngram.speculator import NgramGPUSpeculator
from vllm.v1.worker.gpu.spec_decode.speculator import BaseSpeculator

from accelplug._errors import HostError
from accelplug.hosts.vllm.attachment import require_in_effect, trims
from accelplug.hosts.vllm.board import Counters
from accelplug.hosts.vllm.forced import forced_in
from accelplug.hosts.vllm.log import LOG
from accelplug.hosts.vllm.seat import Seat
from accelplug.hosts.vllm.session import Session
from accelplug.hosts.vllm.slots import token_limit
from accelplug.hosts.vllm.v2_device import DeviceSource
from accelplug.hosts.vllm.v2_form import drafts_on_device, expected_cost
from accelplug.hosts.vllm.v2_host import HostSource
from accelplug.hosts.vllm.v2_source import Source


class Speculator(BaseSpeculator):  # type: ignore[misc]
    """What vLLM calls for drafts after every step. It always answers with chains of one length, padded.

    :param source: where the drafts come from.
    :param num_tokens: the length of every chain.
    """

    supports_mm_inputs = False

    def __init__(self, source: Source, max_num_reqs: int, num_tokens: int, device: torch.device) -> None:
        self.source = source
        self.draft_logits = source.logits
        self.drafts = torch.zeros(max_num_reqs, num_tokens, dtype=torch.int64, device=device)

    def init_cudagraph_manager(self, cudagraph_mode: Any) -> None:
        """Capture nothing: drafters run eagerly beside the target model's graphs."""

    def capture(self) -> None:
        """Capture nothing."""

    def propose(  # noqa: PLR0913  vLLM's signature
        self,
        input_batch: Any,
        attn_metadata: Any,  # noqa: ARG002
        slot_mappings: Any,  # noqa: ARG002
        last_hidden_states: Any,  # noqa: ARG002
        aux_hidden_states: Any,  # noqa: ARG002
        num_sampled: torch.Tensor,
        num_rejected: Any,  # noqa: ARG002
        last_sampled: torch.Tensor,
        *others: Any,  # noqa: ARG002
        dummy_run: bool = False,
        **more: Any,  # noqa: ARG002
    ) -> torch.Tensor:
        """Return drafts, [num_reqs, num_tokens] int64 on the device. Dummy runs only want the shape."""
        drafts = self.drafts[: input_batch.num_reqs]
        if not dummy_run:
            self.source.propose(input_batch, num_sampled, last_sampled.view(-1), drafts)
        return drafts


class V2Attachment:
    """Puts the speculator in place.

    :param runner: vLLM's V2 model runner, its model loaded, nothing profiled or captured yet.
    """

    quiet = False

    def __init__(self, runner: Any, session: Session) -> None:
        config = runner.vllm_config
        if not isinstance(runner.speculator, NgramGPUSpeculator):
            raise HostError(f"vLLM's V2 runner drafts with a {type(runner.speculator).__name__} and not with the n-gram drafter accelplug replaces")
        num_tokens = config.speculative_config.num_speculative_tokens
        on_device = drafts_on_device(session.bound, config)
        self.runner = runner
        self.session = session
        if on_device:
            self.source: Source = DeviceSource(session, runner.req_states, num_tokens)
        else:
            self.source = HostSource(session, runner.req_states, num_tokens, runner.sampler.sampling_states)
        self.speculator = Speculator(self.source, runner.req_states.max_num_reqs, num_tokens, runner.device)
        runner.speculator = self.speculator
        self.seat = None if session.judge is None else Seat(runner, session.judge, session.requests, v2=True, real=self.source.real)
        self._preempted = set[str]()  # they come back as new ones, and were counted the first time
        self.is_async = bool(config.scheduler_config.async_scheduling)
        self.trims = trims(config)
        LOG.info("accelplug: %s", expected_cost(session.bound, config, runner.device.type))
        if not self.trims:
            LOG.info("accelplug: every step verifies %d drafts of every request, drafted or padding", num_tokens)

    def begin_step(self, scheduler_output: Any) -> None:
        """Finish requests that ended, were preempted, or begin anew: V2 gives their slots away at once."""
        new = {request.req_id for request in scheduler_output.scheduled_new_reqs}
        self.source.end(scheduler_output.finished_req_ids | new | (scheduler_output.preempted_req_ids or set()))
        for request in scheduler_output.scheduled_new_reqs:
            limit = token_limit(request.prompt_len, request.sampling_params, self.runner.req_states.max_model_len)
            self.source.arrive(request.req_id, request.prefill_token_ids, request.prompt_len, limit, request.sampling_params)
        self.session.stats.requests += len(new - self._preempted)
        self._preempted = (self._preempted | (scheduler_output.preempted_req_ids or set())) - new - scheduler_output.finished_req_ids
        self.source.force(forced_in(scheduler_output), scheduler_output.scheduled_spec_decode_tokens)
        self.session.stats.forwards += len(scheduler_output.num_scheduled_tokens)
        self.session.clock.begin(scheduler_output)

    def end_step(self, output: Any) -> None:
        """Do nothing: the V2 runner asks for drafts in every step."""

    def trim(self, drafts: Any) -> Any:
        """Cut the padding off, so that the target model verifies real drafts only."""
        counts = self.source.counts(drafts.req_ids) if drafts is not None and self.trims else None
        if counts is None:
            return drafts
        tokens = [tokens[:count] for tokens, count in zip(drafts.draft_token_ids, counts, strict=True)]
        return type(drafts)(drafts.req_ids, tokens)

    def verify(self) -> None:
        """Refuse to serve if somebody replaced the speculator or the rejection sampler."""
        require_in_effect(self.runner.speculator, self.speculator, "runner.speculator")
        if self.seat is not None:
            self.seat.verify()

    def counters(self) -> list[Counters]:
        """Return the drafter's counters and the verifier's."""
        self.source.settle()
        return self.session.counters()

    def status(self) -> dict[str, Any]:
        """Return what runs and what came of it."""
        self.source.settle()
        rows = [] if self.source.logits is None else ["draft_logits"]
        seams = ["speculator", *rows, *(["take_draft_token_ids"] if self.trims else []), *([] if self.seat is None else ["rejection_sampler"])]
        drafts_in = "device" if isinstance(self.source, DeviceSource) else "host"
        return {"runner": "V2", "async": self.is_async, "drafts_in": drafts_in, **self.session.status(), "seams": seams}
