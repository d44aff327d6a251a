"""Drafts of a device drafter for the V2 runner: tensors in and out, and nothing that waits for the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm.utils.torch_utils import async_tensor_h2d

from accelplug.hooks.drafting import DeviceView
from accelplug.hosts.vllm.session import Session
from accelplug.hosts.vllm.slots import SlotTable


class DeviceSource:
    """Asks the drafter for chains of one length, and counts on the device what the verifier keeps of them.

    Its drafts count as chosen: that is exact also where they were drawn, and accepts fewer of those.

    :param req_states: vLLM's RequestState, with its tokens on the device.
    :param num_tokens: the length of every chain.
    """

    def __init__(self, session: Session, req_states: Any, num_tokens: int) -> None:
        self.session = session
        self.req_states = req_states
        self.num_tokens = num_tokens
        self.table = SlotTable(req_states.max_num_reqs)
        device = req_states.total_len.gpu.device
        self.real = torch.zeros(req_states.max_num_reqs, dtype=torch.int64, device=device)  # [num_slots] drafts that are no padding
        self.logits = None
        # [3, num_slots] each request's prompt length, the most tokens that it may have, and the most to draft for it
        self._known = torch.zeros_like(self.real).repeat(3, 1)
        self._arriving: dict[str, tuple[int, int, int]] = {}
        self._own: Mapping[str, int] = {}
        self._totals = torch.zeros(4, dtype=torch.int64, device=device)  # drafts, drafted, accepted, tokens; since settle()

    def end(self, req_ids: set[str]) -> None:
        """Finish requests, also such as never came to a step."""
        freed = self.table.end(req_ids)
        if freed:  # whoever comes next may bring padding, which is no draft of the one before
            self.real.index_fill_(0, async_tensor_h2d(freed, self.real.device, torch.int64), 0)
        self.session.finish(freed)
        self.session.requests.end(req_ids)
        for req_id in req_ids:
            self._arriving.pop(req_id, None)

    def arrive(self, req_id: str, tokens: Sequence[int], prompt_length: int, limit: int, params: Any) -> None:
        """Remember the lengths; the tokens are on the device."""
        del tokens
        self._arriving[req_id] = prompt_length, limit, self.session.begin(req_id, params, self.num_tokens)

    def force(self, own: Mapping[str, int], drafts: Mapping[str, Sequence[int]]) -> None:
        """Remember how many of a request's drafts are the drafter's; what is forced is no padding either."""
        self._own = own
        for req_id in own:
            self.real[self.req_states.req_id_to_index[req_id]] = len(drafts[req_id])

    def propose(self, input_batch: Any, num_sampled: torch.Tensor, last_sampled: torch.Tensor, drafts: torch.Tensor) -> None:
        """Fill `drafts`; once the drafter is switched off, with each request's last token."""
        slots = input_batch.idx_mapping
        self._count(slots, num_sampled, input_batch.cu_num_logits, input_batch.req_ids)
        self._start(input_batch.req_ids, input_batch.idx_mapping_np.tolist())
        states = self.req_states
        lengths = states.total_len.gpu[slots]
        parameters = self.session.requests.tensors(self.session.defaults, input_batch.req_ids, self.real.device)
        prompts, limits, most = self._known[:, slots]
        view = DeviceView(slots, states.all_token_ids.gpu, lengths, self.num_tokens, parameters, prompts.int())
        found = self.session.propose_on_device(view)
        if found is None:
            drafts.copy_(last_sampled[slots].unsqueeze(1).expand_as(drafts))
            self.real[slots] = 0
            return
        # A token outside the vocabulary would be read out of the embedding's bounds; what is drafted instead is only
        # a draft, and the verifier judges it like any other.
        drafts.copy_(found.tokens.clamp(0, self.session.vocab_size - 1))
        # Drafts past a request's limit would be verified and thrown away; the target model adds one token of its own.
        room = torch.minimum(limits - lengths.long() - 1, most).clamp(min=0)
        self.real[slots] = torch.minimum(found.counts.long().clamp(min=0), room) * (num_sampled > 0)

    def counts(self, req_ids: Sequence[str]) -> list[int] | None:
        """Return how many drafts of each request are no padding; None on a device that would have to be waited for."""
        if self.real.device.type != "cpu":
            return None
        found = [self.table.get(req_id) for req_id in req_ids]
        return [0 if slot is None else int(self.real[slot]) for slot in found]

    def settle(self) -> None:
        """Move the device's counters into the session's."""
        drafts, drafted, accepted, tokens = self._totals.tolist()
        self._totals.zero_()
        self.session.stats.count(drafts, drafted, accepted)
        self.session.stats.tokens += tokens

    def _count(self, slots: torch.Tensor, num_sampled: torch.Tensor, cu_num_logits: torch.Tensor, req_ids: list[str]) -> None:
        """Count the drafts that this step verified.

        :param slots: [num_reqs].
        :param num_sampled: [num_reqs].
        :param cu_num_logits: [num_reqs + 1] int32, where each request's rows of logits begin: its drafts and one more.
        """
        verified = cu_num_logits.diff().long() - 1
        if self._own:  # of these drafts the drafter's are not all
            own = [self._own.get(req_id, self.num_tokens) for req_id in req_ids]
            verified = async_tensor_h2d(own, slots.device).minimum(verified)
        real = torch.minimum(self.real[slots], verified) * (num_sampled > 0)
        accepted = torch.minimum(real, num_sampled.long() - 1).clamp(min=0)
        self._totals += torch.stack([(real > 0).sum(), real.sum(), accepted.sum(), num_sampled.long().sum()])

    def _start(self, req_ids: list[str], slots: list[int]) -> None:
        """Start the requests that are new to the drafter."""
        lost, started = [], []
        for req_id, slot in zip(req_ids, slots, strict=True):
            if self.table.get(req_id) is None:
                lost += [slot] if self.table.claim(req_id, slot) is not None else []
                started.append(slot)
        self.session.finish(lost)
        self.session.start(started)
        if started:
            unknown = 0, self.req_states.max_model_len, self.num_tokens
            known = [self._arriving.pop(req_id, unknown) for req_id, slot in zip(req_ids, slots, strict=True) if slot in started]
            rows = async_tensor_h2d([[slot, *lengths] for slot, lengths in zip(started, known, strict=True)], self._known.device)
            self._known[:, rows[:, 0]] = rows[:, 1:].T
