"""The target model's side of a step: prefill, one forward pass over the drafts, and committing what was accepted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from accelplug._errors import HostError
from accelplug.hosts.hf.tree import Tree

# What plain generate() hands to the prefill alone, or what is given anew at every step.
_PER_STEP = {"past_key_values", "position_ids", "attention_mask", "use_cache", "logits_to_keep", "token_type_ids", "inputs_embeds"}


class Forward:
    """The target model with its cache, for the rows of one call.

    Between steps the cache holds every committed token but the last, exactly as in plain ``generate()``. Rows keep as
    many draft nodes as each other, so a slot of the cache is the same position in all of them.
    """

    def __init__(self, model: Any, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any]) -> None:
        self.model = model
        self.cache: Cache = model_kwargs["past_key_values"]
        outputs = model._prefill(input_ids, generation_config, model_kwargs, is_first_iteration=True)
        self.device = input_ids.device
        self.logits: Tensor = outputs.logits[:, -1:].to(self.device)  # [count, 1, vocab_size]
        self.padding: Tensor | None = model_kwargs.get("attention_mask")  # [count, prompt length] where a prompt is padded
        self.cached = int(self.cache.get_seq_length())
        self.has_positions = model_kwargs.get("position_ids") is not None
        last = model_kwargs["position_ids"][..., -1:] if self.has_positions else None
        self.position_offset = None if last is None else last + 1 - self.cached  # [..., 1 or count, 1]
        self.extra = {k: v for k, v in model_kwargs.items() if k not in _PER_STEP and not isinstance(v, Tensor)}
        if "logits_to_keep" in model_kwargs:
            self.extra["logits_to_keep"] = 0
        text = model.config.get_text_config(decoder=True)
        self.attention: str = text._attn_implementation or "eager"
        self.layer_types = set(getattr(text, "layer_types", None) or ())
        self.sliding = [layer for layer in self.cache.layers if isinstance(layer, DynamicSlidingWindowLayer)]
        # After the prefill, so that a long prompt is not kept whole in layers that only need its window.
        self.cache.activate_past_recording()

    def step(self, last_tokens: Sequence[int], trees: Sequence[Tree]) -> Tensor:
        """Run the last committed tokens and the draft nodes; return logits [count, 1 + most nodes, vocab_size]."""
        width = 1 + max(map(len, trees))
        rows = [[last, *tree.tokens, *[last] * (width - 1 - len(tree))] for last, tree in zip(last_tokens, trees, strict=True)]
        are_chains = all(tree.parents is None for tree in trees)
        outputs = self.model(
            input_ids=torch.tensor(rows, device=self.device),
            attention_mask=self._chain_mask(width) if are_chains else self._tree_mask(trees, width),
            past_key_values=self.cache,
            use_cache=True,
            **self._positions(trees, width, are_chains=are_chains),
            **self.extra,
        )
        logits: Tensor = outputs.logits.to(self.device)  # a sharded model may end on another device
        return logits

    def _positions(self, trees: Sequence[Tree], width: int, *, are_chains: bool) -> dict[str, Tensor]:
        if self.position_offset is None:
            return {}
        if are_chains:
            return {"position_ids": self.position_offset + torch.arange(self.cached, self.cached + width, device=self.device)}
        return {"position_ids": self.position_offset + self._depths(trees, width) + self.cached}

    def _depths(self, trees: Sequence[Tree], width: int) -> Tensor:
        """Return every slot's distance from the last committed token, [count, width]."""
        return torch.tensor([[*tree.depths(), *[1] * (width - 1 - len(tree))] for tree in trees], device=self.device)

    def _chain_mask(self, width: int) -> Tensor | None:
        if self.padding is not None:
            return torch.cat([self.padding, self.padding.new_ones(len(self.padding), self.cached + width - self.padding.shape[1])], 1)
        if width > 1 and self.attention == "sdpa" and not self.sliding:
            # Five times cheaper than letting the model build the same mask.
            return torch.ones(1, 1, width, self.cached + width, dtype=torch.bool, device=self.device).tril_(self.cached)
        return None

    def _tree_mask(self, trees: Sequence[Tree], width: int) -> Any:
        if self.attention not in ("sdpa", "eager"):
            raise HostError(f"attn_implementation {self.attention!r} cannot verify a tree of drafts; load the model with 'sdpa' or 'eager'")
        seen = torch.ones(len(trees), width, self.cached + width, dtype=torch.bool, device=self.device)
        seen[:, :, self.cached :] = torch.stack([tree.ancestors(width) for tree in trees]).to(self.device)
        if self.padding is not None:
            seen[:, :, : self.padding.shape[1]] &= self.padding.bool().unsqueeze(1)
        if not self.sliding:
            return self._as_attended(seen)
        ahead = self._depths(trees, width) + self.cached  # [count, width]
        positions = torch.cat([torch.arange(self.cached, device=self.device).expand(len(trees), -1), ahead], 1)
        near = seen & (positions.unsqueeze(1) > ahead.unsqueeze(2) - self.sliding[0].sliding_window)
        length, offset = self.cache.get_mask_sizes(width, self.cache.is_sliding.index(True))
        windowed = self._as_attended(near[:, :, offset : offset + length])
        if not self.layer_types:
            return windowed
        if not self.layer_types <= {"sliding_attention", "full_attention"}:
            raise HostError(f"cannot verify a tree of drafts in {', '.join(sorted(self.layer_types))} layers; use a drafter of chains")
        return {"sliding_attention": windowed, "full_attention": self._as_attended(seen)}

    def _as_attended(self, seen: Tensor) -> Tensor:
        """Give a bool mask the shape and type that the model's attention takes: [count, 1, width, length]."""
        if self.attention == "sdpa":
            return seen.unsqueeze(1)
        lowest = torch.finfo(self.model.dtype).min
        return torch.zeros(seen.shape, dtype=self.model.dtype, device=seen.device).masked_fill_(~seen, lowest).unsqueeze(1)

    def commit(self, trees: Sequence[Tree], paths: Sequence[Sequence[int]], kept: int) -> None:
        """Keep the last committed token and the first `kept` nodes of every row's accepted path; drop the rest."""
        width = 1 + max(map(len, trees))
        if any(list(path[:kept]) != list(range(kept)) for path in paths):
            self._gather([[0, *(node + 1 for node in path[:kept])] for path in paths], width)
        self._crop(width - 1 - kept)
        self.cached += 1 + kept

    def _crop(self, count: int) -> None:
        if self.sliding:
            self.cache.crop(-count)
        elif count:
            for layer in self.cache.layers:
                layer.keys = layer.keys[..., :-count, :]
                layer.values = layer.values[..., :-count, :]

    def _gather(self, slots: list[list[int]], width: int) -> None:
        """Move the accepted slots' keys and values to the front of the step's own, in place."""
        chosen = torch.tensor(slots, device=self.device)
        for layer in self.cache.layers:
            first = layer.keys.shape[-2] - width
            for states in (layer.keys, layer.values):
                _, heads, _, size = states.shape
                index = (first + chosen)[:, None, :, None].expand(-1, heads, -1, size)
                states[:, :, first : first + chosen.shape[1]] = states.gather(2, index)

    def finish(self) -> None:
        """Leave the cache as plain ``generate()`` would, so that a conversation can go on from it."""
        for layer in self.sliding:
            layer.record_past = False


def check_cache(cache: Any) -> None:
    """Refuse a cache whose rejected rows cannot be taken out again.

    :raises HostError: naming the layer type and what to use.
    """
    if not isinstance(cache, Cache) or not cache.layers:
        raise HostError(f"drafts need a dynamic cache and generate() was given a {type(cache).__name__}; leave past_key_values out")
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise HostError(
                f"rejected drafts cannot be taken out of a {type(layer).__name__}; use the dynamic cache (cache_implementation='dynamic')"
            )
