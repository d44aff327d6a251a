"""Taking rejected drafts out of a cache, layer by layer: how depends on what a layer does with tokens that it no longer needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicSlidingWindowLayer,
    QuantizedLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)


def filled(cache: Cache) -> list[Any]:
    """Return the cache's layers that hold keys: Transformers makes a T5's by the encoder's depth, which may be the greater."""
    return [layer for layer in cache.layers if isinstance(layer, CacheLayerMixin) and layer.is_initialized]


def crop(layer: Any, count: int) -> None:
    """Take a layer's last `count` tokens out."""
    if isinstance(layer, StaticLayer):
        layer.cumulative_length.sub_(count)  # in place, as compiled graphs know it by its address
    elif isinstance(layer, DynamicSlidingWindowLayer):
        layer.crop(-count)
    elif count:
        layer.keys = layer.keys[..., :-count, :]
        layer.values = layer.values[..., :-count, :]
        if isinstance(layer, QuantizedLayer):
            layer.cumulative_length -= count


def with_limits(cache: Cache) -> list[Any]:
    """Return the layers out of which only so many rejected drafts can be taken, one of each kind and size."""
    found = [layer for layer in filled(cache) if isinstance(layer, QuantizedLayer | StaticSlidingWindowLayer)]
    return list({(type(layer), getattr(layer, "max_cache_len", 0)): layer for layer in found}.values())


def most_drafts(layers: Sequence[Any]) -> int | None:
    """Return how many drafts the next step may have for its rejected ones to be taken out of these layers, None for any number.

    A quantised layer rounds all its tokens together once so many have come since the last time: that is left to a step
    without drafts, as in plain decoding. A static layer with a window holds no more of a step than the window.
    """
    return min(map(_room, layers), default=None)


def _room(layer: Any) -> int:
    if isinstance(layer, QuantizedLayer):
        since = layer.keys.shape[-2] if layer.keys.ndim == 4 else 0
        return max(0, int(layer.residual_length) - 2 - since)
    return int(layer.max_cache_len) - 1


class Overwritten:
    """Static layers with windows, and what they held before a step: drafts push out what has to come back where they are rejected."""

    def __init__(self, cache: Cache) -> None:
        self.layers = [layer for layer in filled(cache) if isinstance(layer, StaticSlidingWindowLayer)]
        self.held = [(layer, torch.empty_like(layer.keys), torch.empty_like(layer.values)) for layer in self.layers]
        self.cached = 0

    def save(self) -> None:
        """Copy what the layers hold."""
        for layer, keys, values in self.held:
            keys.copy_(layer.keys)
            values.copy_(layer.values)
            self.cached = layer.cumulative_length_int

    def put_back(self, slots: Tensor, width: int) -> None:
        """Keep, of a step that was `width` slots wide, those of every row's committed tokens, int64 [count, num_kept]."""
        for layer, keys, values in self.held:
            size, end = layer.max_cache_len, self.cached + slots.shape[1]
            first = self.cached if self.cached + width <= size else size - width
            for now, before in ((layer.keys, keys), (layer.values, values)):
                index = (first + slots.to(now.device))[:, None, :, None].expand(-1, now.shape[1], -1, now.shape[3])
                rolled = torch.cat([before[:, :, : self.cached], now.gather(2, index)], 2)[:, :, -size:]
                now[:, :, : rolled.shape[2]] = rolled
            layer.cumulative_length_int = end
            layer.cumulative_length.fill_(min(end, size))
