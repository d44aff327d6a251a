"""Where the V2 runner's drafts come from: a drafter on the device, or one in host memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Source(Protocol):
    """Fills the speculator's drafts.

    :ivar real: how many drafts of each slot are no padding, [num_slots] int64 on the device.
    """

    real: Tensor

    @property
    def logits(self) -> Tensor | None:
        """What drafts were drawn from, before temperature, [num_slots, num_tokens, vocab_size]; None where all are chosen."""

    def end(self, req_ids: set[str]) -> None:
        """Finish requests; unknown ones are passed over."""

    def arrive(self, req_id: str, tokens: Sequence[int], prompt_length: int, limit: int, params: Any) -> None:
        """Learn the tokens that a request comes with, how many of them are its prompt, the most that it may have, and vLLM's SamplingParams."""

    def force(self, own: Mapping[str, int], drafts: Mapping[str, Sequence[int]]) -> None:
        """Learn what a grammar forced in the coming step.

        :param own: requests that this concerns -> how many of their drafts are the drafter's; those come first.
        :param drafts: request -> all drafts that the step verifies.
        """

    def propose(self, input_batch: Any, num_sampled: Tensor, last_sampled: Tensor, drafts: Tensor) -> None:
        """Fill the drafts of a step.

        :param input_batch: vLLM's InputBatch.
        :param num_sampled: new tokens of each request, [num_reqs] int32; 0 while it is prefilling.
        :param last_sampled: the last token of each slot, [num_slots] int64.
        :param drafts: [num_reqs, num_tokens] int64, to be filled with valid token ids.
        """

    def counts(self, req_ids: Sequence[str]) -> list[int] | None:
        """Return how many drafts of each request are no padding; None where looking costs a synchronisation."""

    def settle(self) -> None:
        """Bring the session's counters up to date; may wait for the device."""


class Nothing:
    """A source of no drafts, only of padding."""

    def __init__(self, num_slots: int, device: Any) -> None:
        import torch

        self.real = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.logits = None

    def end(self, req_ids: set[str]) -> None:
        """Do nothing."""

    def arrive(self, req_id: str, tokens: Sequence[int], prompt_length: int, limit: int, params: Any) -> None:
        """Do nothing."""

    def force(self, own: Mapping[str, int], drafts: Mapping[str, Sequence[int]]) -> None:
        """Do nothing."""

    def propose(self, input_batch: Any, num_sampled: Tensor, last_sampled: Tensor, drafts: Tensor) -> None:
        """Fill the drafts with each request's last token, which is a valid one."""
        del num_sampled
        drafts.copy_(last_sampled[input_batch.idx_mapping].unsqueeze(1).expand_as(drafts))

    def counts(self, req_ids: Sequence[str]) -> list[int]:
        """Return zeros."""
        return [0] * len(req_ids)

    def settle(self) -> None:
        """Do nothing."""
