"""From host memory to the device, without waiting for what the device is doing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def upload(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return numbers, or a tensor of host memory, as a tensor on `device`.

    CUDA copies pageable memory only once all that was queued before is done, and the host waits for it. Pinned memory is torch's own, which
    it gives out again when the copy has ended.
    """
    host = values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
