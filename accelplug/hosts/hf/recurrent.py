"""Layers that keep a running state where attention keeps every token: rejected drafts leave it by going back to a copy.

Behind a copy lie committed tokens that the layers have to read again. They ride on the next forward pass, in front of
its drafts, so that going back costs no pass of its own; once they are many, a step drafts nothing, which reads them for good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionLayer
from transformers.masking_utils import create_masks_for_generate

from accelplug._errors import HostError
from accelplug.hosts.hf.compat import cache_name
from accelplug.hosts.hf.forward import Forward
from accelplug.hosts.hf.layers import Overwritten, has_attention, is_uncroppable
from accelplug.hosts.hf.rollback import state_elsewhere
from accelplug.hosts.hf.states import States
from accelplug.hosts.hf.tree import EMPTY, Tree

_MOST_UNREAD = 16


class Recurrent(Forward):
    """The target model where some layers keep a running state, for chains of drafts in rows that advance together.

    :param mixers: the modules that have to read one token after the other.
    """

    def __init__(
        self, model: Any, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any], mixers: Sequence[nn.Module]
    ) -> None:
        self.mixers = mixers
        super().__init__(model, input_ids, generation_config, model_kwargs)
        self.pads = False  # what pads a step would be read into the states
        self.states = States(model, self.past)
        if not self.states.now():
            raise state_elsewhere(model)
        if self.forgets_padding and self.masks.padding is not None and not self.masks.padding.all():
            raise HostError(
                f"{type(model).__name__} forgets padding behind the prompt in this release of Transformers, where its output is wrong; "
                "give it prompts of one length"
            )
        if len([weights for weights in (self.outputs or {}).get("attentions") or () if weights.ndim == 4]) > len(self.layers):
            raise HostError(
                f"{type(model).__name__} returns the states of its recurrent layers as their attentions, which drafts leave no trace of; "
                "leave output_attentions out"
            )
        # Per row: the committed tokens, but the last, that the layers have gone back behind; and those of the last forward pass.
        self.unread: list[list[int]] = [[] for _ in input_ids]
        self.read: list[list[int]] = []

    def _look_at_cache(self, prompt_length: int) -> None:
        # What a recurrent layer leaves empty, for its state to lie elsewhere, is none of attention's: masks would be made by its length.
        before = _mask_sizes(self.cache)
        for i, layer in enumerate(self.cache.layers):
            if isinstance(layer, CacheLayerMixin) and not layer.is_initialized:
                self.cache.layers[i] = LinearAttentionLayer()
        self.forgets_padding = _mask_sizes(self.cache) != before
        super()._look_at_cache(prompt_length)
        self.overwritten = Overwritten(Cache(layers=[]))  # static windows go back to the copy, like all that is read again

    def _fits_graphs(self, generation_config: Any) -> bool:
        # Steps have the widths that come; a mixer that reads one token after the other would be a graph for each.
        config = generation_config.compile_config
        return not self.mixers and not any(map(is_uncroppable, self.cache.layers)) and (config is None or config.dynamic is not False)

    def _mask(self, trees: Sequence[Tree], width: int, depths: Tensor | None) -> Any:
        mask = super()._mask(trees, width, depths)
        if not self.is_compiled or not has_attention(self.cache) or (mask is not None and mask.ndim == 4):
            return mask
        # As plain generate() does: made inside of a graph, a mask would depend on the number of tokens.
        make = getattr(self.model, "create_masks_for_generate", create_masks_for_generate)
        sizes = torch.empty(len(self.unread), width, 0, dtype=self.model.dtype, device=self.device)
        return make(config=self.model.config, inputs_embeds=sizes, attention_mask=mask, **{cache_name(): self.cache})

    @property
    def behind(self) -> int:
        """How many committed tokens the layers have to read again."""
        return len(self.unread[0])

    @property
    def most_drafts(self) -> int | None:
        """How many drafts the next step may have: none where the layers are to catch up for good."""
        most = super().most_drafts
        if self.behind > _MOST_UNREAD or (most is not None and 2 * self.behind > most):
            return 0
        return most if most is None else most - self.behind

    def step(self, last_tokens: Sequence[int], trees: Sequence[Tree]) -> Tensor:
        """Run what is unread, the last committed tokens and the drafts; return logits [count, 1 + most drafts, vocab_size]."""
        if not self.behind and any(map(len, trees)):
            self.states.save()
        rows = zip(self.unread, last_tokens, trees, strict=True)
        return self._run([[*unread, last, *tree.tokens] for unread, last, tree in rows])[:, self.behind :]

    def _run(self, rows: list[list[int]]) -> Tensor:
        self.read = rows
        with one_by_one(self.mixers):
            return super().step([row[0] for row in rows], [Tree(row[1:]) for row in rows])

    def alone(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of each row and keep it; return its logits [count, vocab_size]."""
        trees = [EMPTY] * len(tokens)
        logits = self.step(tokens, trees)[:, 0]
        self.commit(trees, [[]] * len(tokens), 0)
        return logits

    def slots(self, paths: Sequence[Sequence[int]], kept: int) -> list[list[int]]:
        """Return the last forward pass's slots of every row's committed tokens, those read again first."""
        return [list(range(self.behind + 1 + kept)) for _ in paths]

    def commit(self, trees: Sequence[Tree], _paths: Sequence[Sequence[int]], kept: int) -> None:
        """Keep the last committed token and the first `kept` drafts; where that is not all that was read, go back to the copy."""
        width, num_right = self.behind + 1 + max(map(len, trees)), self.behind + 1 + kept
        if num_right == width:
            self._advance(width)
        else:
            self._crop(width)
            self.states.restore()
            self.unread = [row[:num_right] for row in self.read]

    def _advance(self, width: int) -> None:
        self._crop(0)
        self.cached += width
        self.unread = [[] for _ in self.unread]

    def finish(self) -> None:
        """Have the layers read what is unread: the cache then holds what plain ``generate()`` leaves."""
        if width := self.behind:
            self._run(self.unread)
            self._advance(width)


def _mask_sizes(cache: Cache) -> tuple[int, int]:
    """Return what Transformers makes masks by."""
    layer = cache.is_sliding.index(True) if any(cache.is_sliding) else 0
    return cache.get_mask_sizes(1, layer) if has_attention(cache) else (0, 0)


@contextmanager
def one_by_one(mixers: Sequence[nn.Module]) -> Iterator[None]:
    """Have these modules read the tokens they are given one after the other."""
    own = [vars(mixer).get("forward") for mixer in mixers]
    for mixer in mixers:
        mixer.forward = _slowed(mixer.forward)
    try:
        yield
    finally:
        for mixer, forward in zip(mixers, own, strict=True):
            del mixer.forward
            if forward is not None:  # of whoever has put hooks there
                mixer.forward = forward


def _slowed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def read(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if "attention_mask" in kwargs:
            kwargs["attention_mask"] = None  # of padding, which no draft is
        positions = kwargs.get("position_ids")
        outputs = []
        for i, token in enumerate(hidden_states.tensor_split(hidden_states.shape[1], dim=1)):
            own = {} if positions is None else {"position_ids": positions[..., i : i + 1]}
            outputs.append(forward(token, *args, **{**kwargs, **own}))
        if isinstance(outputs[0], tuple):
            return torch.cat([output[0] for output in outputs], dim=1), *outputs[-1][1:]
        return torch.cat(outputs, dim=1)

    return read
