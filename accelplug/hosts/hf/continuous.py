"""Continuous batching: an engine of its own inside Transformers, into whose loop no drafter reaches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelplug._errors import HostError


def refusal() -> HostError:
    """Return the error for whoever asks for that engine while a session is attached."""
    return HostError("continuous batching runs without accelplug's drafts; give generate() a batch, or leave the 'with' block first")


class Refusal:
    """Stands in for ``model.init_continuous_batching``, which every way into that engine calls."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Refuse, since the engine would leave the attached techniques out without a word."""
        raise refusal()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Give a copy of the model its own method: the refusal belongs to the original."""
        copied = memo[id(self.model)]
        return type(copied).init_continuous_batching.__get__(copied)


@contextmanager
def refused(model: Any) -> Iterator[None]:
    """Refuse continuous batching on a model, or on the one that it wraps."""
    owner = getattr(getattr(model, "init_continuous_batching", None), "__self__", None)
    if owner is None:  # it has none, or refuses already
        yield
        return
    owner.init_continuous_batching = Refusal(owner)
    try:
        yield
    finally:
        del owner.init_continuous_batching
