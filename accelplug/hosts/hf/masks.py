"""Which cached and drafted positions each draft node attends to, in the form that the model's attention takes."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicIndexedLayer,
    DynamicSlidingWindowLayer,
    StaticIndexedLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from accelplug._errors import HostError
from accelplug.hosts.hf.columns import Columns
from accelplug.hosts.hf.compat import ADDS_MASKS
from accelplug.hosts.hf.device import upload
from accelplug.hosts.hf.layers import is_recurrent
from accelplug.hosts.hf.tree import Tree

# Their attention is biased or windowed by cache slot rather than by position, so branches would see wrong distances.
_BY_SLOT = ("bloom", "gpt_neo", "mpt", "openai-gpt", "reformer")
# Their windows are the cache's alone: of several tokens, the later ones would see further back than their own window.
_WINDOW_OF_CACHE = ("moshi", "kyutai_speech_to_text")
_MASKABLE = ("sdpa", "eager")
WINDOWS = frozenset({"sliding_attention", "full_attention"})
_NODE_BY_NODE = WINDOWS | {"indexed_attention", "deepseek_sparse_attention"}  # the latter is its name before 5.18


class Attention:
    """How a model's attention takes masks that were made outside it.

    :ivar window: how far its windowed layers see, or None where it has none.
    """

    def __init__(self, model: Any) -> None:
        text = model.config.get_text_config(decoder=True)
        types = getattr(text, "layer_types", None)
        self.dtype, self.types = model.dtype, frozenset(types or ())
        self.is_sdpa = (text._attn_implementation or "eager") == "sdpa"
        self.window: int | None = getattr(text, "sliding_window", None) if not types or "sliding_attention" in types else None

    def mask(self, seen: Tensor) -> Tensor:
        """Give a bool mask [count, width, length] the shape and type that the attention takes: [count, 1, width, length]."""
        if self.is_sdpa:
            return seen.unsqueeze(1)
        lowest = torch.finfo(self.dtype).min
        return torch.zeros(seen.shape, dtype=self.dtype, device=seen.device).masked_fill_(~seen, lowest).unsqueeze(1)

    def windowed(self, seen: Tensor, positions: Tensor, ahead: Tensor) -> Any:
        """Return the mask, or one per layer type, of slots at the positions `ahead` [count, width] that see those at `positions` [count, length]."""
        if self.window is None:
            return self.mask(seen)
        return self.by_type(near(seen, positions, ahead, self.window), seen)

    def by_type(self, within: Tensor, seen: Tensor) -> Any:
        """Return the mask of windowed layers, with that of the others where the model tells them apart."""
        masks = {"sliding_attention": self.mask(within)}
        return masks | dict.fromkeys(self.types - {"sliding_attention"} or {"full_attention"}, self.mask(seen)) if self.types else self.mask(within)


def near(seen: Tensor, positions: Tensor, ahead: Tensor, window: int) -> Tensor:
    """Return what of `seen` [count, width, length] lies within the window."""
    return seen & (positions.unsqueeze(1) > ahead.unsqueeze(2) - window)


class Masks:
    """Masks for one call.

    :param cache: filled by the prefill.
    :param padding: [count, prompt length], 0 where a prompt is padded; None without padding.
    """

    def __init__(self, model: Any, cache: Any, padding: Tensor | None, device: torch.device) -> None:
        text = model.config.get_text_config(decoder=True)
        self.cache, self.padding, self.device = cache, padding, device
        self.attention = Attention(model)
        self.sliding = [layer for layer in cache.layers if type(layer) in (DynamicSlidingWindowLayer, StaticSlidingWindowLayer)]
        self.window: int = next((getattr(layer, "sliding_window", self.attention.window) or 0 for layer in self.sliding), 0)
        self.capacity = capacity(cache)
        self.masks_chains = bool(self.sliding) and text.model_type in _WINDOW_OF_CACHE
        # A cache that the user made without the model's config has no window even where the model has one.
        self.is_plain_causal = (
            self.attention.is_sdpa and padding is None and not _windows(text) and not self.sliding and not _by_slot(model) and not _masks_itself(model)
        )

    def chain(self, width: int, cached: int) -> Tensor | None:
        """Return the mask of a chain of `width` slots behind `cached` tokens; None lets the model build it."""
        if self.padding is not None:
            return torch.cat([self.padding, self.padding.new_ones(len(self.padding), cached + width - self.padding.shape[1])], 1)
        if width > 1 and self.is_plain_causal:
            # Five times cheaper than letting the model build the same mask.
            return torch.ones(1, 1, width, self.capacity or cached + width, dtype=torch.bool, device=self.device).tril_(cached)
        return None

    def tree(self, trees: Sequence[Tree], depths: Tensor, cached: int) -> Any:
        """Return the mask, or one per layer type, of trees whose slots lie `depths` [count, width] behind the cache."""
        width = depths.shape[1]
        seen = torch.ones(len(trees), width, cached + width, dtype=torch.bool, device=self.device)
        seen[:, :, cached:] = upload(torch.stack([tree.ancestors(width) for tree in trees]), self.device)
        if self.padding is not None:
            seen[:, :, : self.padding.shape[1]] &= self.padding.bool().unsqueeze(1)
        whole = torch.nn.functional.pad(seen, (0, self.capacity - cached - width)) if self.capacity else seen
        if not self.sliding:
            return self.attention.mask(whole)
        ahead = depths + cached
        positions = torch.cat([torch.arange(cached, device=self.device).expand(len(trees), -1), ahead], 1)
        length, offset = self.cache.get_mask_sizes(width, self.cache.is_sliding.index(True))
        within = near(seen, positions, ahead, self.window)[:, :, offset : offset + length]
        return self.attention.by_type(torch.nn.functional.pad(within, (0, length - within.shape[2])), whole)

    def holed(self, trees: Sequence[Tree], columns: Columns, ahead: Tensor) -> Any:
        """Return the mask, or one per layer type, of trees at the positions `ahead` [count, width], behind a cache of which
        each row has its own columns alone.
        """
        width = ahead.shape[1]
        if all(tree.parents is None for tree in trees):
            own = torch.ones(width, width, dtype=torch.bool, device=self.device).tril_().expand(len(trees), -1, -1)
        else:
            own = upload(torch.stack([tree.ancestors(width) for tree in trees]), self.device)
        seen = torch.cat([columns.valid.unsqueeze(1).expand(-1, width, -1), own], 2)
        return self.attention.windowed(seen, torch.cat([columns.positions, ahead], 1), ahead)


def capacity(cache: Any) -> int:
    """Return how many slots a static cache has, filled or not; 0 for one that grows, or rolls."""
    return min((layer.max_cache_len for layer in cache.layers if isinstance(layer, StaticLayer) and not layer.is_sliding), default=0)


def _windows(text: Any) -> bool:
    types = set(getattr(text, "layer_types", None) or ())
    return bool(getattr(text, "sliding_window", None)) or bool(types - {"full_attention"})


def _by_slot(model: Any) -> bool:
    if model.config.is_encoder_decoder:
        return "decoder_position_ids" not in signature(model.forward).parameters
    text = model.config.get_text_config(decoder=True)
    return text.model_type in _BY_SLOT or bool(getattr(text, "alibi", False))


def _masks_itself(model: Any) -> bool:
    """Whether the model makes masks by a method of its own, which takes padding alone (Kosmos-2)."""
    return any(hasattr(part, "_prepare_decoder_attention_mask") for part in model.children())


def unfit_for_own_masks(model: Any) -> str | None:
    """Return why the model's attention cannot be masked slot by slot by the host, or None where it can."""
    text = model.config.get_text_config(decoder=True)
    implementation = text._attn_implementation or "eager"
    if model.config.is_encoder_decoder:
        return "an encoder-decoder model"
    if implementation not in _MASKABLE:
        return f"attn_implementation {implementation!r}"
    types = set(getattr(text, "layer_types", None) or ())
    if not types <= WINDOWS:
        return f"{', '.join(sorted(types - WINDOWS))} layers"
    return f"{text.model_type}'s attention by cache slot" if _by_slot(model) else None


