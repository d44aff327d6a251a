"""What a forward pass is given beside its tokens: positions, masks of images, token types, as the model itself prepares them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation.utils import MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL

from accelplug._errors import HostError

# What plain generate() hands to the prefill alone or to no forward pass, or what is given anew at every step.
PER_STEP = {
    "cache", "past_key_values", "cache_params", "state", "position_ids", "attention_mask", "use_cache", "logits_to_keep", "inputs_embeds", "labels",
    "decoder_position_ids", "decoder_attention_mask", "token_type_ids", "mm_token_type_ids",
}  # fmt: skip
# Models that give every token a part of their own of these, as they give the first token behind the prompt.
PER_TOKEN = ("cross_attention_mask", "image_attention_mask")
LOOKS_AGAIN = ("paligemma", "mllama", "idefics")
PREFILL = frozenset(MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL)  # images, audio, video: plain generate() leaves them out behind the prompt


def prompt_positions(model: Any, input_ids: Tensor, model_kwargs: dict[str, Any]) -> Tensor | None:
    """Return the positions that the model gives the prompt, [..., 1 or count, length]; None where it counts cache slots.

    Some encoder-decoder models make them out of the decoder's mask on the way to each forward pass.
    """
    if model.config.is_encoder_decoder and model_kwargs.get("decoder_attention_mask") is not None:
        model_kwargs = model.prepare_inputs_for_generation(input_ids, **model_kwargs)
    positions: Tensor | None = model_kwargs.get("decoder_position_ids" if model.config.is_encoder_decoder else "position_ids")
    return positions


def without_positions(model: Any, input_ids: Tensor, model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call without positions where the model drops them on the way to each forward pass, and counts by itself (EXAONE 4.5, Kosmos-2).

    Such a model counts cache slots, padding among them: given positions behind the prompt alone, it would see wrong distances to it.
    """
    own = prepares_itself(model)
    if not own or model.config.is_encoder_decoder or model_kwargs.get("position_ids") is None or has_virtual_tokens(model):
        return model_kwargs
    given = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **model_kwargs)
    return model_kwargs if given.get("position_ids") is not None else {name: value for name, value in model_kwargs.items() if name != "position_ids"}


def uncounted_token(model: Any) -> int | None:
    """Return the token that the model counts no position for where it counts them by the tokens it is given (M2M-100, NLLB-MoE), None in others."""
    tables = (getattr(module, "padding_idx", None) for module in model.modules() if hasattr(module, "create_position_ids_from_input_ids"))
    return next((token for token in tables if token is not None), None)


def asks_ahead(model: Any) -> bool:
    """Whether what a step is given can only be had from the model, or from PEFT in its place."""
    return model.config.model_type in LOOKS_AGAIN or has_virtual_tokens(model)


def prepares_itself(model: Any) -> bool:
    """Whether a model has a way of its own to prepare what a forward pass is given."""
    return type(model).prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation


def has_virtual_tokens(model: Any) -> bool:
    """Whether PEFT, which then prepares the model's inputs in its place, puts trained vectors before the prompt."""
    wrapper = getattr(model.prepare_inputs_for_generation, "__self__", None)
    return bool(getattr(getattr(wrapper, "active_peft_config", None), "is_prompt_learning", False))


def placeholders(model: Any, model_kwargs: dict[str, Any]) -> frozenset[int]:
    """Return the tokens that stand for images, audio or video where the call brings some: the model fails on one too many."""
    if not hasattr(model.base_model, "get_placeholder_mask") or not any(model_kwargs.get(name) is not None for name in PREFILL):
        return frozenset()
    names = [f"{kind}_token_{what}" for kind in ("image", "video", "audio") for what in ("id", "index")]
    return frozenset(token for name in names if isinstance(token := getattr(model.config, name, None), int))


def of_tokens(mask: Tensor, cached: int, width: int) -> Tensor:
    """Return a mask that has one row for the next token, or one for each token so far (Mllama's in some releases), with rows for a step's."""
    before, own = mask[:, :-1], mask[:, -1:]
    count = cached + width - before.shape[1] if before.shape[1] else width
    return torch.cat([before, own.expand(-1, count, *own.shape[2:])], 1)


def inputs_ahead(model: Any, input_ids: Tensor, outputs: Any, model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return what plain ``generate()`` would give to the forward pass of the first token behind the prompt."""
    after: dict[str, Any] = model._update_model_kwargs_for_generation(outputs, dict(model_kwargs), is_encoder_decoder=False)
    longer = torch.cat([input_ids, input_ids.new_zeros(len(input_ids), 1)], 1)
    inputs: dict[str, Any] = model.prepare_inputs_for_generation(longer, next_sequence_length=1, **after)
    if inputs.get("input_ids") is None:
        raise HostError("PEFT puts its virtual tokens before each token, since it does not know this Transformers' caches; use another release of either")
    return inputs


def left_out(model: Any, input_ids: Tensor, outputs: Any, model_kwargs: dict[str, Any]) -> frozenset[str]:
    """Return what a decoder with a way of its own to prepare inputs is given for the prompt alone.

    Beside what all leave out, these are patches of Kosmos-2.5, and sounds of Inkling and of VibeVoice ASR: given them again, the first two fail,
    and the last puts them into the answer.
    """
    if model.config.is_encoder_decoder or not prepares_itself(model):
        return frozenset()
    given = inputs_ahead(model, input_ids, outputs, model_kwargs)
    return frozenset(name for name in model_kwargs if given.get(name) is None)


def answers_type(model: Any, input_ids: Tensor, model_kwargs: dict[str, Any]) -> Tensor | None:
    """Return the token type that the model gives what it generates, [count, 1]; None where it takes none behind the prompt."""
    if model_kwargs.get("token_type_ids") is None:
        return None
    types: Tensor | None = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **model_kwargs).get("token_type_ids")
    return None if types is None else types[:, -1:]
