"""Rotary positions that change with the length of what a forward pass reads: exact on either side of it, and refused across it."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

import accelplug
from accelplug import HostError
from accelplug.testing import Oracle
from tests.hosts.hf.conftest import COMMON, VOCAB

LENGTH = 24
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [1.0 + 0.7 * i for i in range(8)], "original_max_position_embeddings": LENGTH}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, **FACTORS}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}


def llama(parameters, positions):
    return LlamaForCausalLM(LlamaConfig(**COMMON | {"num_hidden_layers": 2, "rope_parameters": parameters, "max_position_embeddings": positions}))


def phi3():
    """It drops its cache where the positions change."""
    own = {name: value for name, value in COMMON.items() if name != "head_dim"} | {"num_hidden_layers": 2, "hidden_size": 64, "pad_token_id": 0}
    own |= {"rope_parameters": LONG, "max_position_embeddings": 96, "original_max_position_embeddings": LENGTH}
    return Phi3ForCausalLM(Phi3Config(**own))


MODELS = {"dynamic": lambda: llama(DYNAMIC, LENGTH), "longrope": lambda: llama(LONG, 96), "phi3": phi3}


def decoded(make, prompt, new_tokens, **others):
    """Decode plainly and with drafts; return both."""
    torch.manual_seed(3)
    model = make().eval()
    for weights in model.parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=0.3)
    model.generation_config.eos_token_id = None
    arguments = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0, **others}
    ids = torch.arange(5, 5 + prompt)[None]
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), **arguments)
    with accelplug.attach(model, drafter=Oracle(plain.tolist(), [(3, 1), (0, 2), (5, 0)], VOCAB)) as session:
        found = model.generate(ids, attention_mask=torch.ones_like(ids), **arguments)
    assert 0 < session.stats.accepted < session.stats.drafted
    return plain.tolist(), found.tolist()


@pytest.mark.parametrize("kind", MODELS)
def test_a_call_that_reads_as_far_as_the_positions_stay_is_exact(kind):
    plain, found = decoded(MODELS[kind], 5, LENGTH - 4)
    assert found == plain


@pytest.mark.parametrize(("kind", "use_cache"), [("longrope", True), ("longrope", False), ("phi3", True), ("phi3", False)])
def test_a_call_that_begins_behind_the_change_is_exact(kind, use_cache):
    plain, found = decoded(MODELS[kind], LENGTH + 1, 20, use_cache=use_cache)
    assert found == plain


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(("kind", "prompt"), [("dynamic", 5), ("dynamic", LENGTH + 1), ("longrope", 5), ("phi3", LENGTH)])
def test_a_call_on_whose_way_they_change_is_refused(kind, prompt, use_cache):
    with pytest.raises(HostError, match=r"changes its rotary positions .* behind 24 tokens, .*; ask for at most 24 tokens"):
        decoded(MODELS[kind], prompt, 30, use_cache=use_cache)
