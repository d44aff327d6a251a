"""Random tiny models of several architectures, with a tokenizer trained on the spot."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

WINDOW = 32
WORDS = [f"{subject} {verb} {thing}" for subject in ("one", "two", "red") for verb in ("sees", "eats") for thing in ("fish", "tree", "boat")]


def make(path: Path, vocab_size: int = 512, architecture: str = "llama") -> Path:
    """Write model and tokenizer; the same every time. A narrow range of weights makes greedy text repeat itself.

    :param architecture: ``"llama"``, ``"qwen3"``, or ``"gemma3"`` with a window in three layers of four.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(path)
    torch.manual_seed(0)
    model = build(architecture, vocab_size).eval()
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=1)
    model.save_pretrained(path)
    return path


def build(architecture: str, vocab_size: int) -> PreTrainedModel:
    """Return a random model."""
    common = {
        "vocab_size": vocab_size, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
        "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.3, "tie_word_embeddings": False,
    }  # fmt: skip
    if architecture == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=2, **common))
    if architecture == "gemma3":
        types = ["sliding_attention"] * 3 + ["full_attention"]
        config = Gemma3TextConfig(num_hidden_layers=4, layer_types=types, sliding_window=WINDOW, **{**common, "tie_word_embeddings": True})
        return Gemma3ForCausalLM(config)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **common))
