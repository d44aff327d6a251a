"""What a model remembers of its tokens beside keys and values that can be taken out, and a copy of it to go back to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import StaticSlidingWindowLayer

from accelplug.hosts.hf.layers import growing, is_uncroppable, recurrent_layers


class States:
    """What a model remembers of its tokens beside keys and values that can be taken out, and a copy of it to go back to."""

    def __init__(self, model: Any, past: Any) -> None:
        self.model, self.past = model, past
        self.kept = [_copied(place) for place in self._places()]

    def _places(self) -> list[Any]:
        """Return the mappings and lists that hold the states: in the cache's layers, beside them in a cache of the model's own kind, or in its modules."""
        cache = growing(self.past)
        whole = [vars(layer) for layer in cache.layers if is_uncroppable(layer) or isinstance(layer, StaticSlidingWindowLayer)]
        running = [states for layer in recurrent_layers(cache) for states in (layer.conv_states, layer.recurrent_states)]
        places = [*whole, *running, self.past if isinstance(self.past, list) else vars(self.past)]
        return places if any(True for _ in _tensors(places)) else [_Attributes(module) for module in self.model.modules()]

    def now(self) -> list[Tensor]:
        """Return the states as they are."""
        return list(_tensors(self._places()))

    def save(self) -> None:
        """Copy the states as they are."""
        for kept, place in zip(self.kept, self._places(), strict=True):
            _carry(place, kept)

    def restore(self) -> None:
        """Put the copy back."""
        for kept, place in zip(self.kept, self._places(), strict=True):
            _carry(kept, place)


class _Attributes(dict[str, Any]):
    """The tensors that a module holds as plain attributes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__({name: held for name, held in vars(module).items() if isinstance(held, Tensor)})
        self.module = module

    def __setitem__(self, name: str, held: Any) -> None:
        vars(self.module)[name] = held


def _tensors(held: Any) -> Iterator[Tensor]:
    """Yield the tensors in lists and mappings of any depth."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, dict | list | tuple):
        for inner in held.values() if isinstance(held, dict) else held:
            yield from _tensors(inner)


def _copied(held: Any) -> Any:
    """Return a copy of the tensors in lists and mappings of any depth; what is no tensor is not copied."""
    if isinstance(held, Tensor):
        return held.clone()
    if isinstance(held, dict):
        return {name: _copied(inner) for name, inner in held.items()}
    return type(held)(map(_copied, held)) if type(held) in (list, tuple) else held


def _carry(source: Any, target: Any) -> None:
    """Write what a mapping or list holds into another; a tensor in place where it has room, as compiled graphs know a state by its address."""
    there: Any
    for name, held in source.items() if isinstance(source, dict) else enumerate(source):
        there = target.get(name) if isinstance(target, dict) else target[name]
        if isinstance(held, Tensor) and isinstance(there, Tensor) and held.shape == there.shape:
            there.copy_(held)
        elif isinstance(held, dict | list) and type(held) is type(there) and len(held) == len(there):
            _carry(held, there)
        else:
            target[name] = _copied(held)
