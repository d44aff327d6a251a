"""Random tiny models of several architectures, with a tokenizer trained on the spot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

WINDOW = 32
THOUGHT = "</think>"
"""With what the model ends its reasoning, where a test takes its text for such."""
WORDS = [f"{subject} {verb} {thing}" for subject in ("one", "two", "red") for verb in ("sees", "eats") for thing in ("fish", "tree", "boat")]


def make(path: Path, vocab_size: int = 512, architecture: str = "llama") -> Path:
    """Write model and tokenizer; the same every time. A narrow range of weights makes greedy text repeat itself.

    :param architecture: ``"llama"``, ``"qwen2"``, ``"qwen3"``, or ``"gemma3"`` with a window in three layers of four.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    whole.add_tokens(["<think>", THOUGHT], special_tokens=True)
    whole.save_pretrained(path)
    torch.manual_seed(0)
    model = build(architecture, vocab_size).eval()
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=1)
    model.save_pretrained(path)
    return path


def continue_greedily(path: Path, prompts: Sequence[list[int]], length: int) -> list[list[int]]:
    """Return what Transformers generates, whatever ends a text, until prompt and text have a length."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return [model.generate(torch.tensor([prompt]), do_sample=False, max_length=length, pad_token_id=0)[0, len(prompt) :].tolist() for prompt in prompts]


def end_with(path: Path, eos: int) -> None:
    """Let another token end the model's text."""
    file = path / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": eos}))


def draft_model(path: Path, folder: Path) -> dict[str, Any]:
    """Write a model that mostly drafts what this one likes; return a speculative configuration with it."""
    shutil.copytree(path, folder)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.02 * (weight.dim() > 1))
    model.save_pretrained(folder)
    return {"method": "draft_model", "model": str(folder), "num_speculative_tokens": 3}


def eagle3(path: Path, folder: Path) -> dict[str, Any]:
    """Write a random EAGLE-3 head on the model's last hidden state; return a speculative configuration with it.

    It draws its tokens out of the model's own matrix, and is right where a token comes twice.
    """
    config, weights = json.loads((path / "config.json").read_text()), load_file(path / "model.safetensors")
    size, inner, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    aux = {"eagle_aux_hidden_state_layer_ids": [0, 1, 2], "use_aux_hidden_state": True}
    kind = {"architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1, "draft_vocab_size": config["vocab_size"], "eagle_config": aux}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, **kind}))
    torch.manual_seed(3)
    heads, groups = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    shapes = {"q_proj": (heads, 2 * size), "k_proj": (groups, 2 * size), "v_proj": (groups, 2 * size), "o_proj": (size, heads)}
    layer = {f"self_attn.{name}": 0.05 * torch.randn(shape) for name, shape in shapes.items()}
    layer |= {f"mlp.{name}": 0.05 * torch.randn(inner, size) for name in ("gate_proj", "up_proj")} | {"mlp.down_proj": 0.05 * torch.randn(size, inner)}
    layer |= {name: torch.ones(size) for name in ("input_layernorm", "post_attention_layernorm", "hidden_norm")}
    head = {"fc": torch.cat([torch.zeros(size, 2 * size), torch.eye(size)], 1), "lm_head": weights["lm_head.weight"], "norm": weights["model.norm.weight"]}
    head |= {f"midlayer.{name}": weight for name, weight in layer.items()}
    save_file({f"{name}.weight": weight.contiguous() for name, weight in head.items()}, folder / "model.safetensors")
    return {"method": "eagle3", "model": str(folder), "num_speculative_tokens": 3}


def mtp(path: Path) -> dict[str, Any]:
    """Add a random layer that predicts a further token to a qwen2, which makes a MiMo of it; return a speculative configuration with it.

    It begins with the model's last hidden state alone, and is right where a token comes twice.
    """
    config, weights = json.loads((path / "config.json").read_text()), load_file(path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({**config, "architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1}))
    torch.manual_seed(6)
    size = config["hidden_size"]
    first = "model.layers.0."
    layer = {name.removeprefix(first): 0.05 * torch.randn_like(weight) for name, weight in weights.items() if name.startswith(first)}
    layer |= {name: torch.ones(size) for name in layer if name.endswith("layernorm.weight")}
    layer |= {f"{name}_layernorm.weight": torch.ones(size) for name in ("token", "hidden")}
    layer["final_layernorm.weight"] = weights["model.norm.weight"].clone()
    layer["input_proj.weight"] = torch.cat([torch.eye(size), torch.zeros(size, size)], 1)
    save_file({**weights, **{f"model.mtp_layers.0.{name}": weight for name, weight in layer.items()}}, path / "model.safetensors", {"format": "pt"})
    return {"method": "mtp", "num_speculative_tokens": 2}


def adapter(path: Path, folder: Path, prompts: Sequence[list[int]], length: int) -> list[list[int]]:
    """Write a random LoRA adapter; return what Transformers generates with it, as `continue_greedily` does."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(4)
    layers = ["q_proj", "v_proj", "o_proj", "down_proj"]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=layers, init_lora_weights=False))
    adapted.save_pretrained(folder)
    adapted.merge_and_unload().save_pretrained(folder / "merged")
    shutil.copy(path / "generation_config.json", folder / "merged")
    return continue_greedily(folder / "merged", prompts, length)


def build(architecture: str, vocab_size: int) -> PreTrainedModel:
    """Return a random model."""
    common = {
        "vocab_size": vocab_size, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
        "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.3, "tie_word_embeddings": False,
    }  # fmt: skip
    if architecture == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=2, **common))
    if architecture == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(num_hidden_layers=2, **common))
    if architecture == "gemma3":
        types = ["sliding_attention"] * 3 + ["full_attention"]
        config = Gemma3TextConfig(num_hidden_layers=4, layer_types=types, sliding_window=WINDOW, **{**common, "tie_word_embeddings": True})
        return Gemma3ForCausalLM(config)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **common))
