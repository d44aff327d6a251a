"""The seam of the V1 runner: vLLM's own interface for drafters of users, ``method="custom_class"``.

vLLM makes the `Proposer` before the model is loaded, and accelplug's worker gives it its drafter afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from vllm.v1.outputs import DraftTokenIds

from accelplug._errors import HostError
from accelplug.hooks.drafting import IntArray
from accelplug.hosts.vllm import cpu_expand, cpu_kernels
from accelplug.hosts.vllm.attachment import require_in_effect
from accelplug.hosts.vllm.board import Counters
from accelplug.hosts.vllm.chains import Batch, Chains
from accelplug.hosts.vllm.drawn import hand_over
from accelplug.hosts.vllm.forced import forced_in
from accelplug.hosts.vllm.plugin import KEY
from accelplug.hosts.vllm.seat import Seat
from accelplug.hosts.vllm.session import Session
from accelplug.hosts.vllm.settings import read_settings
from accelplug.hosts.vllm.slots import token_limit
from accelplug.hosts.vllm.undrafted import Undrafted


class Asked(Protocol):
    """Who answers for the proposer."""

    def propose(self, sampled: list[list[int]], lengths: IntArray, tokens: IntArray) -> list[list[int]]:
        """Return a chain for every row."""


class Proposer:
    """What vLLM calls for drafts after every step."""

    def __init__(self, vllm_config: Any) -> None:
        self.num_tokens: int = vllm_config.speculative_config.num_speculative_tokens
        self.attachment: Asked | None = None

    def load_model(self, target_model: Any) -> None:
        """Do nothing: vLLM's CPU runner calls this always."""

    def propose(
        self, sampled_token_ids: list[list[int]], num_tokens_no_spec: IntArray, token_ids_cpu: IntArray, slot_mappings: Any = None
    ) -> list[list[int]]:
        """Return a chain for every row; none for rows that are still prefilling.

        :param sampled_token_ids: the new tokens of each row of the batch.
        :param num_tokens_no_spec: committed tokens of each row, [num_rows].
        :param token_ids_cpu: [num_rows, max_length].
        :raises HostError: accelplug's worker did not start this engine.
        """
        del slot_mappings
        if self.attachment is None:
            raise HostError("accelplug's drafter has no worker; leave worker_cls as accelplug set it when the configuration was made")
        return self.attachment.propose(sampled_token_ids, num_tokens_no_spec, token_ids_cpu)


def repair(runner: Any) -> list[str]:
    """Work around what is wrong in the V1 runner as soon as anything drafts; return what that replaced.

    vLLM's rejection sampler dies on a CPU when a step has requests with top-k and no draft at all, such as a step of
    prompts only (0.32: ``max()`` of an empty tensor in ``apply_top_k_only``), so such steps are sampled plainly.
    """
    sample = runner._sample

    def sample_plainly_without_drafts(logits: Any, spec_decode_metadata: Any) -> Any:
        drafted = spec_decode_metadata is not None and any(spec_decode_metadata.num_draft_tokens)
        return sample(logits, spec_decode_metadata if drafted else None)

    runner._sample = sample_plainly_without_drafts
    if runner.device.type != "cpu":
        return ["_sample"]
    return ["_sample", *cpu_kernels.hand_over(), *(["expand_batch_to_tokens"] if cpu_expand.repair() else [])]


