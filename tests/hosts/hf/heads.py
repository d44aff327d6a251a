"""Tiny models with Transformers' own draft heads: MTP layers in a checkpoint, and a DFlash drafter, rigged to be right now and then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MuseGlimmerAssistantConfig,
    MuseGlimmerAssistantModel,
)
from transformers.modeling_layers import MtpModel

VOCAB, HIDDEN, LAYERS, BLOCK, REPEATED = 96, 48, 2, 5, 70
SHARED: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12,
    "max_position_embeddings": 512, "eos_token_id": None, "bos_token_id": None, "pad_token_id": 0, "initializer_range": 0.15,
}  # fmt: skip
EXPERTS = {
    "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1,
}  # fmt: skip
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
MAKERS = {
    "glm": lambda layers: Glm4MoeForCausalLM(Glm4MoeConfig(num_hidden_layers=layers, **SHARED, **EXPERTS)),
    "deepseek": lambda layers: DeepseekV3ForCausalLM(
        DeepseekV3Config(num_hidden_layers=layers, **{**SHARED, "head_dim": 8}, **EXPERTS, **LATENT)
    ),
}


def _with_little_inside(model: Any, share: float) -> Any:
    """Weaken what layers add to the embeddings, so that a token depends mostly on the one before it."""
    for name, weights in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj")):
            weights.data *= share
    return model.eval()


def with_mtp(folder: Path, depth: int, share: float = 0.2, *, rigged: bool = True, name: str = "glm") -> Any:
    """Return a model whose checkpoint in `folder` has `depth` MTP layers, as the published ones have: behind its own.

    :param rigged: the layers guess by the last token alone, as the model mostly does; else they are random.
    """
    torch.manual_seed(5)
    whole = MAKERS[name](LAYERS + depth)
    whole.get_input_embeddings().weight.data /= SHARED["initializer_range"]
    _with_little_inside(whole, share).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for layer in range(LAYERS, LAYERS + depth):
        for norm in ("enorm", "hnorm", "shared_head.norm"):
            weights[f"model.layers.{layer}.{norm}.weight"] = torch.ones(HIDDEN)
        mixed = torch.randn(HIDDEN, 2 * HIDDEN) * 0.15
        weights[f"model.layers.{layer}.eh_proj.weight"] = torch.cat([torch.eye(HIDDEN), mixed[:, HIDDEN:] * share], 1) if rigged else mixed
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": LAYERS, "num_nextn_predict_layers": depth}
    (folder / "config.json").write_text(json.dumps(config))
    model = type(whole).from_pretrained(folder)
    # Transformers knows them by their numbers in the published checkpoints.
    model._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{layer}\..*" for layer in range(LAYERS, LAYERS + depth)]
    model.generation_config.eos_token_id = None
    return model


def with_dflash(share: float = 1.0, context: float = 0.05, *, rigged: bool = True) -> tuple[LlamaForCausalLM, MuseGlimmerAssistantModel]:
    """Return a model and its DFlash drafter.

    :param rigged: the drafter guesses by the last token alone, for all places alike, and tokens from REPEATED on mostly repeat themselves; else it is random.
    """
    torch.manual_seed(6)
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, **SHARED))
    if rigged:
        _with_little_inside(model, share)
        embeddings = model.get_input_embeddings().weight.data
        model.lm_head.weight.data[REPEATED:] = embeddings[REPEATED:]
        embeddings /= SHARED["initializer_range"]
    model.generation_config.eos_token_id = None
    inside = {name: SHARED[name] for name in SHARED if name not in ("vocab_size", "initializer_range")}
    drafter = MuseGlimmerAssistantModel(
        MuseGlimmerAssistantConfig(
            num_hidden_layers=1, target_layer_ids=[0, 2], block_size=BLOCK, mask_token_id=VOCAB - 1, sliding_window=16, **inside, initializer_range=0.15
        )
    ).eval()
    if rigged:
        model.get_input_embeddings().weight.data[VOCAB - 1] = 0  # so masks have no say, and attend to everything alike
        layer = drafter.layers[0]
        for weights in (layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight):
            weights.data = torch.eye(HIDDEN)
        layer.mlp.down_proj.weight.data.zero_()
        drafter.encoder.output_norm_enc.weight.data.fill_(context)
    return model.eval(), drafter


def inkling(depth: int) -> tuple[Any, MtpModel]:
    """Return a model with layers that keep a running state, and its MTP layers, which are in no checkpoint."""
    from transformers.models.inkling.configuration_inkling import InklingTextConfig
    from transformers.models.inkling.modeling_inkling import InklingForCausalLM

    torch.manual_seed(2)
    narrow = {
        "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 12, "sliding_window_size": 12, "d_rel": 4, "rel_extent": 64,
        "local_layer_ids": [0, 1], "logits_mup_width_multiplier": 1.0, "num_mtp_layers": depth,
    }  # fmt: skip
    experts = {name: EXPERTS[name] for name in ("moe_intermediate_size", "n_routed_experts", "num_experts_per_tok", "n_shared_experts")}
    model = InklingForCausalLM(InklingTextConfig(num_hidden_layers=3, **SHARED, **experts, **narrow)).eval()
    model.generation_config.eos_token_id, model.config.name_or_path = None, "inkling"
    layers = MtpModel(model, depth).eval()
    for weights in layers.layers.parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=0.2)
    return model, layers
