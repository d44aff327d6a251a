"""Models with quantised weights: right where each token is read for itself, refused where all of a pass are looked at together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, TorchAoConfig

import accelplug
from accelplug import HostError
from accelplug.testing.models import looping_llama
from tests.hosts.hf.test_settings import GREEDY, PROMPT, equal_to_plain


@pytest.fixture
def loaded(tmp_path):
    """Load a small model quantised, by default one whose likeliest tokens stand clear of what rounding moves."""

    def load(config: Any, dtype: torch.dtype = torch.float32, model: Any = None) -> Any:
        (looping_llama(2) if model is None else model).save_pretrained(tmp_path)
        return LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map="cpu", dtype=dtype)

    return load


def of_torchao(name: str, granularity: str | None = None) -> Any:
    """Return Transformers' configuration of one of torchao's schemes."""
    schemes = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(getattr(schemes, name)(**({} if granularity is None else {"granularity": getattr(schemes, granularity)()})))


def bits_and_bytes(**options: Any) -> Any:
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(**options)


def test_weights_alone(loaded):
    model = loaded(of_torchao("Int8WeightOnlyConfig"))
    assert "Int8Tensor" in type(model.model.layers[0].self_attn.q_proj.weight).__name__
    equal_to_plain(model)


def test_weights_of_four_bits(loaded):
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}  # whole blocks
    wide = LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.2))
    config = bits_and_bytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = loaded(config, model=wide)
    assert type(model.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    equal_to_plain(model)


def test_eight_bits_without_outliers(loaded):
    equal_to_plain(loaded(bits_and_bytes(load_in_8bit=True, llm_int8_threshold=0.0), torch.bfloat16))


@pytest.mark.parametrize(
    ("config", "dtype", "sentence"),
    [
        (lambda: of_torchao("Int8DynamicActivationInt8WeightConfig", "PerTensor"), torch.float32, "torchao rounds all tokens that enter a Linear together"),
        (lambda: bits_and_bytes(load_in_8bit=True), torch.bfloat16, "bitsandbytes looks for a Linear8bitLt's outliers among all tokens"),
    ],
    ids=["one scale for all tokens", "outliers of all tokens"],
)
def test_what_looks_at_all_tokens_of_a_pass_is_refused(loaded, config, dtype, sentence):
    model = loaded(config(), dtype)
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        together = model(ids).logits[0, -1].float()
        before = model(ids[:, :-1], use_cache=True)
        alone = model(ids[:, -1:], past_key_values=before.past_key_values).logits[0, -1].float()
    assert (together - alone).abs().max() > 0.01, "which is why"
    with pytest.raises(HostError, match=sentence):
        accelplug.attach(model, drafter="prompt_lookup")
    accelplug.generate(model, PROMPT, drafter="prompt_lookup", allow_lossy=True, **GREEDY)