class V1Attachment:
    """Feeds the V1 runner's batches to a host-memory drafter. V1 rows move between steps; slots do not.

    :param runner: vLLM's V1 model runner.
    """

    def __init__(self, runner: Any, session: Session) -> None:
        config = runner.vllm_config
        if not isinstance(runner.drafter, Proposer):
            raise HostError(f"vLLM's V1 runner drafts with a {type(runner.drafter).__name__} and not with accelplug's proposer")
        self.runner = runner
        self.session = session
        self.proposer = runner.drafter
        self.proposer.attachment = self
        self.chains = Chains(session, self.proposer.num_tokens, config.model_config.max_model_len, config.scheduler_config.max_num_seqs)
        self.repaired = repair(runner)
        if self.chains.drawn is not None:
            hand_over(runner, self.chains.drawn)
        self.undrafted = Undrafted(runner, self.draft)
        # accelplug's scheduler puts what a grammar forces behind a request's drafts, whether it has any or not
        self._reads_empty = read_settings(config.additional_config[KEY]).grammar is not None
        self.seat = None if session.judge is None else Seat(runner, session.judge, session.requests, v2=False)
        self._scheduled: dict[str, int] = {}
        self._rows = np.arange(config.scheduler_config.max_num_seqs)
        self._rows.flags.writeable = False  # drafters are shown this very array
        self._asked = False
        self._drafted: DraftTokenIds | None = None  # behind a step in which vLLM itself asks for nothing

    def begin_step(self, scheduler_output: Any) -> None:
        """Finish requests that ended or begin anew, and remember which drafts this step verifies."""
        if scheduler_output.finished_req_ids or scheduler_output.scheduled_new_reqs:
            self._change(scheduler_output.finished_req_ids, scheduler_output.scheduled_new_reqs)
        drafts = scheduler_output.scheduled_spec_decode_tokens
        if drafts:
            self._scheduled = {req_id: len(tokens) - tokens.count(-1) for req_id, tokens in drafts.items()} | forced_in(scheduler_output)
        else:
            self._scheduled = {}
        self._asked, self._drafted = False, None
        self.session.stats.forwards += len(scheduler_output.num_scheduled_tokens)
        if self.session.clock.wanted:
            self.session.clock.begin(scheduler_output)

    def _change(self, ended: set[str], new: Sequence[Any]) -> None:
        """Finish requests, and begin others."""
        self.chains.end(ended | {request.req_id for request in new})
        for request in new:
            # Embeddings as prompt have no ids; before 0.32 there is nothing but the ids.
            num_prompt_tokens = getattr(request, "prompt_len", None) or len(request.prompt_token_ids or ())
            self.chains.begin(request.req_id, token_limit(num_prompt_tokens, request.sampling_params, self.chains.max_length), request.sampling_params)
        self.session.stats.requests += len(new)

    def propose(self, sampled: list[list[int]], lengths: IntArray, tokens: IntArray) -> list[list[int]]:
        """Show the step to the drafter and return its chains, one per row."""
        self._asked = True
        drafted = self.chains.step(self._batch(sampled, lengths, tokens), self._scheduled)
        if len(drafted) == len(sampled):
            return drafted
        chains = iter(drafted)
        return [next(chains) if new else [] for new in sampled]

    def draft(self, output: Any) -> None:
        """Draft behind a step without drafts, in which vLLM does not ask."""
        sampled = getattr(output, "sampled_token_ids", None)
        if not sampled:
            return
        rows = self.runner.input_batch
        drafts = self.propose(sampled, rows.num_tokens_no_spec, rows.token_ids_cpu)
        if self._reads_empty or any(drafts):
            self._drafted = DraftTokenIds(list(rows.req_ids), drafts)

    def end_step(self, output: Any) -> None:
        """Show the step to the drafter where vLLM asked for no drafts, as it does near the maximum length."""
        sampled = getattr(output, "sampled_token_ids", None)
        if self._asked or not sampled:
            return
        rows = self.runner.input_batch
        self.chains.commit(self._batch(sampled, rows.num_tokens_no_spec, rows.token_ids_cpu), self._scheduled)

    @property
    def quiet(self) -> bool:
        """Whether the last step had nothing to count, as those without drafts, and nothing failed."""
        return self.undrafted.is_plain and self.session.switched_off is None

    def trim(self, drafts: Any) -> Any:
        """Return no drafts where the drafter was not asked; vLLM would schedule rows of token 0 instead.

        None spares vLLM the way through its scheduler where nobody has a draft: it takes drafts off a request as it lays them out.
        """
        drafts = self._drafted or drafts
        if drafts is None:
            return None
        if not self._asked:
            drafts = type(drafts)(drafts.req_ids, [[] for _ in drafts.req_ids])
        return drafts if self._reads_empty or any(drafts.draft_token_ids) else None

    def verify(self) -> None:
        """Refuse to serve if somebody replaced the proposer or the rejection sampler."""
        require_in_effect(self.runner.drafter, self.proposer, "runner.drafter")
        if self.seat is not None:
            self.seat.verify()

    def counters(self) -> list[Counters]:
        """Return the drafter's counters and the verifier's."""
        return self.session.counters()

    def status(self) -> dict[str, Any]:
        """Return what runs and what came of it."""
        steps = ["execute_model", "sample_tokens"] if self.undrafted.applies else []
        rows = [] if self.chains.drawn is None else ["_get_spec_decode_draft_probs"]
        seams = ["custom_class proposer", *steps, *rows, *([] if self.seat is None else ["rejection_sampler"]), *self.repaired]
        return {"runner": "V1", "async": False, **self.session.status(), "seams": seams}

    def _batch(self, sampled: list[list[int]], lengths: IntArray, tokens: IntArray) -> Batch:
        req_ids, counts = self.runner.input_batch.req_ids, list(map(len, sampled))
        if all(counts):  # no request is still reading its prompt
            return Batch(req_ids[: len(counts)], self._rows[: len(counts)], tokens, lengths[: len(counts)].astype(np.int64), counts)
        active = [row for row, count in enumerate(counts) if count]
        rows = self._rows[active]
        return Batch([req_ids[row] for row in active], rows, tokens, lengths[rows].astype(np.int64), [counts[row] for row in active])
