"""Which caches rejected drafts can be taken out of, and what is refused for holding its state where they cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndStaticFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
    QuantizedLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from accelplug._errors import HostError
from accelplug.hosts.hf.compat import cache_argument
from accelplug.hosts.hf.layers import growing, is_fp8

_ROLLED_BACK = (
    DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer,
    LinearAttentionLayer, LinearAttentionAndFullAttentionLayer, LinearAttentionAndStaticFullAttentionLayer,
)  # fmt: skip


@contextmanager
def recording_past(cache: Cache) -> Iterator[None]:
    """Leave the cache's layers as plain ``generate()`` would, also after an error: they record no rows to roll back to."""
    try:
        yield
    finally:
        for layer in growing(cache).layers:
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.record_past = False


def check_cache(model: Any, cache: Any) -> None:
    """Refuse a cache whose rejected rows cannot be taken out again.

    :raises HostError: naming the layer type and what to use.
    """
    if isinstance(cache, tuple | list) and cache_argument(model) != "state":
        raise HostError(f"drafts need a dynamic cache and generate() was given a {type(cache).__name__}; leave it out")
    cache = growing(cache)
    if not cache.layers and getattr(cache, "layer_class_to_replicate", None) is not DynamicLayer:
        raise HostError(f"drafts need a dynamic cache and generate() was given an empty {type(cache).__name__}; leave it out")
    check_layers(cache)


def check_layers(cache: Cache) -> None:
    """Refuse layers that cannot be cropped; a cache may make them as late as in the prefill."""
    for layer in cache.layers:
        # Releases differ in what stands for layers that keep nothing.
        known = type(layer) in _ROLLED_BACK or isinstance(layer, QuantizedLayer) or is_fp8(layer)
        if isinstance(layer, CacheLayerMixin | LinearAttentionCacheLayerMixin) and not known:
            raise HostError(
                f"rejected drafts cannot be taken out of a {type(layer).__name__}; use the dynamic cache (cache_implementation='dynamic')"
            )


def state_elsewhere(model: Any) -> HostError:
    """Return the error for a model that keeps its state where the host does not reach."""
    return HostError(
        f"{type(model).__name__} keeps its state outside of Transformers' caches, so rejected drafts cannot be taken from it; use another model"
    )
