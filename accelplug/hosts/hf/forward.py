"""The target model's side of a step: prefill, one forward pass over the drafts, and committing what was accepted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer

from accelplug._errors import HostError
from accelplug.hosts.hf.compat import cache_argument
from accelplug.hosts.hf.experts import widest_step
from accelplug.hosts.hf.given import (
    PER_STEP,
    PER_TOKEN,
    PREFILL,
    answers_type,
    asks_ahead,
    inputs_ahead,
    left_out,
    of_tokens,
    prompt_positions,
    uncounted_token,
)
from accelplug.hosts.hf.inside import of_token
from accelplug.hosts.hf.layers import (
    Overwritten,
    await_layers,
    crop,
    filled,
    growing,
    has_attention,
    is_uncroppable,
    most_drafts,
    states_of,
    with_limits,
)
from accelplug.hosts.hf.masks import Masks, check_padding, unfit_for_own_masks
from accelplug.hosts.hf.rollback import state_elsewhere
from accelplug.hosts.hf.several import reading_several
from accelplug.hosts.hf.tree import Tree


class Forward:
    """The target model with its cache, for the rows of one call.

    Between steps the cache holds every committed token but the last, exactly as in plain ``generate()``. Rows keep as
    many draft nodes as each other, so a slot of the cache is the same position in all of them.
    """

    def __init__(self, model: Any, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any]) -> None:
        self.model = model
        self.cache_name = cache_argument(model)
        self.past: Any = model_kwargs.get(self.cache_name)
        self.several = reading_several(model)
        self.side = "decoder_" if model.config.is_encoder_decoder else ""  # the encoder's arguments have the plain names
        self.widest = widest_step(model, len(input_ids))
        outputs = model._prefill(input_ids, generation_config, model_kwargs, is_first_iteration=True)
        if (made := outputs.get(self.cache_name)) is not None:  # some make it themselves, Phi-3 in place of the one it is given for a long prompt
            self.past = made
        if self.past is None:
            raise state_elsewhere(model)
        self.cache = growing(self.past)
        self.is_watched = bool(generation_config.output_attentions or model_kwargs.get("output_hidden_states"))  # by the caller, or by a drafter
        self.outputs = outputs if self.is_watched else None  # of the last forward pass
        ahead = inputs_ahead(model, input_ids, outputs, model_kwargs) if asks_ahead(model) else None
        if ahead is not None:
            self.past = ahead[self.cache_name]  # prefix tuning puts another in its place
            self.cache = growing(self.past)
        self.device = input_ids.device
        self.logits: Tensor = outputs.logits[:, -1:].to(self.device)  # [count, 1, vocab_size]
        self._look_at_cache(input_ids.shape[1])
        padding = self._keep_inputs(input_ids, outputs, model_kwargs) if ahead is None else self._keep_inputs_ahead(ahead, model_kwargs)
        self.uncounted = uncounted_token(model) if self.position_offset is None else None
        self.per_token = [name for name in PER_TOKEN if ahead is not None and name in self.extra]
        if "logits_to_keep" in model_kwargs:
            self.extra["logits_to_keep"] = 0
        self.is_compiled = is_compiled(model, generation_config, model_kwargs) and self._fits_graphs(generation_config)
        self.pads = self.is_compiled  # steps, to powers of two
        self.call = model.get_compiled_call(generation_config.compile_config) if self.is_compiled else model
        check_padding(model, self.cache, padding)
        # Without attention nobody asks for padding behind the prompt.
        self.masks = Masks(model, self.cache, padding if has_attention(self.cache) else None, self.device)
        # After the prefill, so that a long prompt is not kept whole in layers that only need its window.
        for layer in self.masks.sliding:
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.activate_past_recording()

    def _look_at_cache(self, prompt_length: int) -> None:
        name = type(self.model).__name__
        # Recurrent layers alone count no tokens, and nothing asks for a position there.
        self.cached = int(self.cache.get_seq_length()) if has_attention(self.cache) else prompt_length
        if not self.cached:
            raise HostError(f"{name} fills no cache, so that plain generate() gives it each token alone; pass use_cache=False")
        self.overwritten = Overwritten(self.cache)
        self.layers_with_limits = with_limits(self.cache)
        of_images = getattr(self.model.config.get_text_config(decoder=True), "cross_attention_layers", None) or ()
        kept = [layer for i, layer in enumerate(self.cache.layers) if i in of_images]
        self.layers = [layer for layer in filled(self.cache) if layer not in (*self.overwritten.layers, *kept) and not is_uncroppable(layer)]
        if any(int(layer.get_seq_length()) != self.cached for layer in (*self.layers, *self.overwritten.layers)):
            raise HostError(f"{name} caches more than its tokens, from which rejected drafts cannot be taken; pass use_cache=False")

    def _keep_inputs(self, input_ids: Tensor, outputs: Any, model_kwargs: dict[str, Any]) -> Tensor | None:
        """Keep what each step is given beside its tokens; return the prompts' padding."""
        positions = prompt_positions(self.model, input_ids, model_kwargs)
        self.position_offset = None if positions is None else positions[..., -1:] + 1 - self.cached  # [..., 1 or count, 1]
        dropped = PER_STEP | PREFILL | left_out(self.model, input_ids, outputs, model_kwargs)
        self.extra = {k: v for k, v in model_kwargs.items() if k not in dropped}
        self.token_type = None if self.side else answers_type(self.model, input_ids, model_kwargs)  # [count, 1]
        if self.side:
            self.extra["attention_mask"] = model_kwargs.get("attention_mask")
        padding: Tensor | None = model_kwargs.get(f"{self.side}attention_mask")
        return padding

    def _keep_inputs_ahead(self, ahead: dict[str, Any], model_kwargs: dict[str, Any]) -> Tensor | None:
        """Keep the same of what the model gives the first token behind the prompt."""
        positions, padding = ahead.get("position_ids"), ahead.get("attention_mask")
        if positions is None and model_kwargs.get("position_ids") is not None:
            positions = torch.full((1, 1), self.cached, device=self.device)  # PEFT has the model count slots
        self.position_offset = None if positions is None else positions[..., -1:] - self.cached
        self.extra = {k: v for k, v in ahead.items() if k not in PER_STEP | PREFILL | {"input_ids"} and v is not None}
        self.token_type = ahead.get("token_type_ids")
        return None if padding is None else padding[:, : self.cached]

    def step(self, last_tokens: Sequence[int], trees: Sequence[Tree]) -> Tensor:
        """Run the last committed tokens and the draft nodes; return logits [count, 1 + most nodes, vocab_size]."""
        width = self.width = self._width(trees)
        rows = [[last, *tree.tokens, *[last] * (width - 1 - len(tree))] for last, tree in zip(last_tokens, trees, strict=True)]
        # A graph takes one kind of mask.
        is_chain = not self.pads and (width == 1 or not self.masks.masks_chains) and all(tree.parents is None for tree in trees)
        depths = None if is_chain else self._depths(trees, width)
        mask = self._mask(trees, width, depths)
        own = {"input_ids": torch.tensor(rows, device=self.device), "attention_mask": mask, **self._positions(width, depths)}
        if self.token_type is not None:
            own["token_type_ids"] = self.token_type.expand(-1, width)
        own = {**{f"{self.side}{name}": value for name, value in own.items()}, self.cache_name: self.past}
        own |= {name: of_tokens(self.extra[name], self.cached, width) for name in self.per_token}
        if self.overwritten.layers and width > 1:
            self.overwritten.save()
        with self.several(self.past, width, self.cached):
            outputs = self.call(**{**self.extra, **own}, use_cache=True)
        if self.is_watched:
            self.outputs = outputs
        logits: Tensor = outputs.logits.to(self.device)  # a sharded model may end on another device
        return logits

    def readable(self, trees: list[Tree], last_tokens: Sequence[int], over: Sequence[bool]) -> list[Tree]:
        """Cut the drafts of rows that are not `over` behind a token for which the model counts no position, where others are read with it."""
        if self.uncounted is None:
            return trees
        rows = zip(trees, last_tokens, over, strict=True)
        return [tree if is_over else tree.until(self.uncounted, last) for tree, last, is_over in rows]

    def _width(self, trees: Sequence[Tree]) -> int:
        """Return how many slots a step has; a compiled model is given few widths, since each is a graph of its own."""
        width = 1 + max(map(len, trees))
        return 1 << (width - 1).bit_length() if self.pads else width

    def _fits_graphs(self, _generation_config: Any) -> bool:
        """Whether a few graphs do for steps of every width; they are given masks of the host's, which attention by cache slot cannot take."""
        return {type(layer) for layer in self.cache.layers} <= {StaticLayer, StaticSlidingWindowLayer} and not unfit_for_own_masks(self.model)

    def _mask(self, trees: Sequence[Tree], width: int, depths: Tensor | None) -> Any:
        return self.masks.chain(width, self.cached) if depths is None else self.masks.tree(trees, depths, self.cached)

    def _positions(self, width: int, depths: Tensor | None) -> dict[str, Tensor]:
        if self.position_offset is None and (depths is None or not self.side):
            return {}
        ahead = torch.arange(self.cached, self.cached + width, device=self.device) if depths is None else depths + self.cached
        return {"position_ids": ahead if self.position_offset is None else self.position_offset + ahead}

    def _depths(self, trees: Sequence[Tree], width: int) -> Tensor:
        """Return every slot's distance from the last committed token, [count, width]."""
        return torch.tensor([[*tree.depths(), *[1] * (width - 1 - len(tree))] for tree in trees], device=self.device)

    def commit(self, trees: Sequence[Tree], paths: Sequence[Sequence[int]], kept: int) -> None:
        """Keep the last committed token and the first `kept` nodes of every row's accepted path; drop the rest."""
        width = self._width(trees)
        if any(list(path[:kept]) != list(range(kept)) for path in paths):
            self._gather(self.slots(paths, kept), width)
        if self.overwritten.layers and width > 1:
            self.overwritten.put_back(torch.tensor(self.slots(paths, kept)), width)
        self._crop(width - 1 - kept)
        self.cached += 1 + kept

    @property
    def most_drafts(self) -> int | None:
        """How many drafts the next step may have, None for any number."""
        limits = (most_drafts(self.layers_with_limits), None if self.widest is None else self.widest - 1)
        return min((limit for limit in limits if limit is not None), default=None)

    def slots(self, paths: Sequence[Sequence[int]], kept: int) -> list[list[int]]:
        """Return the last forward pass's slots of every row's committed tokens, the first `kept` drafts among them."""
        return [[0, *(node + 1 for node in path[:kept])] for path in paths]

    def inside(self, name: str, layers: Sequence[Any], slots: Tensor) -> tuple[Any, ...]:
        """Return what the layers' outputs `name` have of the last of these slots, as if it had been read alone behind the others."""
        cached = [layer for layer in self.cache.layers if isinstance(layer, CacheLayerMixin)]
        caches = cached if len(cached) == len(layers) else [None] * len(layers)
        return tuple(of_token(name, states, layer, slots, self.cached, self.width) for states, layer in zip(layers, caches, strict=True))

    def finish(self) -> None:
        """Leave the cache as plain ``generate()`` would: it is already."""

    def _crop(self, count: int) -> None:
        if count or self.masks.sliding:
            for layer in self.layers:
                crop(layer, count)

    def _gather(self, slots: list[list[int]], width: int) -> None:
        """Move the accepted slots' keys and values to the front of the step's own, in place."""
        await_layers(self.cache)
        chosen = torch.tensor(slots, device=self.device)
        for layer in self.layers:
            for states in states_of(layer):
                first = self.cached if isinstance(layer, StaticLayer) else states.shape[-2] - width
                _, heads, _, size = states.shape
                index = (first + chosen.to(states.device))[:, None, :, None].expand(-1, heads, -1, size)
                states[:, :, first : first + chosen.shape[1]] = states.gather(2, index)


def is_compiled(model: Any, generation_config: Any, model_kwargs: dict[str, Any]) -> bool:
    """Whether plain ``generate()`` would compile the forward pass of this call, as it does for static caches on accelerators."""
    return model_kwargs.get(cache_argument(model)) is not None and bool(model._valid_auto_compile_criteria(model_kwargs, generation_config))
