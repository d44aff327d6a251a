"""The steps of a host-memory drafter, the same on both runners: who is active, what is new, what was kept, what comes next."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from accelplug.hooks.drafting import CommitView, DraftView, IntArray
from accelplug.hosts.vllm.session import Session
from accelplug.hosts.vllm.slots import Request, SlotTable


@dataclass(frozen=True, slots=True)
class Batch:
    """The requests of a step that have a new token, in host memory."""

    req_ids: list[str]
    rows: IntArray  # [num_reqs] into `tokens`
    tokens: IntArray  # [num_rows, max_length] committed tokens
    lengths: IntArray  # [num_reqs] committed tokens, the new ones included
    sampled: IntArray  # [num_reqs] new tokens of this step, 1 + what the verifier kept
    slots: IntArray | None = None  # [num_reqs] the engine's own slots, where it has them


class Chains:
    """Shows each step to a host-memory drafter, and counts what the verifier kept of its drafts.

    :param num_tokens: the most tokens drafted for a request.
    :param max_length: most tokens a request may have.
    :param num_slots: most requests at once.
    """

    def __init__(self, session: Session, num_tokens: int, max_length: int, num_slots: int) -> None:
        self.session = session
        self.num_tokens = num_tokens
        self.max_length = max_length
        self.table = SlotTable(num_slots)
        self._limits: dict[str, int] = {}

    def begin(self, req_id: str, limit: int) -> None:
        """Remember the most tokens a request may have, its prompt included: drafts past them would be thrown away."""
        self._limits[req_id] = limit

    def end(self, req_ids: set[str]) -> None:
        """Finish requests that ended, were preempted, or begin anew under the same id."""
        self.session.finish(self.table.end(req_ids))
        for req_id in req_ids:
            self._limits.pop(req_id, None)

    def commit(self, batch: Batch, scheduled: Mapping[str, int]) -> list[Request]:
        """Show the drafter the new tokens.

        :param scheduled: request id -> how many draft tokens the engine verified in this step.
        :returns: the batch's requests.
        """
        requests = self._claim(batch)
        real = np.array([min(scheduled.get(req_id, 0), r.drafted) for req_id, r in zip(batch.req_ids, requests, strict=True)], dtype=np.int64)
        accepted = np.minimum(np.maximum(batch.sampled - 1, 0), real)
        self.session.stats.count(int(real.sum()), int(accepted.sum()))
        self.session.stats.tokens += int(batch.sampled.sum())
        fresh = batch.lengths - np.array([request.length for request in requests], dtype=np.int64)
        slots = np.array([request.slot for request in requests], dtype=np.int64)
        self.session.observe(CommitView(slots, batch.rows, batch.tokens, batch.lengths, fresh, accepted))
        for request, length in zip(requests, batch.lengths.tolist(), strict=True):
            request.length, request.drafted = length, 0
        return requests

    def propose(self, batch: Batch, requests: list[Request]) -> list[list[int]]:
        """Return one chain per request of the batch, none longer than what the engine can verify."""
        # The target model adds one token of its own after the drafts, and that has to fit too.
        limits = np.array([min(self._limits.get(req_id, self.max_length), self.max_length) for req_id in batch.req_ids], dtype=np.int64)
        budgets = np.clip(limits - batch.lengths - 1, 0, self.num_tokens)
        slots = np.array([request.slot for request in requests], dtype=np.int64)
        drafts = self.session.propose(DraftView(slots, batch.rows, batch.tokens, batch.lengths, budgets))
        tokens, offsets = drafts.tokens.tolist(), drafts.offsets.tolist()
        chains = [tokens[begin:end] for begin, end in itertools.pairwise(offsets)]
        for request, chain in zip(requests, chains, strict=True):
            request.drafted = len(chain)
        return chains

    def _claim(self, batch: Batch) -> list[Request]:
        """Return the batch's requests, after starting those that are new to the drafter."""
        keep, started, lost = set(batch.req_ids), [], []
        for i, (req_id, length) in enumerate(zip(batch.req_ids, batch.lengths.tolist(), strict=True)):
            known = self.table.get(req_id)
            if known is not None and known.length < length:
                continue
            if known is not None:  # its tokens were taken back: nothing that the drafter knows of it holds
                lost += self.table.end((req_id,))
            slot = self.table.free_slot(keep) if batch.slots is None else int(batch.slots[i])
            request, previous = self.table.claim(req_id, slot)
            lost += [slot] if previous is not None else []
            started.append(request.slot)
        self.session.finish(lost)
        self.session.start(started)
        return [self.table[req_id] for req_id in batch.req_ids]
