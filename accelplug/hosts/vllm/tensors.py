"""Small tensors from host memory to the device, without waiting for it."""

from __future__ import annotations

from typing import Any

import torch


def to_device(values: Any, device: torch.device) -> torch.Tensor:
    """Return nested lists of numbers as a tensor; from memory that is not pinned, copying would wait for what the device does already."""
    return torch.tensor(values, pin_memory=device.type == "cuda").to(device, non_blocking=True)
