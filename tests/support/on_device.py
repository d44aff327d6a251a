"""A device that is none: tensors of host memory that say they are on a GPU, and a count of whoever would wait for it.

Code that is written for CUDA runs here as it is. What would make the host wait there is listed: reading a value, copying it to the host,
copying pageable memory to the device, and every operation whose shape depends on values.
Source: torch.cuda.set_sync_debug_mode, and what PyTorch's documentation says of `Tensor.to(non_blocking=...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

GPU: Final = torch.device("cuda:0")
READS: Final = {
    "item", "tolist", "cpu", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__", "nonzero", "argwhere", "masked_select",
    "unique", "unique_consecutive", "bincount", "equal", "allclose", "is_nonzero",
}  # fmt: skip
MAKES: Final = {"tensor", "as_tensor", "new_tensor"}
INDEXES: Final = {"__getitem__", "__setitem__", "index_put_", "index_put"}


class OnDevice(Tensor):
    """A tensor that says it is on `GPU`, like everything that is computed from it."""


def on_device(values: Any) -> Tensor:
    """Return a tensor there."""
    return torch.as_tensor(values).clone().as_subclass(OnDevice)


class Waits(TorchFunctionMode):
    """Counts, while it is entered, what would wait for the device.

    :ivar seen: the names of the functions that would.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Call a function of torch, or of a tensor, as if there were a device."""
        del types
        kwargs, name = dict(kwargs or {}), function.__name__
        if function == Tensor.device.__get__:  # type: ignore[attr-defined]
            return GPU if isinstance(args[0], OnDevice) else function(*args)
        if self._waits(name, args, kwargs):
            self.seen.append(name)
        if name == "pin_memory":  # of which there is none here
            return args[0]
        target, args, kwargs = _without_device(args, kwargs)
        found = function(*args, **kwargs)
        if name in READS or (name == "to" and target == torch.device("cpu")):
            return found.as_subclass(Tensor) if isinstance(found, OnDevice) and name in {"cpu", "to"} else found
        return found.as_subclass(OnDevice) if target == GPU and isinstance(found, Tensor) else found

    def _waits(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        there = [isinstance(tensor, OnDevice) for tensor in _tensors((args, kwargs))]
        target = _without_device(args, kwargs)[0]
        if name in READS:
            return any(there)
        if name == "to":
            return target is not None and (target == GPU) is not isinstance(args[0], OnDevice) and not kwargs.get("non_blocking", False)
        if name in MAKES:
            return (target == GPU or any(there)) and not all(there or [False])
        if name in INDEXES:
            return there[0] and (not all(there) or _chooses(args[1]) or _of_the_host(args[1:]))
        if name == "repeat_interleave":
            return any(there[1:]) and kwargs.get("output_size") is None
        if name == "copy_":
            return len(set(there)) == 2 and not kwargs.get("non_blocking", False)
        mixed = {isinstance(tensor, OnDevice) for tensor in _tensors((args, kwargs)) if tensor.dim()}
        assert len(mixed) < 2, f"{name} of tensors on two devices"
        return False


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, list | tuple):
        for one in given:
            yield from _tensors(one)
    elif isinstance(given, dict):
        yield from _tensors(list(given.values()))


def _chooses(index: Any) -> bool:
    """Whether an index is a mask, whose ones are counted first."""
    return any(Tensor.dtype.__get__(tensor) == torch.bool for tensor in _tensors(index))  # type: ignore[attr-defined]


def _of_the_host(given: Any) -> bool:
    """Whether an index or a value is a list or an array, which goes to the device as a tensor."""
    parts = [part for one in given for part in (one if isinstance(one, tuple) else (one,)) if not isinstance(part, Tensor)]
    return any(isinstance(part, list) or getattr(part, "ndim", 0) for part in parts)


def _without_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.device | None, tuple[Any, ...], dict[str, Any]]:
    """Return which device is asked for, and the arguments with the host's in its place."""
    named = kwargs.get("device")
    asked = [torch.device(one) for one in (named, *filter(_is_device, args)) if one is not None]
    if not asked:
        return None, args, kwargs
    host = torch.device("cpu")
    kwargs = {**kwargs, "device": host} if named is not None else kwargs
    return asked[0], tuple(host if _is_device(one) else one for one in args), kwargs


def _is_device(given: Any) -> bool:
    return isinstance(given, torch.device) or (isinstance(given, str) and given in {"cpu", "cuda"})
