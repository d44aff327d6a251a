"""Transformers' own candidate generators, made for one request at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList

from accelplug._errors import HostError
from accelplug.hosts.hf.masks import WINDOWS
from accelplug.hosts.hf.on_hidden import OnHidden, check_made, dflash_model


def candidates_of(model: Any, name: str, options: Mapping[str, Any]) -> Callable[[Tensor], Any]:
    """Return what makes a ``CandidateGenerator`` for a request's token ids, [1, length].

    :param name: ``"prompt_lookup"``; ``"early_exit"``, which drafts greedily with the model's first layers and a cache of its own; or ``"mtp"`` and
        ``"dflash"``, which read the target's hidden states: what makes them has their `layers`, and each is to ``read`` them.
    :param options: as ``generate()`` takes them.
    :raises HostError: the model has no such layers, or Transformers no such generator.
    """
    assistant = {"assistant_model": dflash_model(options["assistant_model"], model)} if name == "dflash" else {}
    config = GenerationConfig(eos_token_id=None, pad_token_id=0, do_sample=False, min_length=0, max_length=1 << 30, **_known(options))
    config._eos_token_tensor = None  # an end inside a draft is the loop's business
    twin = _beginning(model, options["assistant_early_exit"], options["num_assistant_tokens"]) if name == "early_exit" else model

    def make(ids: Tensor) -> Any:
        found = twin._get_candidate_generator(
            generation_config=config,
            input_ids=ids,
            inputs_tensor=None,
            logits_processor=LogitsProcessorList(),
            model_kwargs={"attention_mask": torch.ones_like(ids)},
            **assistant,
        )
        if name == "early_exit" and _attends_only(twin.config):  # 5.16 cannot crop the cache of its own, which has layers that are never read into
            found.assistant_kwargs["past_key_values"] = DynamicCache()
        return found

    if name not in ("mtp", "dflash"):
        return make
    return OnHidden(check_made(model, name, lambda: make(torch.zeros(1, 1, dtype=torch.long, device=model.device))))


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in ("num_assistant_tokens", "assistant_model")}  # not the configuration's


def _attends_only(config: Any) -> bool:
    """Whether every layer keeps keys and values."""
    return WINDOWS.issuperset(getattr(config.get_text_config(decoder=True), "layer_types", None) or ())


def _beginning(model: Any, layers: int, num_tokens: int) -> Any:
    """Return the model's first layers with its head, sharing all weights, and with a ``generate()`` of their own.

    Transformers' generator changes the configuration while it drafts: here that is a copy's.
    """
    inner: Any = getattr(model, model.base_model_prefix, None)
    every = getattr(inner, "layers", None)
    if model.config.is_encoder_decoder or every is None:
        raise HostError(f"{type(model).__name__} has no early exit: its layers are in no list that it goes through; use another drafter")
    if layers >= len(every):
        raise HostError(f"exit_layer={layers} is no early exit of {type(model).__name__}, which has {len(every)} layers; give fewer")
    twin, start = copy.copy(model), copy.copy(inner)
    vars(twin).pop("generate", None)  # a session's, which would call the drafter again
    twin._modules, start._modules = {**model._modules, model.base_model_prefix: start}, {**inner._modules, "layers": every[:layers]}
    twin.config = start.config = copy.deepcopy(model.config)
    twin.generation_config = GenerationConfig(num_assistant_tokens=num_tokens, num_assistant_tokens_schedule="constant", pad_token_id=0)
    return twin
