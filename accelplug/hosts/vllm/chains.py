"""The steps of a host-memory drafter, the same on both runners: who is active, what is new, what was kept, what comes next."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    sampled: list[int]  # [num_reqs] new tokens of this step, 1 + what the verifier kept
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
        self._limits: dict[str, tuple[int, int]] = {}

    def begin(self, req_id: str, limit: int, params: Any = None) -> None:
        """Remember what a request sets for itself, and the most tokens it may have.

        :param limit: its prompt included: drafts past that would be thrown away.
        :param params: vLLM's SamplingParams.
        """
        self._limits[req_id] = limit, self.session.begin(req_id, params, self.num_tokens)

    def end(self, req_ids: set[str]) -> None:
        """Finish requests that ended, were preempted, or begin anew under the same id."""
        self.session.finish(self.table.end(req_ids))
        self.session.requests.end(req_ids)
        for req_id in req_ids:
            self._limits.pop(req_id, None)

    def step(self, batch: Batch, scheduled: Mapping[str, int]) -> list[list[int]]:
        """Show the drafter the new tokens; return one chain per request of the batch, none longer than what the engine can verify.

        :param scheduled: request id -> how many draft tokens the engine verified in this step.
        """
        requests, view = self._commit(batch, scheduled)
        drafts = self.session.propose(view) if requests else None
        if drafts is None:
            return [[] for _ in requests]
        tokens, offsets = drafts.tokens.tolist(), drafts.offsets.tolist()
        chains = [tokens[begin:end] for begin, end in itertools.pairwise(offsets)]
        for request, chain in zip(requests, chains, strict=True):
            request.drafted = len(chain)
        return chains

    def commit(self, batch: Batch, scheduled: Mapping[str, int]) -> None:
        """Show the drafter the new tokens of a step after which the engine asks for no drafts."""
        self._commit(batch, scheduled)

    def _commit(self, batch: Batch, scheduled: Mapping[str, int]) -> tuple[list[Request], DraftView]:
        """Return the batch's requests, and the view to draft from."""
        requests = self._claim(batch)
        drafted, slots, fresh, accepted, budgets = 0, [], [], [], []
        for req_id, request, length, sampled in zip(batch.req_ids, requests, batch.lengths.tolist(), batch.sampled, strict=True):
            verified = min(scheduled.get(req_id, 0), request.drafted)  # the rest was padding
            drafted += verified
            slots.append(request.slot)
            fresh.append(length - request.length)
            accepted.append(min(max(sampled - 1, 0), verified))
            # The target model adds one token of its own after the drafts, and that has to fit too.
            budgets.append(min(max(request.limit - length - 1, 0), request.most))
            request.length, request.drafted = length, 0
        self.session.stats.count(drafted, sum(accepted))
        self.session.stats.tokens += sum(batch.sampled)
        columns = np.array((slots, fresh, accepted, budgets), dtype=np.int64)  # one array, since small ones cost as much as the loop
        if requests:
            self.session.observe(CommitView(columns[0], batch.rows, batch.tokens, batch.lengths, columns[1], columns[2]))
        return requests, DraftView(columns[0], batch.rows, batch.tokens, batch.lengths, columns[3], self._parameters(batch.req_ids))

    def _parameters(self, req_ids: list[str]) -> dict[str, IntArray]:
        """Return the drafter's per-request options, where a request of the batch sets one."""
        found = self.session.requests.values(self.session.defaults, req_ids)
        return {name: np.array(values, dtype=object if None in values else None) for name, values in found.items()}

    def _claim(self, batch: Batch) -> list[Request]:
        """Return the batch's requests, after starting those that are new to the drafter."""
        lengths = batch.lengths.tolist()
        known = [self.table.get(req_id) for req_id in batch.req_ids]
        if all(request is not None and request.length < length for request, length in zip(known, lengths, strict=True)):
            return known  # type: ignore[return-value]  # none of them is None
        self._start(batch, lengths)
        return [self.table[req_id] for req_id in batch.req_ids]

    def _start(self, batch: Batch, lengths: list[int]) -> None:
        """Give slots to the requests that are new, and tell the drafter who begins and who lost a slot."""
        keep, started, lost = set(batch.req_ids), [], []
        for i, (req_id, length) in enumerate(zip(batch.req_ids, lengths, strict=True)):
            known = self.table.get(req_id)
            if known is not None and known.length < length:
                continue
            lost += self.table.end((req_id,))  # its tokens were taken back: nothing that the drafter knows of it holds
            slot = self.table.free_slot(keep) if batch.slots is None else int(batch.slots[i])
            request, previous = self.table.claim(req_id, slot)
            request.limit, request.most = self._limits.get(req_id, (self.max_length, self.num_tokens))
            lost += [slot] if previous is not None else []
            started.append(slot)
        self.session.finish(lost)
        self.session.start(started)
