"""Refuse a ``generate()`` call, or a model, that the loop would get wrong, before the first token."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

import torch
from transformers import GenerationMixin
from transformers.generation import utils

from accelplug._errors import HostError
from accelplug.hosts.hf.compat import cache_argument
from accelplug.hosts.hf.given import LOOKS_AGAIN, PREFILL
from accelplug.hosts.hf.masks import check_trees
from accelplug.hosts.hf.rollback import check_cache
from accelplug.hosts.hf.rotary import check_rotary
from accelplug.hosts.hf.whole import reads_whole

# By what is in the prompt, models have parts of it see what follows.
_BOTH_WAYS = ("token_type_ids", "mm_token_type_ids", "block_sequence_ids", *sorted(PREFILL))


def check_weights(model: Any) -> None:
    """Refuse layers whose output for one token depends on those read with it, so that drafts would change the output.

    :raises HostError: naming the layer type and what to use.
    """
    for module in model.modules() if hasattr(model, "modules") else ():
        for is_one, what, instead in _TOGETHER:
            if is_one(module):
                raise HostError(f"{what.format(type(module).__name__)} in a forward pass, so drafts change its output; {instead}, or pass allow_lossy=True")


def _rounds_per_tensor(module: Any) -> bool:
    """Whether torchao quantises a layer's input as it comes, with one scale for the whole of it."""
    asked = getattr(getattr(module, "weight", None), "act_quant_kwargs", None)
    return type(getattr(asked, "granularity", None)).__name__ == "PerTensor"


_TOGETHER: Final[tuple[tuple[Callable[[Any], bool], str, str], ...]] = (
    (
        lambda module: type(module).__module__.startswith("torch.ao.nn.quantized.dynamic"),
        "a dynamically quantised {} rounds all tokens together",
        "quantise weights only",
    ),
    (_rounds_per_tensor, "torchao rounds all tokens that enter a {} together", "ask for the granularity PerRow()"),
    (
        lambda module: type(module).__name__ == "Linear8bitLt" and getattr(getattr(module, "state", None), "threshold", 0) > 0,
        "bitsandbytes looks for a {}'s outliers among all tokens",
        "load with llm_int8_threshold=0.0",
    ),
)
"""Layers that look at all tokens of a pass: what tells them, what they do, and what to use instead."""


def no_model(given: Any) -> HostError:
    """Return the error for whoever attaches to something that does not generate."""
    wraps = "; of a wrapper pass what it wraps, its .module" if callable(getattr(getattr(given, "module", None), "generate", None)) else ""
    what = type(given).__name__ if hasattr(given, "modules") else " ".join(repr(given).split())
    return HostError(f"accelplug takes a loaded model, such as AutoModelForCausalLM.from_pretrained(...), and got {what:.60}{wraps}")


def attached_already() -> HostError:
    """Return the error for whoever attaches to, or generates through, a model twice."""
    return HostError("accelplug is attached to this model already; leave that 'with' block first, or choose all techniques in one attach()")


def is_sharded(model: Any) -> bool:
    """Whether each forward pass waits for other processes, as in plain ``generate(synced_gpus=True)``, which here would be different numbers of them."""
    world = torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1
    return world > 1 and (utils.is_deepspeed_zero3_enabled() or utils.is_fsdp_managed_module(model))


def reads_both_ways(model: Any) -> bool:
    """Whether a model of the BERT kind was not told that it writes: its tokens then see those behind them, wherever several are read at once."""
    module = sys.modules[type(model).__module__]
    return getattr(model.config, "is_decoder", None) is False and not model.config.is_encoder_decoder and hasattr(module, "create_bidirectional_mask")


def check_call(model: Any, config: Any, model_kwargs: dict[str, Any], *, with_trees: bool) -> None:
    """Refuse a ``generate()`` call that the loop would get wrong.

    :raises HostError: naming the argument and what to use.
    """
    text = model.config.get_text_config(decoder=True)
    mode, whole = config.get_generation_mode().value, reads_whole(model, model_kwargs)
    kept = getattr(text, "keep_window_size", None)  # how many tokens a layer reads at most
    refusals = {
        f"{mode.replace('_', ' ')}; use greedy search or sampling, with num_beams=1": mode not in ("greedy_search", "sample"),
        "a cache beside use_cache=False, behind which plain generate() reads the whole text again at every step; leave one of them out": (
            not model_kwargs.get("use_cache") and model_kwargs.get(cache_argument(model)) is not None
        ),
        "weights that FSDP or ZeRO 3 shards over processes, which must all call the model as often; gather them, or use one process": is_sharded(model),
        f"{text.model_type} models, which are given the whole text with each token; use another model": text.model_type == "cpmant" and not whole,
        f"{type(model).__name__} while it reads in both directions; load it with is_decoder=True": reads_both_ways(model) and not whole,
        f"more than the {kept} tokens that {type(model).__name__} attends to, which it chooses by scores that "
        "repeated tokens share, so that drafts change which of them it reads; give it a shorter prompt, or lower max_new_tokens": (
            kept is not None and config.max_length > kept
        ),
        "experts of limited capacity without a cache, where a token's output depends on those read with it; leave use_cache on": bool(
            whole and getattr(text, "expert_capacity", None)
        ),
        f"the images, audio or video of {type(model).__name__}, which it looks at anew with each token; use text": bool(
            PREFILL & {name for name, value in model_kwargs.items() if value is not None}
        )
        and model.config.model_type not in LOOKS_AGAIN
        and type(model)._update_model_kwargs_for_generation is not GenerationMixin._update_model_kwargs_for_generation,
    }
    for reason, refused in refusals.items():
        if refused:
            raise HostError(f"accelplug does not run with {reason}")
    check_rotary(model, config, model_kwargs)
    cache = None if whole else model_kwargs.get(cache_argument(model))
    check_cache(model, cache)
    if with_trees:
        check_trees(model, cache)
        if whole and (both_ways := [name for name in _BOTH_WAYS if model_kwargs.get(name) is not None]):
            raise HostError(
                f"a tree of drafts cannot be verified without a cache behind {both_ways[0]}, by which parts of the prompt see what follows them; "
                "leave use_cache on, or use a drafter of chains, such as prompt_lookup"
            )
        if not model.config.is_encoder_decoder and model_kwargs.get("position_ids") is None:
            raise HostError(
                f"{type(model).__name__} counts positions itself, which puts a tree's nodes one behind the other; "
                "use a drafter of chains, such as prompt_lookup"
            )
