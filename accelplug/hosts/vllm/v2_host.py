"""Drafts of a host-memory drafter for the V2 runner. On CUDA this waits for the device once a step; on a CPU there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from vllm.utils.gpu_sync_debug import gpu_sync_allowed
from vllm.utils.torch_utils import async_tensor_h2d

from accelplug.hooks.drafting import IntArray
from accelplug.hosts.vllm.chains import Batch, Chains
from accelplug.hosts.vllm.drawn import DraftLogits
from accelplug.hosts.vllm.mirror import TokenMirror
from accelplug.hosts.vllm.session import Session


class HostSource:
    """Mirrors committed tokens in host memory, asks the drafter, and pads its chains to one length.

    :param req_states: vLLM's RequestState.
    :param num_tokens: the length of every chain.
    :param sampling: vLLM's SamplingStates, for each slot's temperature.
    """

    def __init__(self, session: Session, req_states: Any, num_tokens: int, sampling: Any = None) -> None:
        self.req_states = req_states
        self.num_tokens = num_tokens
        self.chains = Chains(session, num_tokens, req_states.max_model_len, req_states.max_num_reqs)
        self.mirror = TokenMirror(req_states.max_num_reqs, req_states.max_model_len, num_tokens + 1)
        self._arriving: dict[str, IntArray] = {}
        self._own: Mapping[str, int] = {}
        device = req_states.total_len.gpu.device
        self.real = torch.zeros(req_states.max_num_reqs, dtype=torch.int64, device=device)
        self._laid = None
        if self.chains.drawn is not None:
            self._laid = DraftLogits(req_states.max_num_reqs, num_tokens, session.vocab_size, sampling.temperature.gpu)
        self.logits = None if self._laid is None else self._laid.tensor

    def end(self, req_ids: set[str]) -> None:
        """Finish requests, also such as never came to a step."""
        self.chains.end(req_ids)
        for req_id in req_ids:
            self._arriving.pop(req_id, None)

    def arrive(self, req_id: str, tokens: Sequence[int], prompt_length: int, limit: int, params: Any) -> None:
        """Keep a copy: within one process the scheduler goes on to append to the same list."""
        del prompt_length
        self.chains.begin(req_id, limit, params)
        self._arriving[req_id] = np.array(tokens, dtype=np.int32)

    def force(self, own: Mapping[str, int], drafts: Mapping[str, Sequence[int]]) -> None:
        """Remember how many of a request's drafts are the drafter's; what is forced is no padding either."""
        self._own = own
        for req_id in own:
            self.real[self.req_states.req_id_to_index[req_id]] = len(drafts[req_id])
        if self._laid is not None and own:  # everything under a grammar is verified as chosen
            slots = async_tensor_h2d([self.req_states.req_id_to_index[req_id] for req_id in own], self.real.device)
            self._laid.choose(slots, self.req_states.draft_tokens[slots])

    def propose(self, input_batch: Any, num_sampled: torch.Tensor, last_sampled: torch.Tensor, drafts: torch.Tensor) -> None:
        """Fill `drafts` with chains, each padded with the request's last token."""
        del num_sampled, last_sampled
        slots: IntArray = input_batch.idx_mapping_np
        gained = self._pull(input_batch.req_ids, slots)
        active = np.flatnonzero(gained > 0)
        batch = self._batch(input_batch.req_ids, slots, gained, active)
        scheduled = input_batch.num_draft_tokens_per_req
        verified = {} if scheduled is None else {**dict(zip(input_batch.req_ids, scheduled.tolist(), strict=True)), **self._own}
        chains = self.chains.step(batch, verified)
        padded = np.repeat(self.mirror.tokens[slots, self.mirror.lengths[slots] - 1].astype(np.int64)[:, None], self.num_tokens + 1, 1)
        for i, chain in zip(active.tolist(), chains, strict=True):
            padded[i, : len(chain)] = chain
        padded[:, -1] = self.counts(input_batch.req_ids)
        both = async_tensor_h2d(padded, drafts.device)  # one transfer for the drafts and how many they are, and nobody waits for it
        drafts.copy_(both[:, :-1])
        slots_on_device = input_batch.idx_mapping.long()
        self.real[slots_on_device] = both[:, -1]
        if self._laid is not None and self.chains.drawn is not None:
            self._laid.lay(slots_on_device, drafts, self.chains.drawn.rows_at(input_batch.req_ids))

    def counts(self, req_ids: Sequence[str]) -> list[int]:
        """Return how many drafts of each request are no padding."""
        return self.chains.drafted(req_ids)

    def settle(self) -> None:
        """Do nothing: host-memory drafts are counted as they are verified."""

    def _pull(self, req_ids: list[str], slots: IntArray) -> IntArray:
        for req_id, slot in zip(req_ids, slots.tolist(), strict=True):
            if (tokens := self._arriving.pop(req_id, None)) is not None:
                self.mirror.begin(slot, tokens)
        with gpu_sync_allowed():
            return self.mirror.pull(slots, self.req_states.all_token_ids.gpu, self.req_states.total_len.gpu)

    def _batch(self, req_ids: list[str], slots: IntArray, gained: IntArray, active: IntArray) -> Batch:
        owned = slots[active].astype(np.int64)
        return Batch([req_ids[i] for i in active.tolist()], owned, self.mirror.tokens, self.mirror.lengths[owned], gained[active].tolist(), owned)
