"""Models that do something of their own with windows, layers that stay empty, or directions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, DogeConfig, DogeForCausalLM, MllamaForCausalLM, MoshiForCausalLM
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from transformers.models.moshi.configuration_moshi import MoshiConfig

import accelplug
from accelplug import HostError
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.test_batches import padded, unpadded
from tests.hosts.hf.test_recurrent import PATTERNS, PROMPTS, SMALL, VOCAB


def moshi() -> Any:
    """Its window is the cache's alone: no mask has it."""
    sizes = {**SMALL, "ffn_dim": 32, "sliding_window": 8, "head_dim": 8, "audio_vocab_size": 16}
    return MoshiForCausalLM(MoshiConfig(num_hidden_layers=2, depth_decoder_config={"hidden_size": 32, "num_hidden_layers": 1}, **sizes))


def mllama() -> Any:
    """A layer that looks at images, and stays empty without one."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    sizes = {**SMALL, "bos_token_id": 1, "max_position_embeddings": 128, "rope_parameters": rope}
    return MllamaForCausalLM(MllamaTextConfig(num_hidden_layers=3, cross_attention_layers=[1], **sizes))


def made(make: Any) -> Any:
    torch.manual_seed(3)
    model = make().eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.normal_(0, 0.3)
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("prompts", ["one", "padded"])
@pytest.mark.parametrize("make", [moshi, mllama])
def test_output_is_plain_generates(make, prompts):
    model, inputs = made(make), padded(PROMPTS[prompts])
    arguments = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(**inputs, **arguments)
    answer = plain[0, inputs["input_ids"].shape[1] :].tolist()
    assert len(set(answer)) > 8
    for eos in (None, list(dict.fromkeys(answer))[6]):
        expected = model.generate(**inputs, eos_token_id=eos, **arguments).tolist()
        with accelplug.attach(model, drafter=Oracle(unpadded(plain.tolist(), inputs), PATTERNS["mixed"], VOCAB)) as session:
            assert model.generate(**inputs, eos_token_id=eos, **arguments).tolist() == expected
        assert 0 < session.stats.accepted < session.stats.drafted


def test_a_model_that_reads_in_both_directions_is_refused():
    config = BertConfig(num_hidden_layers=2, **{name: value for name, value in SMALL.items() if name != "num_key_value_heads"})
    with pytest.raises(HostError, match="BertLMHeadModel while it reads in both directions; load it with is_decoder=True"):
        accelplug.generate(BertLMHeadModel(config).eval(), torch.tensor([[5, 6]]), drafter="prompt_lookup", max_new_tokens=3)
    writes = copy.deepcopy(config)
    writes.is_decoder = True
    model = made(lambda: BertLMHeadModel(writes))
    plain = model.generate(torch.tensor(PROMPTS["one"]), max_new_tokens=30, do_sample=False)
    with accelplug.attach(model, drafter=Oracle(plain.tolist(), PATTERNS["mixed"], VOCAB)) as session:
        assert model.generate(torch.tensor(PROMPTS["one"]), max_new_tokens=30, do_sample=False).tolist() == plain.tolist()
    assert 0 < session.stats.accepted < session.stats.drafted


def doge() -> Any:
    """It attends to the 24 tokens of the highest scores, which are made of a token's values: in the first layer, of the token alone."""
    return DogeForCausalLM(DogeConfig(num_hidden_layers=2, keep_window_size=24, tie_word_embeddings=False, **SMALL))


def test_tokens_chosen_by_equal_scores_are_refused_once_some_are_left_out():
    model, prompt = made(doge), torch.tensor(PROMPTS["one"])
    arguments = {"max_new_tokens": 24 - prompt.shape[1], "do_sample": False, "pad_token_id": 0}
    plain = model.generate(prompt, **arguments).tolist()
    with accelplug.attach(model, drafter=Oracle(plain, PATTERNS["mixed"], VOCAB)) as session:
        assert model.generate(prompt, **arguments).tolist() == plain
        with pytest.raises(HostError, match=r"more than the 24 tokens that DogeForCausalLM attends to.* lower max_new_tokens"):
            model.generate(prompt, **{**arguments, "max_new_tokens": 25 - prompt.shape[1]})
    assert 0 < session.stats.accepted < session.stats.drafted
