"""Layers that keep a running state where attention keeps every token: rejected drafts leave it by going back to a copy.

Behind a copy lie committed tokens that the layers have to read again. They ride on the next forward pass, in front of
its drafts, so that going back costs no pass of its own; once they are many, a step drafts nothing, which reads them for good.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionLayer, StaticSlidingWindowLayer
from transformers.masking_utils import create_masks_for_generate

from accelplug._errors import HostError
from accelplug.hosts.hf.compat import cache_argument, cache_name
from accelplug.hosts.hf.forward import Forward
from accelplug.hosts.hf.layers import Overwritten, growing, has_attention, is_uncroppable, recurrent_layers
from accelplug.hosts.hf.rollback import state_elsewhere
from accelplug.hosts.hf.tree import EMPTY, Tree

_MOST_UNREAD = 16
_NO_LIMIT = (0.0, float("inf"))
_known: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], list[nn.Module] | None]] = WeakKeyDictionary()


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


def mixers_to_slow(model: Any, count: int = 1, past: Any = None) -> list[nn.Module]:
    """Return the model's mixers if they have to read one token after the other: some forget their state when they read several.

    :param count: how many rows the model is to read.
    :param past: the call's cache, for layers that Transformers does not make itself.
    :raises HostError: the model cannot read on from its state, whatever is done.
    """
    known = _known.setdefault(model, {})
    given = [type(layer) for layer in growing(past).layers]
    foreign = past if any(not kind.__module__.startswith("transformers.") for kind in given) else None
    key = (model.device, model.dtype, count > 1, adapters(model), *(given if foreign else ()))
    if key not in known:
        known[key] = _mixers_to_slow(model, min(count, 2), foreign)
    if (slowed := known[key]) is None:
        if count > 1:
            mixers_to_slow(model, past=past)
            raise HostError(f"{type(model).__name__} mixes the rows of a batch where it reads one token, so drafts cannot be verified; give it one prompt")
        raise HostError(
            f"{type(model).__name__} makes of several tokens something else than of one after the other, or keeps its state out of reach, "
            "so drafts cannot be verified; use another model"
        )
    return slowed


def adapters(model: Any) -> frozenset[tuple[Any, ...]]:
    """Return how PEFT's layers in a model compute: by which adapters, and which of them are merged into the weights or left out.

    Other weights in the same place are not looked for: they change what is computed, and not which way.
    """
    tuned = [module for module in model.modules() if hasattr(module, "merged_adapters")]
    return frozenset((*layer.active_adapters, None, *layer.merged_adapters, layer.disable_adapters) for layer in tuned)


def _mixers_to_slow(model: Any, count: int, past: Any) -> list[nn.Module] | None:
    mixers = [module for module in model.modules() if any(isinstance(child, nn.Conv1d) for child in module.children())]
    # One form of Mamba 2 heeds limits of its time steps and the other does not, which a probe may not come across.
    is_limited = any(tuple(getattr(mixer, "time_step_limit", _NO_LIMIT)) != _NO_LIMIT for mixer in mixers)
    for slowed in [mixers] if is_limited else [[], mixers]:
        if reads_on(model, slowed, count, past):
            return slowed
    return None


@torch.no_grad()
def reads_on(model: Any, slowed: Sequence[nn.Module] = (), count: int = 1, past: Any = None) -> bool:
    """Whether the model makes of two tokens behind its state, and of the next behind a draft that was rejected, what it makes of them
    one by one, in its logits and in every state.
    """
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    tokens = torch.arange(2, 37, device=model.device) % vocab_size
    rows = torch.stack([tokens.roll(row) for row in range(count)])
    first, second, third = rows[:, 32:].T.tolist()
    wrong = [Tree([token, (token + 1) % vocab_size]) for token in second]

    apart = _behind(model, rows[:, :32], (), past)
    one_by_one_logits = [apart.alone(token) for token in (first, second, third)]
    expected = [*one_by_one_logits, *(state.clone() for state in apart.states.now())]
    try:
        together = _behind(model, rows[:, :32], slowed, past)
        logits = together.step(first, wrong)
        together.commit(wrong, [[0]] * count, 1)
        found = [logits[:, 0], logits[:, 1], together.alone(third), *together.states.now()]
    except torch.cuda.OutOfMemoryError:  # which says nothing of the model, and would be remembered as if it did
        raise
    except (RuntimeError, TypeError, ValueError):  # some refuse, or stumble over, what they cannot do
        return False
    # A prompt of 32 tokens is most of a state, and rounding far below that.
    most = 3e-4 if model.dtype in (torch.float32, torch.float64) else 0.1
    pairs = zip(found, expected, strict=True)
    return all(ours.shape == theirs.shape and bool((ours.double() - theirs.double()).norm() <= most * theirs.double().norm()) for ours, theirs in pairs)


def _behind(model: Any, prompt: Tensor, mixers: Sequence[nn.Module], past: Any) -> Recurrent:
    """Return the model behind a prompt, prepared by Transformers as any, with an empty cache like `past`."""
    made: list[Recurrent] = []
    cache = {} if past is None else {cache_argument(model): copy.deepcopy(past)}
    for fresh in cache.values():
        fresh.reset()

    def take(model: Any, input_ids: Tensor, generation_config: Any, **given: Any) -> Tensor:
        model_kwargs = {name: value for name, value in given.items() if name not in ("logits_processor", "stopping_criteria", "inputs_tensor")}
        made.append(Recurrent(model, input_ids, generation_config, model_kwargs, mixers))
        return input_ids

    config = GenerationConfig(max_new_tokens=4, do_sample=False, num_beams=1, pad_token_id=0)
    type(model).generate(model, prompt, generation_config=config, attention_mask=torch.ones_like(prompt), custom_generate=take, **cache)
    return made[0]


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
