"""What only a GPU can show. Skipped without one; results of a run belong under ``integration/gpu/results/``.

    PYTHONPATH=. pytest integration/gpu -rs
"""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import accelplug
from accelplug.hooks import DeviceView
from accelplug.spec.prompt_lookup import PromptLookup
from accelplug.testing.oracle import Oracle

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
VOCAB = 512


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        initializer_range=0.1, eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().to("cuda")


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_greedy_equals_plain(model, implementation, width):
    model.set_attn_implementation(implementation)
    prompt = torch.randint(1, VOCAB, (1, 40), device="cuda")
    for extra in ({}, {"repetition_penalty": 1.2}):
        plain = model.generate(prompt, max_new_tokens=120, do_sample=False, **extra)
        drafter = Oracle(plain.tolist(), [(3, 1), (0, 2), (5, 0)], VOCAB, width)
        with accelplug.attach(model, drafter=drafter) as session:
            fast = model.generate(prompt, max_new_tokens=120, do_sample=False, **extra)
        assert fast.tolist() == plain.tolist()
        assert session.stats.accepted > 40


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("implementation", ["offloaded", "offloaded_static"])
def test_offloaded_caches(model, implementation, count, width):
    """Layers that are on their way back while drafts are taken out of them."""
    model.set_attn_implementation("sdpa")
    prompt = torch.randint(1, VOCAB, (count, 40), device="cuda")
    arguments = {"max_new_tokens": 120, "do_sample": False, "cache_implementation": implementation, "disable_compile": True}
    plain = model.generate(prompt, **arguments)
    with accelplug.attach(model, drafter=Oracle(plain.tolist(), [(3, 1), (0, 2), (5, 0)], VOCAB, width)) as session:
        assert model.generate(prompt, **arguments).tolist() == plain.tolist()
    assert session.stats.accepted > 40


def test_sampling_takes_the_same_seed_to_the_same_tokens(model):
    prompt = torch.randint(1, VOCAB, (1, 20), device="cuda")
    torch.manual_seed(1)
    plain = model.generate(prompt, max_new_tokens=60, do_sample=True, top_k=20)
    torch.manual_seed(1)
    fast = accelplug.generate(model, prompt, drafter=Oracle(plain.tolist(), [(2, 1)], VOCAB), max_new_tokens=60, do_sample=True, top_k=20)
    assert fast.tolist() == plain.tolist()


def test_device_prompt_lookup_runs_in_a_cuda_graph():
    """Captured once, replayed with other tokens: no synchronisation, no allocation that moves."""
    drafter, batch, width, count = PromptLookup(num_tokens=6), 8, 4096, 6
    tokens = torch.randint(0, 50, (batch, width), device="cuda", dtype=torch.int32)
    slots = torch.arange(batch, device="cuda")
    lengths = torch.full((batch,), 3000, device="cuda", dtype=torch.int32)
    view = DeviceView(slots, tokens, lengths, count)
    drafter.propose_on_device(view)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = drafter.propose_on_device(view)
    for seed in range(3):
        torch.manual_seed(seed)
        tokens.copy_(torch.randint(0, 50, (batch, width), device="cuda", dtype=torch.int32))
        graph.replay()
        eager = drafter.propose_on_device(view)
        assert torch.equal(captured.tokens, eager.tokens)
        assert torch.equal(captured.counts, eager.counts)


def test_device_prompt_lookup_never_waits_for_the_device():
    tokens = torch.randint(0, 50, (4, 2048), device="cuda", dtype=torch.int32)
    view = DeviceView(torch.arange(4, device="cuda"), tokens, torch.full((4,), 900, device="cuda", dtype=torch.int32), 5)
    drafter = PromptLookup()
    drafter.propose_on_device(view)
    torch.cuda.set_sync_debug_mode("error")
    try:
        drafter.propose_on_device(view)
    finally:
        torch.cuda.set_sync_debug_mode("default")
