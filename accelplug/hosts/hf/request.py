"""The rows of one ``generate()`` call: their committed tokens, and the conditions that stop them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList


class Requests:
    """Committed tokens, in host memory for drafters and on the device for processors and stopping criteria.

    Rows advance together, as in plain ``generate()``: one length for all, finished rows go on with padding.
    """

    def __init__(self, input_ids: Tensor, criteria: StoppingCriteriaList, *, max_length: int, pad_token_id: int, on_device: bool) -> None:
        self.count, self.prompt_length = input_ids.shape
        self.length = self.prompt_length
        self.max_length, self.pad_token_id = max_length, pad_token_id
        fast = (EosTokenCriteria, MaxLengthCriteria)
        self.others = StoppingCriteriaList([criterion for criterion in criteria if type(criterion) not in fast])
        self.eos = {token for c in criteria if type(c) is EosTokenCriteria for token in c.eos_token_id.flatten().tolist()}
        self.is_padded = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
        self.finished = [False] * self.count
        self.num_finished = 0
        self.generated = 0  # tokens committed, without padding
        self.tokens = np.zeros((self.count, max(max_length, self.length) + 1), dtype=np.int64)
        self.tokens[:, : self.length] = input_ids.cpu().numpy()
        shared = torch.from_numpy(self.tokens)
        self.device = input_ids.device
        self.is_shared = self.device.type == "cpu"
        self.buffer = shared if self.is_shared else shared.to(self.device) if on_device or self.others else None

    def ids(self) -> Tensor:
        """Return the committed tokens, [count, length], on the device."""
        assert self.buffer is not None
        return self.buffer[:, : self.length]

    def last(self) -> list[int]:
        """Return every row's last committed token."""
        tokens: list[int] = self.tokens[:, self.length - 1].tolist()
        return tokens

    def is_over(self, row: int) -> bool:
        """Whether the row only goes on as padding."""
        return self.is_padded and self.finished[row]

    @property
    def num_over(self) -> int:
        """How many rows only go on as padding."""
        return self.num_finished if self.is_padded else 0

    def append(self, tokens: Sequence[int], scores: Any) -> bool:
        """Commit one token per row, padding for finished ones; return whether every row is finished."""
        self.tokens[:, self.length] = tokens
        self.generated += self.count - self.num_over
        if self.num_over:
            self.tokens[self.finished, self.length] = self.pad_token_id
        if self.buffer is not None and not self.is_shared:
            self.buffer[:, self.length] = torch.from_numpy(self.tokens[:, self.length]).to(self.device)
        self.length += 1
        if not self.eos.isdisjoint(tokens):
            self._finish([token in self.eos for token in tokens])
        if self.others:
            self._finish(self.others(self.ids(), None if scores is None else tuple(scores)).tolist())
        return self.length >= self.max_length or self.num_finished == self.count

    def _finish(self, stopped: Sequence[bool]) -> None:
        self.finished = [over or stop for over, stop in zip(self.finished, stopped, strict=True)]
        self.num_finished = sum(self.finished)

    def sequences(self) -> Tensor:
        """Return prompts and outputs as ``generate()`` returns them, [count, length]."""
        return torch.from_numpy(self.tokens[:, : self.length].copy()).to(self.device)
