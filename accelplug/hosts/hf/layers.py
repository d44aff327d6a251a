"""Taking rejected drafts out of a cache, layer by layer: how depends on what a layer does with tokens that it no longer needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndStaticFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
    QuantizedLayer,
    StaticIndexedLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

_CROPPED = (
    DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer,
    LinearAttentionLayer, LinearAttentionAndFullAttentionLayer, LinearAttentionAndStaticFullAttentionLayer,
)  # fmt: skip


def growing(past: Any) -> Cache:
    """Return the part of what a model remembers that grows with the output: of an encoder-decoder model's cache, the decoder's self-attention.

    What is no cache of Transformers' (RWKV's list, xLSTM's states), or not there before the prompt is read, stands as a cache without attention.
    """
    if isinstance(past, EncoderDecoderCache):
        return past.self_attention_cache
    return past if isinstance(past, Cache) else Cache(layers=[LinearAttentionLayer()])


def has_attention(cache: Cache) -> bool:
    """Whether some layer keeps keys and values of its tokens; a cache that has no layers yet will have such."""
    return not cache.layers or any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)


def recurrent_layers(cache: Cache) -> list[LinearAttentionCacheLayerMixin]:
    """Return the cache's layers that keep a running state, beside keys and values or in place of them."""
    return [layer for layer in cache.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]


def is_uncroppable(layer: Any) -> bool:
    """Whether tokens can be taken out of a layer only by going back to a copy of it.

    It is so for what summarises several tokens (DeepSeek V4), for windows beside a running state, and for layers of others, of which nothing is known.
    What keeps nothing is no such layer; releases differ in what stands there.
    """
    known = type(layer) in _CROPPED or isinstance(layer, QuantizedLayer) or is_fp8(layer) or has_index(layer)
    return isinstance(layer, CacheLayerMixin | LinearAttentionCacheLayerMixin) and not known


def is_recurrent(model: Any, past: Any) -> bool:
    """Whether the model keeps a running state, or what comes down to one: in this cache, in a cache of its own kind, or in its modules."""
    types = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()
    cache = growing(past)
    return bool(recurrent_layers(cache)) or any(map(is_uncroppable, cache.layers)) or "linear_attention" in types or bool(getattr(model, "_is_stateful", False))


def filled(cache: Cache) -> list[Any]:
    """Return the cache's layers that hold keys: Transformers makes a T5's by the encoder's depth, which may be the greater."""
    return [layer for layer in cache.layers if isinstance(layer, CacheLayerMixin) and layer.is_initialized]


def crop(layer: Any, count: int) -> None:
    """Take a layer's last `count` tokens out."""
    if isinstance(layer, StaticLayer):
        for name in ("cumulative_length", "indexer_cumulative_length", "idx_cumulative_length"):
            if getattr(layer, name, None) is not None:
                getattr(layer, name).sub_(count)  # in place, as compiled graphs know it by its address
    elif isinstance(layer, DynamicSlidingWindowLayer):
        layer.crop(-count)
    elif count and is_fp8(layer):
        for name in ("_quantized_keys", "_quantized_values"):
            states, scale = getattr(layer, name)
            setattr(layer, name, (states[..., :-count, :], scale))
        layer.cumulative_length -= count
    elif count and has_index(layer):
        layer.crop(-count)
    elif count:
        layer.keys = layer.keys[..., :-count, :]
        layer.values = layer.values[..., :-count, :]
        if isinstance(layer, QuantizedLayer):
            layer.cumulative_length -= count


def is_fp8(layer: Any) -> bool:
    """Whether a layer keeps all its tokens in eight-bit floats, each rounded alone; Transformers has them from 5.24 on."""
    return hasattr(layer, "fp8_dtype")


def has_index(layer: Any) -> bool:
    """Whether a layer keeps an index beside its keys and values, of Transformers' or of a model's own kind; layers may share one, and leave theirs empty."""
    return isinstance(layer, DynamicIndexedLayer | StaticIndexedLayer) or hasattr(layer, "idx_keys")


def index_of(layer: Any) -> Tensor | None:
    """Return the keys by which a layer chooses the tokens it attends to (DeepSeek V3.2, MiniMax M3), [count, 1, length, size], None where it has none."""
    keys = getattr(layer, "indexer_keys", getattr(layer, "idx_keys", None))
    return keys.unsqueeze(1) if isinstance(keys, Tensor) and keys.ndim == 3 else keys


def states_of(layer: Any) -> tuple[Tensor, ...]:
    """Return where a layer keeps the keys and values of its newest tokens, and its index's, [count, heads, length, size] each."""
    if is_fp8(layer):
        return layer._quantized_keys[0].view(torch.uint8), layer._quantized_values[0].view(torch.uint8)
    return tuple(states for states in (layer.keys, layer.values, index_of(layer)) if states is not None)


def await_layers(cache: Cache) -> None:
    """Have the device wait for the layer that an offloaded cache brings back ahead of its use, before anything reads it or writes to it."""
    if cache.offloading and (device := next((layer.device for layer in cache.layers if getattr(layer, "device", None)), None)):
        torch.cuda.default_stream(device).wait_stream(cache.prefetch_stream)


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
        self.cache = cache
        self.layers = [layer for layer in filled(cache) if type(layer) is StaticSlidingWindowLayer]
        self.held = [(layer, torch.empty_like(layer.keys), torch.empty_like(layer.values)) for layer in self.layers]
        self.cached = 0

    def save(self) -> None:
        """Copy what the layers hold."""
        await_layers(self.cache)
        for layer, keys, values in self.held:
            keys.copy_(layer.keys)
            values.copy_(layer.values)
            self.cached = layer.cumulative_length_int

    def put_back(self, slots: Tensor, width: int) -> None:
        """Keep, of a step that was `width` slots wide, those of every row's committed tokens, int64 [count, num_kept]."""
        await_layers(self.cache)
        for layer, keys, values in self.held:
            size, end = layer.max_cache_len, self.cached + slots.shape[1]
            first = self.cached if self.cached + width <= size else size - width
            for now, before in ((layer.keys, keys), (layer.values, values)):
                index = (first + slots.to(now.device))[:, None, :, None].expand(-1, now.shape[1], -1, now.shape[3])
                rolled = torch.cat([before[:, :, : self.cached].to(now.device), now.gather(2, index)], 2)[:, :, -size:]
                now[:, :, : rolled.shape[2]] = rolled
            layer.cumulative_length_int = end
            layer.cumulative_length.fill_(min(end, size))
