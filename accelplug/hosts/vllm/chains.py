"""The steps of a host-memory drafter, the same on both runners: who is active, what is new, what was kept, what comes next."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from accelplug.hooks.drafting import CommitView, DraftView, IntArray, NodeKind
from accelplug.hosts.vllm.drawn import Drawn
from accelplug.hosts.vllm.session import Session
from accelplug.hosts.vllm.slots import SlotTable

LENGTH, DRAFTED, LIMIT, MOST = range(4)


@dataclass(slots=True)
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
        draws = session.bound.traits.kinds != {NodeKind.DELTA}
        self.drawn = Drawn(session.vocab_size) if draws else None
        # Of each slot's request: committed tokens that the drafter has observed, tokens that it drafted in the last step, padding not
        # counted, the most tokens the request may have, its prompt included, and the most to draft for it in a step.
        self._of_slots = np.zeros((4, num_slots), dtype=np.int64)
        self._last: list[str] = []  # the requests of the step before
        self._slots: IntArray = np.zeros(0, dtype=np.int64)  # and their slots
        self._known: list[IntArray] = list(self._of_slots[:, :0])  # and what is kept of them, which `_of_slots` learns when others come
        self._zeros: IntArray = np.zeros(0, dtype=np.int64)  # one for each of them
        self._spare = -1  # how many tokens each of them may gain before one has less room than may be drafted for it
        self._limits: dict[str, tuple[int, int]] = {}

    def begin(self, req_id: str, limit: int, params: Any = None) -> None:
        """Remember what a request sets for itself, and the most tokens it may have.

        :param limit: its prompt included: drafts past that would be thrown away.
        :param params: vLLM's SamplingParams.
        """
        self._limits[req_id] = limit, self.session.begin(req_id, params, self.num_tokens)
        if self.drawn is not None:
            self.drawn.begin(req_id, params)

    def end(self, req_ids: set[str]) -> None:
        """Finish requests that ended, were preempted, or begin anew under the same id."""
        if not req_ids:
            return
        self._settle()
        self.session.finish(self.table.end(req_ids))
        self.session.requests.end(req_ids)
        self._remember([])
        for req_id in req_ids:
            self._limits.pop(req_id, None)
        if self.drawn is not None:
            self.drawn.end(req_ids)

    def step(self, batch: Batch, scheduled: Mapping[str, int]) -> list[list[int]]:
        """Show the drafter the new tokens; return one chain per request of the batch, none longer than what the engine can verify.

        :param scheduled: request id -> how many draft tokens the engine verified in this step.
        """
        view = self._commit(batch, scheduled)
        drafts = self.session.propose(view) if batch.req_ids else None
        if self.drawn is not None:
            self.drawn.keep(batch.req_ids, drafts)
        if drafts is None or not len(drafts.tokens):
            return [[] for _ in batch.req_ids]
        self._known[DRAFTED] = drafts.offsets[1:] - drafts.offsets[:-1]
        tokens, offsets = drafts.tokens.tolist(), drafts.offsets.tolist()
        return [tokens[begin:end] for begin, end in itertools.pairwise(offsets)]

    def commit(self, batch: Batch, scheduled: Mapping[str, int]) -> None:
        """Show the drafter the new tokens of a step after which the engine asks for no drafts."""
        self._commit(batch, scheduled)

    def drafted(self, req_ids: Sequence[str]) -> list[int]:
        """Return how many tokens were drafted last for each request; 0 for unknown ones."""
        self._settle()
        slots = [self.table.get(req_id) for req_id in req_ids]
        return [0 if slot is None else int(self._of_slots[DRAFTED, slot]) for slot in slots]

    def _commit(self, batch: Batch, scheduled: Mapping[str, int]) -> DraftView:
        """Return the view to draft from."""
        if batch.req_ids != self._last:  # most steps run the same requests as the step before
            self._switch(batch)
        lengths = batch.lengths
        fresh: IntArray = lengths - self._known[LENGTH]
        gained = fresh.tolist()
        if gained and min(gained) < 1:
            gained, fresh = self._restart(batch)
        slots, rows, tokens, session = self._slots, batch.rows, batch.tokens, self.session
        accepted = self._accepted(batch, scheduled, self._known[DRAFTED]) if scheduled else self._zeros
        lengths.setflags(write=False)  # drafters are shown this very array
        self._known[LENGTH], self._known[DRAFTED] = lengths, self._zeros
        session.stats.tokens += sum(batch.sampled)
        if session.observes and gained:
            session.observe(CommitView(slots, rows, tokens, lengths, fresh, accepted.copy()))
        self._spare -= max(gained, default=0)
        # arithmetic is left out as long as no request can be near its end
        budgets = self._known[MOST].copy() if self._spare >= 0 else self._budgets(lengths)
        return DraftView(slots, rows, tokens, lengths, budgets, self._parameters(batch.req_ids) if session.requests.given else {})

    def _budgets(self, lengths: IntArray) -> IntArray:
        """Return the most to draft for each request, [num_reqs], and find out for how many tokens that holds."""
        most = self._known[MOST]
        room = self._known[LIMIT] - 1 - lengths  # the target model adds one token of its own after the drafts, and that has to fit too
        self._spare = min((room - most).tolist(), default=0)
        budgets: IntArray = np.maximum(np.minimum(room, most), 0)
        return budgets

    def _accepted(self, batch: Batch, scheduled: Mapping[str, int], drafted: IntArray) -> IntArray:
        """Return how many of each request's new tokens were drafts, and count them."""
        counted = np.array((batch.sampled, [scheduled.get(req_id, 0) for req_id in batch.req_ids]), dtype=np.int64)
        verified = np.minimum(counted[1], drafted)  # the rest was padding
        accepted: IntArray = np.minimum(counted[0] - 1, verified)
        counts = verified.tolist()
        self.session.stats.count(len(counts) - counts.count(0), sum(counts), sum(accepted.tolist()))
        return accepted

    def _parameters(self, req_ids: list[str]) -> dict[str, IntArray]:
        """Return the drafter's per-request options, where a request of the batch sets one."""
        found = self.session.requests.values(self.session.defaults, req_ids)
        return {name: np.array(values, dtype=object if None in values else None) for name, values in found.items()}

    def _switch(self, batch: Batch) -> None:
        """Make the batch's requests those of `_last`, after starting those that are new."""
        self._settle()
        if any(self.table.get(req_id) is None for req_id in batch.req_ids):
            self._start(batch)
        self._remember(batch.req_ids)

    def _restart(self, batch: Batch) -> tuple[list[int], IntArray]:
        """Start requests anew whose tokens were taken back; return how many tokens each gained since, as a list and as an array, [num_reqs]."""
        self._settle()
        self._start(batch)
        self._remember(batch.req_ids)
        fresh: IntArray = batch.lengths - self._known[LENGTH]
        return fresh.tolist(), fresh

    def _settle(self) -> None:
        """Keep what the last steps changed."""
        self._of_slots[:2, self._slots] = self._known[:2]

    def _remember(self, req_ids: Sequence[str]) -> None:
        self._last = list(req_ids)
        self._slots = np.array([self.table[req_id] for req_id in req_ids], dtype=np.int64)
        self._slots.flags.writeable = False  # drafters are shown this very array
        self._known = list(self._of_slots.take(self._slots, 1))
        self._zeros = np.zeros(len(self._slots), dtype=np.int64)
        self._spare = -1

    def _start(self, batch: Batch) -> None:
        """Give slots to the requests that are new, and tell the drafter who begins and who lost a slot."""
        keep, started, lost = set(batch.req_ids), [], []
        for i, (req_id, length) in enumerate(zip(batch.req_ids, batch.lengths.tolist(), strict=True)):
            known = self.table.get(req_id)
            if known is not None and self._of_slots[LENGTH, known] < length:
                continue
            lost += self.table.end((req_id,))  # its tokens were taken back: nothing that the drafter knows of it holds
            slot = self.table.free_slot(keep) if batch.slots is None else int(batch.slots[i])
            lost += [slot] if self.table.claim(req_id, slot) is not None else []
            self._of_slots[:, slot] = 0, 0, *self._limits.get(req_id, (self.max_length, self.num_tokens))
            started.append(slot)
        self.session.finish(lost)
        self.session.start(started)
