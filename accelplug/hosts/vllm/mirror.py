"""Committed tokens in host memory, for drafters that cannot read the device: kept up with one small copy a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from accelplug.hooks.drafting import IntArray

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor


class TokenMirror:
    """A copy of the engine's token rows that follows them.

    Prompts come from the scheduler's message, which is in host memory anyway. After that a step brings each request's
    length and last `window` tokens in one transfer; on CUDA this is the step's one synchronisation, since which rows are
    wanted goes there without one.

    :param num_slots: rows of the engine's token tensor.
    :param max_length: its columns.
    :param window: the most tokens a request can gain in one step.
    """

    def __init__(self, num_slots: int, max_length: int, window: int) -> None:
        self.tokens: npt.NDArray[np.int32] = np.zeros((num_slots, max_length), dtype=np.int32)
        self.lengths: npt.NDArray[np.int64] = np.zeros(num_slots, dtype=np.int64)
        self.window = window

    def begin(self, slot: int, tokens: Sequence[int] | IntArray) -> None:
        """Fill a slot with the tokens that its request comes with."""
        self.tokens[slot, : len(tokens)] = tokens
        self.lengths[slot] = len(tokens)

    def pull(self, slots: IntArray, tokens: Tensor, lengths: Tensor) -> IntArray:
        """Bring the slots up to date.

        :param slots: [num_reqs] int64.
        :param tokens: the engine's tokens, [num_slots, max_length] int32.
        :param lengths: the engine's lengths, [num_slots] int32.
        :returns: how many tokens each request gained, [num_reqs].
        """
        now, recent = self._copy(slots, tokens, lengths)
        gained: npt.NDArray[np.int64] = now - self.lengths[slots]
        for i, slot in enumerate(slots.tolist()):
            end, count = int(now[i]), int(gained[i])
            if 0 < count <= self.window:
                self.tokens[slot, end - count : end] = recent[i, self.window - count :]
            elif count != 0:  # the engine gave the slot away unannounced
                self.tokens[slot, :end] = tokens[slot, :end].cpu().numpy()
        self.lengths[slots] = now
        return gained

    def _copy(self, slots: IntArray, tokens: Tensor, lengths: Tensor) -> tuple[npt.NDArray[np.int64], IntArray]:
        """Return each request's length, [num_reqs], and its last tokens, [num_reqs, window]."""
        import torch
        from vllm.utils.torch_utils import async_tensor_h2d

        index = async_tensor_h2d(slots, tokens.device, torch.int64)
        ends = lengths[index].long().unsqueeze(1)
        columns = (ends - self.window + torch.arange(self.window, device=tokens.device)).clamp(min=0)
        packed = torch.cat([ends, tokens[index.unsqueeze(1), columns].long()], 1).cpu().numpy()
        return packed[:, 0], packed[:, 1:]
