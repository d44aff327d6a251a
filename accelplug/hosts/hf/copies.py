"""Copies of a model while a session is attached to it: by ``copy``, by ``pickle``, or by whatever else asks for its state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Unattached:
    """Stands in for a model's ``__getstate__``: a copy has no part in the session, and its methods are its own.

    :ivar own: name -> what the model itself has in a session's place, None for its class's.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.own: dict[str, Any] = {}

    def __call__(self) -> Any:
        """Return the model's state without the session."""
        kind: Any = type(self.model)
        state = dict(kind.__getstate__(self.model))
        for name, own in {**self.own, "__getstate__": None}.items():
            state.pop(name, None)
            if own is not None:
                state[name] = own
        return state


@contextmanager
def unattached_copies(model: Any, *names: str, own: Any = None) -> Iterator[None]:
    """Leave these methods, which a session has put in the place of the model's, out of its copies.

    :param own: what the user had put there before, None for the class's.
    """
    there = vars(model).get("__getstate__")
    state = there if isinstance(there, Unattached) else Unattached(model)
    model.__getstate__ = state
    state.own |= dict.fromkeys(names, own)
    try:
        yield
    finally:
        for name in names:
            del state.own[name]
        if not state.own:
            del model.__getstate__
