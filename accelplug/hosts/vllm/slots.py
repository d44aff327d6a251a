"""Slots: the number under which a drafter knows a request, fixed for the request's life and then recycled.

V2 has such a number itself, its row in the request states. In V1 rows move between steps, so slots are dealt out here.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any


def token_limit(num_prompt_tokens: int, sampling_params: Any, max_length: int) -> int:
    """Return the most tokens a request may have, its prompt included.

    :param sampling_params: vLLM's SamplingParams, or None for a request that does not sample.
    """
    max_tokens = getattr(sampling_params, "max_tokens", None)
    return max_length if max_tokens is None else min(num_prompt_tokens + int(max_tokens), max_length)


class SlotTable:
    """Which request has which slot."""

    def __init__(self, num_slots: int) -> None:
        self._slots: dict[str, int] = {}
        self._owners: list[str | None] = [None] * num_slots

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, req_id: str) -> int:
        return self._slots[req_id]

    def get(self, req_id: str) -> int | None:
        """Return the request's slot if it has one."""
        return self._slots.get(req_id)

    def claim(self, req_id: str, slot: int) -> str | None:
        """Give a slot to a new request.

        :returns: whoever held the slot until now and has lost it.
        """
        previous = self._owners[slot]
        if previous is not None:
            self.end((previous,))
        self._slots[req_id] = slot
        self._owners[slot] = req_id
        return previous

    def free_slot(self, keep: Container[str]) -> int:
        """Return the lowest free slot; where none is free, that of a request that is not among `keep`.

        An engine may hold back more requests than it runs at once. One that lost its slot begins anew when it returns.
        """
        for slot, owner in enumerate(self._owners):
            if owner is None:
                return slot
        return next(slot for slot, owner in enumerate(self._owners) if owner not in keep)

    def end(self, req_ids: Iterable[str]) -> list[int]:
        """Take the slots of requests that ended; unknown ones are passed over.

        :returns: the slots that became free.
        """
        freed = []
        for req_id in req_ids:
            if (slot := self._slots.pop(req_id, None)) is not None:
                self._owners[slot] = None
                freed.append(slot)
        return freed
