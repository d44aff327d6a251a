"""Every name of Transformers that this host relies on and that Transformers may move, in one place."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from inspect import signature
from typing import Any, Final

import transformers

from accelplug.hooks.capabilities import Host
from accelplug.hosts.seams import Engine, Seam

HOST = Host(
    "transformers",
    frozenset({
        "draft.rows", "mask.tree", "verify.rule", "verify.path", "sampling", "logits.full", "logits.topk", "hidden.layer", "embed", "model.second",
        "mask.grammar",
    }),
)

GENERATE = "transformers.generation.utils:GenerationMixin"
CONTINUOUS = "transformers.generation.continuous_batching"

ENGINE = Engine(
    name="transformers",
    distributions=("transformers",),
    tested_from="5.16",
    tested_below="5.25",
    seams=(
        Seam(f"{GENERATE}.generate", ("custom_generate", "streamer", "stopping_criteria"), "running our decoding loop inside generate()"),
        Seam(
            f"{GENERATE}._sample", ("input_ids", "logits_processor", "stopping_criteria", "generation_config"), "the arguments of our loop"
        ),
        Seam(f"{GENERATE}._prefill", ("input_ids", "generation_config", "model_kwargs", "is_first_iteration"), "processing the prompt"),
        Seam(
            f"{GENERATE}._valid_auto_compile_criteria",
            ("model_kwargs", "generation_config"),
            "compiling the forward pass over static caches",
        ),
        Seam(
            "transformers.modeling_utils:PreTrainedModel.get_compiled_call",
            ("compile_config",),
            "compiling the forward pass over static caches",
        ),
        Seam(
            f"{GENERATE}._get_candidate_generator",
            ("generation_config", "input_ids", "inputs_tensor", "logits_processor", "model_kwargs"),
            "the drafter transformers_candidates",
        ),
        Seam("transformers.generation.utils:MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL", (), "images, audio and video in prompts"),
        Seam(f"{GENERATE}._update_model_kwargs_for_generation", ("model_kwargs",), "telling which models look at images with each token"),
        Seam("transformers.generation.configuration_utils:GenerationConfig.get_generation_mode", (), "refusing beams"),
        Seam("transformers.generation.utils:is_fsdp_managed_module", (), "refusing weights that are sharded over processes"),
        Seam("transformers.generation.utils:is_deepspeed_zero3_enabled", (), "refusing weights that are sharded over processes"),
        Seam("transformers.generation.stopping_criteria:StopStringCriteria", ("tokenizer", "stop_strings"), "stop strings"),
        Seam("transformers.generation.stopping_criteria:EosTokenCriteria", ("eos_token_id",), "stopping at EOS inside a draft"),
        Seam("transformers.generation.stopping_criteria:MaxLengthCriteria", ("max_length",), "stopping at the length limit inside a draft"),
        Seam("transformers.cache_utils:DynamicLayer.crop", (), "taking rejected drafts out of the cache"),
        Seam("transformers.cache_utils:LinearAttentionCacheLayerMixin", (), "recurrent layers"),
        Seam("transformers.cache_utils:DynamicSlidingWindowLayer.activate_past_recording", (), "sliding-window layers"),
        Seam("transformers.cache_utils:Cache.get_mask_sizes", ("query_length", "layer_idx"), "tree masks"),
        Seam("transformers.masking_utils:create_causal_mask", ("attention_mask",), "four-dimensional masks"),
        Seam(
            "transformers.masking_utils:create_masks_for_generate",
            ("config", "inputs_embeds", "attention_mask"),
            "compiling the forward pass beside recurrent layers",
        ),
        Seam(
            f"{CONTINUOUS}.continuous_api:ContinuousMixin.init_continuous_batching",
            ("generation_config", "continuous_batching_config"),
            "grammars in continuous batching",
        ),
        Seam(
            f"{CONTINUOUS}.continuous_api:ContinuousBatchingManager.add_request",
            ("input_ids", "request_id", "max_new_tokens", "streaming", "record_timestamps", "eos_token_id"),
            "grammars in continuous batching",
        ),
        Seam(f"{CONTINUOUS}.continuous_api:OutputRouter.deliver_batch", ("outputs",), "the final check in continuous batching"),
        Seam(
            f"{CONTINUOUS}.cb_logits_processors:ContinuousBatchingLogitsProcessor.prepare_tensor_args",
            ("requests_with_new_token",),
            "grammars in continuous batching",
        ),
        Seam(
            f"{CONTINUOUS}.requests:RequestState",
            ("request_id", "initial_tokens", "generated_tokens", "logit_processor_kwargs", "_true_initial_tokens"),
            "grammars in continuous batching",
        ),
        Seam(f"{GENERATE}._get_logits_processor", ("generation_config", "logits_processor"), "grammars in continuous batching"),
    ),
)


ADDS_MASKS: Final = transformers.__version__.startswith("5.16.")
"""Whether models with an index add masks of any kind to its scores, where a mask of True and False is none."""


@functools.cache
def counts_embeddings() -> bool:
    """Whether ``output_hidden_states`` counts the embeddings before the layers that it names, as from 5.23 on; 5.16 returns all, whatever it names."""
    from transformers.utils import output_capturing

    return hasattr(output_capturing, "resolve_hidden_states_indices")


def cache_argument(model: Any) -> str:
    """Return what this model's ``forward()`` calls what it remembers: before 5.24 Mamba and xLSTM have a name of their own, RWKV has still."""
    takes = signature(model.forward).parameters
    return next((name for name in (cache_name(), "cache_params", "state") if name in takes), cache_name())


def takes_cache(model: Any) -> bool:
    """Whether this model's ``forward()`` takes what it is to remember; one that does not name its arguments is taken to."""
    takes = signature(model.forward).parameters
    return bool({cache_name(), "cache_params", "state"} & set(takes)) or not {"input_ids", "decoder_input_ids"} & set(takes)


@functools.cache
def cache_name() -> str:
    """Return what ``generate()`` and the models call the cache: ``"cache"`` from 5.24 on, ``"past_key_values"`` before."""
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    return "cache" if "cache" in GenerateDecoderOnlyOutput.__dataclass_fields__ else "past_key_values"


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """Return the cache that a caller of ``generate()`` passes, by whichever name, or None."""
    return next((arguments[name] for name in ("cache", "past_key_values", "cache_params", "state") if arguments.get(name) is not None), None)