def check_index(model: Any, cache: Any) -> None:
    """Refuse what chooses tokens by an index that, in this release, takes sdpa's masks for scores, and so reads several tokens unlike one.

    :raises HostError: naming the model and what to use.
    """
    implementation = model.config.get_text_config(decoder=True)._attn_implementation
    if ADDS_MASKS and implementation == "sdpa" and any(isinstance(layer, DynamicIndexedLayer | StaticIndexedLayer) for layer in cache.layers):
        raise HostError(
            f"{type(model).__name__} adds sdpa's masks to the scores of its index in this release of Transformers, where several tokens are read wrongly; "
            "load it with 'eager', or take 5.17"
        )


def check_padding(model: Any, cache: Any, padding: Tensor | None) -> None:
    """Refuse padded prompts where plain ``generate()`` takes padding for text in some of its layers.

    DeepSeek V4 compresses both together, and MiniMax M3 counts its blocks from the padding; several tokens at once are masked by position, one is not.
    Unlimited-OCR loses sight of it once its window is full. GIT takes the mask for one that leaves out an image's tokens in the cache, be there any or not.

    :raises HostError: naming the model and what to use.
    """
    if padding is None or bool(padding.all()):
        return
    if any(getattr(layer, "_layer_type", None) == "reference_sliding_attention" for layer in cache.layers):
        raise HostError(f"{type(model).__name__} takes padding for text once its window is full, so that its output is wrong; give it prompts of one length")
    if model.config.model_type == "git":
        raise HostError(f"{type(model).__name__} puts padding where an image's tokens would be, so that its output is wrong; give it prompts of one length")
    if any(hasattr(layer, "compress_rate") or hasattr(layer, "idx_keys") for layer in cache.layers):
        raise HostError(f"{type(model).__name__} takes padding for text in blocks of tokens, so that its output is wrong; give it prompts of one length")


def check_trees(model: Any, cache: Any) -> None:
    """Refuse trees of drafts where the model's attention cannot be masked node by node.

    :param cache: None where the model reads the whole text at every step.
    :raises HostError: naming what stands in the way and what to use.
    """
    text = model.config.get_text_config(decoder=True)
    types = set(getattr(text, "layer_types", None) or ())
    implementation = text._attn_implementation or "eager"
    if implementation not in _MASKABLE:
        raise HostError(f"attn_implementation {implementation!r} cannot verify a tree of drafts; load the model with 'sdpa' or 'eager'")
    if is_recurrent(model, Cache(layers=[]) if cache is None else cache):
        raise HostError("a tree of drafts cannot be verified in recurrent layers, which read one token after the other; use a drafter of chains")
    if _by_slot(model) or not types <= _NODE_BY_NODE:
        what = ", ".join(sorted(types - _NODE_BY_NODE)) or f"{text.model_type}'s"
        raise HostError(f"a tree of drafts cannot be verified in {what} attention; use a drafter of chains, such as prompt_lookup")
    has_windows = bool(getattr(text, "sliding_window", None)) or "sliding_attention" in types
    made_without_config = cache is not None and has_windows and not any(cache.is_sliding)
    if made_without_config:
        raise HostError("a tree of drafts needs a cache that knows the model's window; pass DynamicCache(config=model.config) or none")
