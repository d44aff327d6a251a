"""Which caches rejected drafts can be taken out of, and what is refused for holding its state where they cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from accelplug._errors import HostError
from accelplug.hosts.hf.compat import cache_argument
from accelplug.hosts.hf.layers import growing
from accelplug.hosts.hf.masks import check_index


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
    """Refuse a cache that is none of Transformers', or does not say what it is going to hold.

    :raises HostError: naming it and what to use.
    """
    if isinstance(cache, tuple | list) and cache_argument(model) != "state":
        raise HostError(f"drafts need a dynamic cache and generate() was given a {type(cache).__name__}; leave it out")
    cache = growing(cache)
    if not cache.layers and getattr(cache, "layer_class_to_replicate", None) is not DynamicLayer:
        raise HostError(f"drafts need a dynamic cache and generate() was given an empty {type(cache).__name__}; leave it out")
    check_index(model, cache)


def state_elsewhere(model: Any) -> HostError:
    """Return the error for a model that keeps its state where the host does not reach."""
    return HostError(
        f"{type(model).__name__} keeps its state outside of Transformers' caches, so rejected drafts cannot be taken from it; use another model"
    )
