"""Layers that keep a running state where attention keeps every token: rejected drafts leave it by going back to a copy.

Behind a copy lie committed tokens that the layers have to read again. They ride on the next forward pass, in front of
its drafts, so that going back costs no pass of its own; once they are many, a step drafts nothing, which reads them for good.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, LinearAttentionCacheLayerMixin

from accelplug._errors import HostError
from accelplug.hosts.hf.compat import cache_argument
from accelplug.hosts.hf.forward import Forward, recurrent_layers, state_elsewhere
from accelplug.hosts.hf.tree import Tree

_MOST_UNREAD = 16
_NO_LIMIT = (0.0, float("inf"))
_known: WeakKeyDictionary[nn.Module, tuple[torch.device, list[nn.Module] | None]] = WeakKeyDictionary()


class States:
    """What the recurrent and convolution layers of a cache hold, and a copy of it to go back to."""

    def __init__(self, layers: Sequence[LinearAttentionCacheLayerMixin]) -> None:
        held = [states for layer in layers for states in (layer.conv_states, layer.recurrent_states)]
        self.kept = [(states, i, torch.empty_like(state)) for states in held for i, state in states.items() if state is not None]

    def save(self) -> None:
        """Copy the states as they are."""
        for states, i, kept in self.kept:
            kept.copy_(states[i])

    def restore(self) -> None:
        """Put the copy back, in place: compiled graphs know a state by its address."""
        for states, i, kept in self.kept:
            states[i].copy_(kept)


class Recurrent(Forward):
    """The target model where some layers keep a running state, for chains of drafts in rows that advance together."""

    def __init__(self, model: Any, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any]) -> None:
        super().__init__(model, input_ids, generation_config, model_kwargs)
        self.states = States(recurrent_layers(self.cache))
        if not self.states.kept:
            raise state_elsewhere(model)
        self.mixers = mixers_to_slow(model)
        # Per row: the committed tokens, but the last, that the layers have gone back behind; and those of the last forward pass.
        self.unread: list[list[int]] = [[] for _ in input_ids]
        self.read: list[list[int]] = []

    @property
    def behind(self) -> int:
        """How many committed tokens the layers have to read again."""
        return len(self.unread[0])

    @property
    def most_drafts(self) -> int | None:
        """How many drafts the next step may have: none where the layers are to catch up for good."""
        return 0 if self.behind > _MOST_UNREAD else super().most_drafts

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


def mixers_to_slow(model: Any) -> list[nn.Module]:
    """Return the model's mixers if they have to read one token after the other: some forget their state when they read several.

    :raises HostError: the model cannot read on from its state, whatever is done.
    """
    found = _known.get(model)
    if found is None or found[0] != model.device:
        found = _known[model] = (model.device, _mixers_to_slow(model))
    if found[1] is None:
        raise HostError(
            f"{type(model).__name__} makes of several tokens something else than of one after the other, so drafts cannot be verified; "
            "use another model"
        )
    return found[1]


def _mixers_to_slow(model: Any) -> list[nn.Module] | None:
    mixers = [module for module in model.modules() if hasattr(module, "layer_idx") and hasattr(module, "conv1d")]
    # One form of Mamba 2 heeds limits of its time steps and the other does not, which a probe may not come across.
    is_limited = any(tuple(getattr(mixer, "time_step_limit", _NO_LIMIT)) != _NO_LIMIT for mixer in mixers)
    for slowed in [mixers] if is_limited else [[], mixers]:
        if reads_on(model, slowed):
            return slowed
    return None


@torch.no_grad()
def reads_on(model: Any, slowed: Sequence[nn.Module] = ()) -> bool:
    """Whether the model makes of two tokens behind its state what it makes of them one by one, in its logits and in every state."""
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    tokens = (torch.arange(2, 36, device=model.device) % vocab_size).unsqueeze(0)
    prompt, drafts = tokens[:, :32], tokens[:, 32:]
    name, takes_positions = cache_argument(model), "position_ids" in signature(model.forward).parameters
    num_read: dict[int, int] = {}  # of each cache

    def read(tokens: Tensor, cache: Cache) -> Tensor:
        begin = num_read.get(id(cache), 0)
        num_read[id(cache)] = end = begin + tokens.shape[1]
        positions = {"position_ids": torch.arange(begin, end, device=model.device).unsqueeze(0)} if takes_positions else {}
        logits: Tensor = model(input_ids=tokens, **positions, **{name: cache}, use_cache=True).logits[:, -1]
        return logits

    apart = DynamicCache(config=model.config.get_text_config(decoder=True))
    read(prompt, apart)
    together = copy.deepcopy(apart)
    num_read[id(together)] = num_read[id(apart)]
    logits = [read(token, apart) for token in drafts.tensor_split(2, dim=1)]
    try:
        with one_by_one(slowed):
            found = read(drafts, together)
    except (RuntimeError, TypeError, ValueError):  # some refuse, or stumble over, what they cannot do
        return False
    pairs = zip([found, *_all_states(together)], [logits[-1], *_all_states(apart)], strict=True)
    # A prompt of 32 tokens is most of a state, and rounding far below that.
    most = 3e-4 if model.dtype in (torch.float32, torch.float64) else 0.1
    return all(bool((ours.double() - theirs.double()).norm() <= most * theirs.double().norm()) for ours, theirs in pairs)


def _all_states(cache: Cache) -> list[Tensor]:
    return [states[i] for states, i, _ in States(recurrent_layers(cache)).kept]


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


def _slowed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def read(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if "attention_mask" in kwargs:
            kwargs["attention_mask"] = None  # of padding, which no draft is
        return torch.cat([forward(token, *args, **kwargs) for token in hidden_states.tensor_split(hidden_states.shape[1], dim=1)], dim=1)

    return read
