"""Whether a model reads on from its running state: what it makes of several tokens is compared with what it makes of them one by one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from accelplug._errors import HostError
from accelplug.hosts.hf.compat import cache_argument
from accelplug.hosts.hf.layers import growing
from accelplug.hosts.hf.recurrent import Recurrent
from accelplug.hosts.hf.tree import Tree

_NO_LIMIT = (0.0, float("inf"))
_known: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], list[nn.Module] | None]] = WeakKeyDictionary()


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
