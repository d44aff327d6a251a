"""Tiny random models of any architecture that Transformers has: its default configuration, shrunk by the names of its fields."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import BertConfig, GPT2Config, PreTrainedConfig, ViTConfig

VOCAB, HIDDEN, HEADS, HEAD = 128, 64, 4, 16
MOST_LAYERS = 4
# The first pattern that fits the whole name of a number above its bound says what it becomes.
RULES: list[tuple[str, int, int]] = [
    (r".*vocab_size.*|tgt_vocab.*|encoder_hash_byte_group_vocab", VOCAB, VOCAB),
    (r"d_inner|mamba_d_ssm|linear_value_dim", 0, 2 * HIDDEN),
    (r"(n_routed_|.*num_(local_)?)experts|num_centroids", 4, 4),
    (r"moe_k|moe_topk|.*top_k|topk|num_experts_per_tok(en)?", 2, 2),
    (r"n_group|topk_group|mamba_n_?groups|n_groups|zero_expert_num|hc_sinkhorn_iters", 1, 1),
    (r"index_n_heads", 0, 16),  # of fewer, all are zero for many tokens, and which of those are chosen is chance
    (r"(linear|gdn)_num_key_heads|index_topk_blocks", 2, 2),
    (r"mamba_n(um)?_heads|n_mamba_heads", 2, 8),
    (r"index_topk|index_block_size|index_kpool|.*chunk_(size|length)|mamba_chunk_size|block_size|.*d_state|.*state_size|canvas_length", 8, 8),
    (r".*(num|n|kv_n|kv|attention|_)_heads?|attention_heads|num_heads", HEADS, HEADS),
    (r".*(sliding|attention|local)_window.*|local_attention|window_size", 8, 8),
    (r".*head_?dim|.*d_head|d_kv|kv_channels|attention_head_size|dim_head|.*lora_rank|.*dt_rank|time_step_rank|ngram_vocab_size_base|hc_lowrank", HEAD, HEAD),
    (r"rotary_dim|ngram_.*", 8, 8),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|seq_len|max_.*_positions|model_max_length|num_position_embeddings", 512, 512),
    (r".*(hidden|intermediate|ffn|embedding|merged|latent|feed_forward)_?(size|dim).*", HIDDEN, HIDDEN),
    (r".*(d_model|n_embd|embed_dim|d_ff|dff|dim_ff|mlp_dim|emb_dim|lru_width)", HIDDEN, HIDDEN),
    (r".*(input|output|projection|proj|expert)_dim|dim|input_size|nemo_.*channels|conv_channels|.*_units|.*upsample.*channel", HIDDEN, HIDDEN),
    (r"post_conv_in_channels", 0, 256),
    (r".*conv_.*channels|base_channels|.*_out_channel", 32, 32),
    (r".*(num_hidden|encoder|decoder|num|adapter|postnet|prenet|add)_layers|n_layers?|(resampler_)?depth|layers|num_blocks", 2, 2),
    (r"num_mel_bins|n_mel_bins", 80, 80),
]  # fmt: skip
# What no rule gives, by model type: numbers that must fit each other, layers where the default has none of a kind, fields that are empty by default.
MAMBA = {"mamba_d_head": 16, "mamba_n_heads": 8, "mamba_num_heads": 8}
IMAGE = {"image_token_id": 120}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SPECIAL: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {16: 8}},
    "bamba": {**MAMBA, "layer_types": ["linear_attention", "full_attention"], "attn_layer_indices": [1]},
    "blip-2": {"image_token_index": 120, "num_query_tokens": 4},
    "chameleon_vqgan": {"num_embeddings": 8, "resolution": 64},
    "chameleon": {"vocabulary_map": {"<image>": 120} | {f"IMGIMG{chr(65 + i)}Z": 60 + i for i in range(8)}},
    "cohere_compass_text": {"rope_parameters": {kind: {**ROPE, "mrope_section": [2, 3, 3]} for kind in ("full_attention", "sliding_attention")}},
    "deepseek_ocr2_sam_vision_model": {"downsample_channels": [32, HIDDEN]},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "emu3": {"vocabulary_map": {"<image>": 120, "<|extra_200|>": 121} | {f"<|visual token {i:06d}|>": 60 + i for i in range(8)}},
    "emu3_vqgan": {"hidden_size": 128, "codebook_size": 8},
    "ernie4_5_vl_moe_text": {"rope_parameters": {**ROPE, "mrope_section": [3, 3, 2]}},
    "falcon_h1": MAMBA,
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma4_unified_vision": {"output_proj_dims": HIDDEN},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4, "num_kv_shared_layers": 2, "intermediate_size": [HIDDEN] * 4,
        "activation_sparsity_pattern": [0.95, 0.0] * 2, "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8,
    },
    "granite4_vision": {
        "deepstack_layer_map": [(-1, 0)], "spatial_target_layers": [0, 1, 0, 1], "downsample_rate": "1/2", "vision_feature_select_strategy": "full",
    },
    "granite_speech": {"window_size": 10},
    "granite_speech_plus": {"window_size": 10},
    "granitemoehybrid": {**MAMBA, "layer_types": ["linear_attention", "full_attention"]},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "instructblip": {"image_token_index": 120, "num_query_tokens": 4},
    "instructblipvideo": {"video_token_index": 120, "image_token_index": 120, "num_query_tokens": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "kosmos-2": {"latent_query_num": 4},
    "kosmos-2.5": {"latent_query_num": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama4_vision_model": {"intermediate_size": 4 * HIDDEN},
    "mamba2": {"num_heads": 8},
    "minicpmv4_6": IMAGE,
    "minicpmv4_6_vision": {"insert_layer_id": 0},
    "minicpmv4_7": IMAGE,
    "minicpmv4_7_vision": {"insert_layer_id": 0},
    "minimax_m3_vl": {"merged_hidden_size": 4 * HIDDEN},
    "mllama_vision_model": {"vision_output_dim": 2 * HIDDEN},
    "moonshine_streaming": {"num_key_value_heads": HEADS, "num_attention_heads": HEADS},
    "mistral4": {"head_dim": 2 * HEAD},
    "muse_glimmer": {"out_hidden_size": 4 * HIDDEN},
    "nemotron_h_omni": IMAGE,
    "phi4_multimodal_vision": {"crop_size": 56},
    "qwen4_exp_text": {
        "indexer_n_heads": 16, "indexer_kv_heads": 1, "indexer_head_dim": HEAD, "indexer_budget": 16, "indexer_compress_ratio": 4, "linear_num_value_heads": 4,
        "number_of_conv_states": 4, "eos_token_id": 2,
    },
    "qwen2_5_omni_thinker": {"vision_start_token_id": 3, "vision_end_token_id": 4},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 3, "vision_end_token_id": 4},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_shape": (16, 32), "axial_pos_embds_dim": (16, 48)},
    "step3p5": {"sliding_window": 8},
    "voxtral": {"audio_token_id": 120},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_heads": 2, "chunk_size": 16},
    "t5gemma2_encoder": {"mm_tokens_per_image": 4},
    "vibevoice_asr": {"acoustic_tokenizer_chunk_size": 32000},
    "vibevoice_acoustic_tokenizer_encoder": {"vae_std": 0.0},  # of what it draws anew each time
    "vipllava": {"vision_feature_layers": (-2, -1)},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 2 * HIDDEN, "attention_head_dim": 2 * HEAD, "n_mamba_heads": 2},
    "zamba2": {"attention_hidden_size": 2 * HIDDEN, "attention_head_dim": 2 * HEAD, "mamba_headdim": HEAD},
}  # fmt: skip
OF_THREE = ("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text", "glm4v_text", "glm4v_moe_text", "glm_ocr_text", "paddleocr_vl_text", "hunyuan_vl_text")
SPECIAL |= {kind: {"rope_parameters": {**ROPE, "mrope_section": [2, 3, 3], "partial_rotary_factor": 1.0}} for kind in OF_THREE}
OF_PARTS: dict[str, dict[str, Any]] = {kind: {"vision_config": {}} for kind in ("gemma4", "gemma4_unified")}
OF_PARTS["granite4_vision"] = {"text_config": {"model_type": "granite4_vision_text"}}
"""What a configuration is made with whose default lacks the part for images, or has one that does not fit."""
EMPTY = {"head_dim": HEAD, "num_key_value_heads": HEADS, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
"""What becomes of fields that are empty by default and must not be."""
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers", "depth")
KV_HEADS = re.compile(r".*(key_value_heads|kv_heads|kv_n_heads|num_query_groups)")
OF_LAYERS = re.compile(r".*(indexes|idxs|layer_ids|cross_attention_layers|layers_indices|target_layers)")
TOKEN = re.compile(r".*_token_(id|index)s?|.*_id|unk_index|mask_index|vocab_offset")


def shrunk(config: PreTrainedConfig, ids: dict[int, int] | None = None) -> PreTrainedConfig:
    """Shrink a configuration in place, the ones inside it too.

    :param ids: what special tokens have become so far, so that one that stands in several places stays one.
    """
    ids = {} if ids is None else ids
    held = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    for value in held.values():
        if isinstance(value, PreTrainedConfig):
            shrunk(value, ids)
    chosen, lists = _layers(held)
    for name, value in held.items():
        if name in lists:
            _set(config, name, [_shorter(name, value[i], held, ids) for i in chosen])
        elif name in LAYER_COUNTS and lists and value == len(held[lists[0]]):
            _set(config, name, len(chosen))
        elif OF_LAYERS.fullmatch(name) and isinstance(value, list | tuple):
            _set(config, name, type(value)(range(len(value)))[:2] if name.startswith("deepstack") else type(value)([1]))
        elif not isinstance(value, PreTrainedConfig):
            _set(config, name, _shorter(name, value, held, ids))
    _sizes_of_images(config)
    if {"qk_nope_head_dim", "qk_rope_head_dim", "qk_head_dim"} <= held.keys():
        object.__setattr__(config, "qk_head_dim", config.qk_nope_head_dim + config.qk_rope_head_dim)
    for name, value in SPECIAL.get(config.model_type, {}).items():
        object.__setattr__(config, name, value)
    return config


def _set(config: PreTrainedConfig, name: str, value: Any) -> None:
    if value != vars(config)[name]:
        object.__setattr__(config, name, value)


def _layers(held: dict[str, Any]) -> tuple[list[int], list[str]]:
    """Return which layers stay, one of each kind, and the lists that have an entry for each layer."""
    count = next((held[name] for name in LAYER_COUNTS if isinstance(held.get(name), int)), 0)
    lists = [name for name, value in held.items() if isinstance(value, list | tuple) and len(value) == count and not TOKEN.fullmatch(name)] if count > 4 else []
    firsts: dict[str, int] = {}
    for i in range(count if lists else 0):
        firsts.setdefault(str([held[name][i] for name in lists if name not in ("full_attn_idxs", "moe_layers")]), i)
    chosen = sorted(firsts.values())[:MOST_LAYERS]
    return chosen + [chosen[-1]] * (len(chosen) == 1) if chosen else [], lists


def _shorter(name: str, value: Any, held: dict[str, Any], ids: dict[int, int]) -> Any:
    """Return what becomes of one value."""
    if isinstance(value, dict):
        return _shorter_dict(name, value)
    if value is None:
        return EMPTY.get(name)
    if name == "tie_word_embeddings":
        return False
    if isinstance(value, bool) or not isinstance(value, int):
        return [_shorter(name, inner, held, ids) for inner in value] if TOKEN.fullmatch(name) and isinstance(value, list) else value
    if TOKEN.fullmatch(name):
        return value if value < 100 else ids.setdefault(value, VOCAB - 1 - len(ids))
    if KV_HEADS.fullmatch(name):
        heads = next((held[other] for other in ("num_attention_heads", "n_head", "num_heads", "n_heads") if isinstance(held.get(other), int)), 0)
        return min(value, HEADS if heads in (0, value) else 2)
    return next((becomes for pattern, bound, becomes in RULES if re.fullmatch(pattern, name) and value > bound), value)


def _shorter_dict(name: str, value: dict[Any, Any]) -> dict[Any, Any]:
    if "mrope_section" in value:
        return {**value, "mrope_section": [2, 3, 3], "partial_rotary_factor": 1.0}
    if "long_factor" in value:
        return {"rope_type": "default", "rope_theta": 10000.0, **{key: of for key, of in value.items() if key == "partial_rotary_factor"}}
    if name == "compress_rates":
        return {key: min(rate, 8) for key, rate in value.items()}
    return {key: _shorter_dict(name, inner) if isinstance(inner, dict) else inner for key, inner in value.items()}


def _sizes_of_images(config: PreTrainedConfig) -> None:
    """Make images of 4 by 4 patches."""
    held = vars(config)
    patch, size = held.get("patch_size"), held.get("image_size")
    if isinstance(patch, int) and isinstance(size, int):
        object.__setattr__(config, "image_size", 4 * patch)
    elif isinstance(patch, list | tuple) and isinstance(size, list | tuple):
        object.__setattr__(config, "image_size", type(size)(4 * one for one in patch))
    if isinstance(patch, int) and "window_size" in held:
        object.__setattr__(config, "window_size", 4 * patch)
    if "image_grid_pinpoints" in held:
        object.__setattr__(config, "image_grid_pinpoints", [[config.vision_config.image_size] * 2])


def _configuration(kind: type[Any]) -> PreTrainedConfig:
    made = {"EncoderDecoderModel": (BertConfig, BertConfig), "VisionEncoderDecoderModel": (ViTConfig, GPT2Config)}
    if kind.__name__ not in made:
        return shrunk(kind.config_class(**OF_PARTS.get(kind.config_class.model_type, {})))
    encoder, decoder = (shrunk(one()) for one in made[kind.__name__])
    both: PreTrainedConfig = kind.config_class.from_encoder_decoder_configs(encoder, decoder)
    both.decoder_start_token_id = 1
    return both


def tiny(kind: type[Any], scale: float = 0.3, seed: int = 3) -> Any:
    """Return a tiny model of this class whose greedy output wanders, with nothing that ends it."""
    torch.manual_seed(seed)
    config = _configuration(kind)
    for part in (config, config.get_text_config(decoder=True)):
        object.__setattr__(part, "pad_token_id", 0)
        if hasattr(part, "is_decoder") and not part.is_encoder_decoder:
            object.__setattr__(part, "is_decoder", True)
    model = kind(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.is_floating_point():
                weights.copy_(torch.randn(weights.shape) * scale if weights.ndim > 1 else weights + 0.1 * torch.randn(weights.shape))
    model.generation_config.update(
        eos_token_id=None, forced_eos_token_id=None, forced_bos_token_id=None, max_length=None, pad_token_id=0, num_beams=1, do_sample=False,
        suppress_tokens=None, begin_suppress_tokens=None, no_repeat_ngram_size=0, cache_implementation=None,
        decoder_start_token_id=model.generation_config.decoder_start_token_id or 1,
    )  # fmt: skip
    return model
