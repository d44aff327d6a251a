"""One request's committed tokens and the conditions that stop it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList


class Request:
    """Committed tokens, in host memory for drafters and on the device for processors and stopping criteria."""

    def __init__(self, input_ids: Tensor, criteria: StoppingCriteriaList, *, max_length: int, on_device: bool) -> None:
        self.length = self.prompt_length = input_ids.shape[1]
        self.max_length = max_length
        fast = (EosTokenCriteria, MaxLengthCriteria)
        self.others = StoppingCriteriaList([criterion for criterion in criteria if type(criterion) not in fast])
        self.eos = {token for c in criteria if type(c) is EosTokenCriteria for token in c.eos_token_id.flatten().tolist()}
        self.tokens = np.zeros((1, max(max_length, self.length) + 1), dtype=np.int64)
        self.tokens[0, : self.length] = input_ids[0].cpu().numpy()
        shared = torch.from_numpy(self.tokens)
        self.device = input_ids.device
        self.is_shared = self.device.type == "cpu"
        self.buffer = shared if self.is_shared else shared.to(self.device) if on_device or self.others else None

    def ids(self) -> Tensor:
        """Return the committed tokens, [1, length], on the device."""
        assert self.buffer is not None
        return self.buffer[:, : self.length]

    @property
    def last(self) -> int:
        """The last committed token."""
        return int(self.tokens[0, self.length - 1])

    def append(self, token: int, scores: Any) -> bool:
        """Commit one token; return whether the request stops with it."""
        self.tokens[0, self.length] = token
        if self.buffer is not None and not self.is_shared:
            self.buffer[0, self.length] = token
        self.length += 1
        if token in self.eos or self.length >= self.max_length:
            return True
        return bool(self.others) and bool(self.others(self.ids(), tuple(scores) if scores is not None else None).all())

    def sequences(self) -> Tensor:
        """Return prompt and output as ``generate()`` returns them, [1, length]."""
        return torch.from_numpy(self.tokens[:, : self.length].copy()).to(self.device)
