"""What only a GPU can show. Skipped without one; results of a run belong under ``integration/gpu/results/``.

    PYTHONPATH=. pytest integration/gpu -rs
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import accelplug
from accelplug.hooks import DeviceView, Owner, Technique
from accelplug.hosts.choices import choose_on_device
from accelplug.hosts.vllm.judged import Judged
from accelplug.spec.block import Block
from accelplug.spec.fly import Fly
from accelplug.spec.input_copy import InputCopy
from accelplug.spec.k_seq import KSeq
from accelplug.spec.prompt_lookup import PromptLookup
from accelplug.spec.suffix import Suffix
from accelplug.spec.traversal import Traversal
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


DRAFTERS = {"prompt_lookup": PromptLookup(), "suffix": Suffix(min_match=1), "input_copy": InputCopy(span_start=-900)}


def device_view(batch: int, width: int, length: int, count: int) -> DeviceView:
    tokens = torch.randint(0, 50, (batch, width), device="cuda", dtype=torch.int32)
    lengths = torch.full((batch,), length, device="cuda", dtype=torch.int32)
    return DeviceView(torch.arange(batch, device="cuda"), tokens, lengths, count, {}, lengths - 20)


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_device_drafter_runs_in_a_cuda_graph(name):
    """Captured once, replayed with other tokens: no synchronisation, no allocation that moves; what it keeps of a slot goes on in the graph."""
    drafter, view, slots = DRAFTERS[name], device_view(8, 4096, 3000, 6), np.arange(8)
    drafter.start(slots)
    drafter.propose_on_device(view)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = drafter.propose_on_device(view)
    found = 0
    for seed in range(3):
        torch.manual_seed(seed)
        view.tokens.copy_(torch.randint(0, 50, view.tokens.shape, device="cuda", dtype=torch.int32))
        replayed = []
        for ask in (graph.replay, lambda: drafter.propose_on_device(view)):
            view.lengths.fill_(3000)
            drafter.start(slots)
            for _ in range(3):  # steps of one request
                said = ask() or captured
                replayed.append((said.tokens.clone(), said.counts.clone()))
                view.lengths.add_(2)
        for (tokens, counts), (eager, of_eager) in zip(replayed[:3], replayed[3:], strict=True):
            assert torch.equal(counts, of_eager)
            assert torch.equal(tokens, eager)
            found += int(counts.sum())
    assert found


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_device_drafter_never_waits_for_the_device(name):
    drafter, view = DRAFTERS[name], device_view(4, 2048, 900, 5)
    drafter.propose_on_device(view)
    torch.cuda.set_sync_debug_mode("error")
    try:
        drafter.start(np.arange(4))
        drafter.propose_on_device(view)
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Numbers:
    """Random numbers that lie on the device already."""

    def __init__(self, count):
        self.numbers = torch.rand(count, device="cuda", dtype=torch.float64)

    def uniforms(self, batch):
        return self.numbers[: len(batch.tokens)]


@pytest.mark.parametrize("rule", [Block(), Traversal(), KSeq(), Fly(window=1)], ids=lambda rule: type(rule).__name__)
def test_a_rule_for_whole_drafts_never_waits_for_the_device(rule):
    torch.manual_seed(3)
    count, length = 8, 5
    scores = torch.randn(count * (length + 1), VOCAB, device="cuda") * 4
    ends = torch.arange(1, count + 1, device="cuda") * (length + 1)
    batch = Judged(scores, ends, torch.randint(0, VOCAB, (count * length,), device="cuda"), torch.arange(count, device="cuda") % 2 == 0)
    technique = Technique("verifier", "rule", Owner("rule", "rule", "1"), rule, type(rule), "rule")
    chance, lossless = Numbers(count * length), rule.traits.lossless is not None
    choose_on_device(technique, batch.chains(chance, length), batch.behind, lossless=lossless)
    torch.cuda.set_sync_debug_mode("error")
    try:
        kept, rest, _ = choose_on_device(technique, batch.chains(chance, length), batch.behind, lossless=lossless)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (kept.shape, rest.shape) == ((count,), (count, VOCAB))


@pytest.mark.parametrize("name", DRAFTERS)
def test_the_device_drafts_what_a_cpu_does(name):
    for seed in range(20):
        torch.manual_seed(seed)
        view = device_view(8, 300, 200 + seed, 7)
        view.tokens.remainder_(2 + 3 * (seed % 5))
        here = DeviceView(view.slots.cpu(), view.tokens.cpu(), view.lengths.cpu(), 7, {}, (view.lengths - 20).cpu())
        there, expected = type(DRAFTERS[name])().propose_on_device(view), type(DRAFTERS[name])().propose_on_device(here)
        assert there.counts.tolist() == expected.counts.tolist()
        for row, like, count in zip(there.tokens.tolist(), expected.tokens.tolist(), expected.counts.tolist(), strict=True):
            assert row[:count] == like[:count]


def test_what_drafts_were_drawn_from_is_laid_without_a_wait():
    pytest.importorskip("vllm")
    from accelplug.hosts.vllm.drawn import DraftLogits

    drawn, slots, places = torch.rand(3, VOCAB).softmax(-1), [5, 2, 7], {0: [0, 1], 2: [2]}
    tokens, temperature = torch.randint(0, VOCAB, (3, 2)), torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.7, 1.0, 1.5])

    def laid(device):
        logits, rows = DraftLogits(8, 2, VOCAB, temperature.to(device)), {place: drawn[which].to(device) for place, which in places.items()}
        of, chosen = torch.tensor(slots, device=device), tokens.to(device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            logits.lay(of, chosen, rows)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return logits.tensor.cpu()

    torch.testing.assert_close(laid("cuda"), laid("cpu"))
