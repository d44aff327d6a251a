"""Small random models of four architectures, and a tokenizer that makes readable text of their tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 96
COMMON = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 512, "eos_token_id": None, "bos_token_id": None, "pad_token_id": 0, "initializer_range": 0.15,
}  # fmt: skip
WINDOW = 16


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **COMMON))


def qwen3() -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=2, **COMMON))


def gemma3() -> Gemma3ForCausalLM:
    """Three sliding-window layers, then one with full attention."""
    types = ["sliding_attention"] * 3 + ["full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(num_hidden_layers=4, layer_types=types, sliding_window=WINDOW, **COMMON))


def mistral() -> MistralForCausalLM:
    """Every layer has a window."""
    return MistralForCausalLM(MistralConfig(num_hidden_layers=2, sliding_window=WINDOW, **COMMON))


MAKERS = {"llama": llama, "qwen3": qwen3, "gemma3": gemma3, "mistral": mistral}


def wandering(make: Any, seed: int = 2, scale: float = 0.3) -> Any:
    """Return a model whose greedy output wanders instead of repeating one token, with nothing that ends it."""
    torch.manual_seed(seed)
    model = make().eval()
    for weights in model.parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=scale)
    model.generation_config.update(eos_token_id=None, forced_eos_token_id=None, max_length=None)
    return model


@pytest.fixture(scope="session")
def random_models() -> dict[str, torch.nn.Module]:
    """Weights are larger than usual, so that greedy output wanders and its most likely tokens stand clear."""
    torch.set_num_threads(1)
    built = {}
    for name, make in MAKERS.items():
        torch.manual_seed(7)
        model = make().eval()
        model.generation_config.eos_token_id = None
        built[name] = model
    return built


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One printable character per token, so that a stop string can begin and end anywhere."""
    characters = [chr(33 + i) for i in range(VOCAB - 2)]
    vocab = {"<pad>": 0, "<unk>": 1} | {character: i + 2 for i, character in enumerate(characters)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>")
