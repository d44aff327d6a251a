"""A compiled forward pass over a static cache: drafts of any length share a few graphs, and no step waits for a new one."""

from __future__ import annotations

import copy
import json

import inductor
import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig, Lfm2Config, Lfm2ForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import accelplug
from accelplug.testing.oracle import Oracle

VOCAB = 96
PATTERN = [(3, 1), (0, 2), (5, 0), (0, 0), (2, 4), (6, 1)]  # steps of 5, 3, 6, 1, 7 and 8 slots


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        initializer_range=0.15, eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def compiling() -> CompileConfig:
    """On this device too, and without a backend: graphs are what counts here, not the code made of them."""
    config = CompileConfig(fullgraph=True, dynamic=False, backend="eager", mode=None)
    config._compile_all_devices = True
    torch._dynamo.reset()
    counters.clear()
    return config


def test_by_default_all_widths_behind_the_first_share_one_graph(model, compiling):
    """Without ``dynamic=False`` torch makes the number of tokens a variable as soon as it changes, and no later step waits."""
    compiling.dynamic = None
    prompt = torch.tensor([[5, 6, 7, 8, 9]])
    known = model.generate(prompt, max_new_tokens=60, do_sample=False).tolist()
    arguments = {"max_new_tokens": 60, "do_sample": False, "cache_implementation": "static", "compile_config": compiling}
    assert model.generate(prompt, **arguments).tolist() == known
    plain, graphs = counters["stats"]["unique_graphs"], []
    for pattern in (PATTERN, [(0, 0)], [(1, 1)], [(11, 4), (0, 6)]):
        with accelplug.attach(model, drafter=Oracle(known, pattern, VOCAB, 1)) as session:
            assert model.generate(prompt, **arguments).tolist() == known
        graphs.append(counters["stats"]["unique_graphs"] - plain)
    assert session.stats.accepted > 20
    assert plain == 1
    assert graphs == [graphs[0]] * 4
    assert graphs[0] <= 2
    assert not counters["graph_break"]


@pytest.mark.parametrize("width", [1, 2])
def test_steps_share_a_graph_per_power_of_two(model, compiling, width):
    prompt = torch.tensor([[5, 6, 7, 8, 9]])
    known = model.generate(prompt, max_new_tokens=60, do_sample=False).tolist()
    arguments = {"max_new_tokens": 60, "do_sample": False, "cache_implementation": "static", "compile_config": compiling}
    with accelplug.attach(model, drafter=Oracle(known, PATTERN, VOCAB, width)) as session:
        assert model.generate(prompt, **arguments).tolist() == known
        graphs = counters["stats"]["unique_graphs"]
        assert model.generate(prompt, **arguments).tolist() == known
    assert session.stats.accepted > 20
    assert 2 <= graphs <= 3 + width  # 1, 4 and 8 slots, 16 for trees, and 2 at the end of the cache
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


def rolling():
    """A model with nothing but windows."""
    torch.manual_seed(7)
    config = MistralConfig(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        sliding_window=16, initializer_range=0.15, eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return MistralForCausalLM(config).eval()


def test_windows_that_roll_take_a_few_graphs_more(compiling):
    """One for each of: a window with room, one that fills inside a step, a full one."""
    model, compiling.dynamic = rolling(), None
    prompt = torch.tensor([[5, 6, 7, 8, 9]])
    known = model.generate(prompt, max_new_tokens=60, do_sample=False).tolist()
    arguments = {"max_new_tokens": 60, "do_sample": False, "cache_implementation": "static", "compile_config": compiling}
    for pattern in (PATTERN, [(0, 0)], [(11, 4), (0, 6)]):
        with accelplug.attach(model, drafter=Oracle(known, pattern, VOCAB, 2)) as session:
            assert model.generate(prompt, **arguments).tolist() == known
    graphs = counters["stats"]["unique_graphs"]
    assert 3 <= graphs <= 7
    with accelplug.attach(model, drafter=Oracle(known, PATTERN, VOCAB, 2)) as session:
        assert model.generate(prompt, **arguments).tolist() == known
    assert session.stats.accepted > 20
    assert session.stats.accepted < session.stats.drafted
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


@torch._dynamo.config.patch(recompile_limit=8)  # torch's default; other packages of the process may have set another
def test_more_graphs_than_torch_allows_by_default_are_compiled_too(compiling):
    """Windows take graphs of their own for one row and for several, beside plain generation's: past torch's limit it would run steps as they are.

    Under ``fullgraph``, as here, it raises in place of that.
    """
    model, compiling.dynamic = rolling(), None
    limit = torch._dynamo.config.recompile_limit
    arguments = {"max_new_tokens": 30, "do_sample": False}
    compiled = {**arguments, "cache_implementation": "static", "compile_config": compiling}
    model.generate(torch.tensor([[5, 6, 7, 8, 9]]), **compiled)
    for rows in (1, 2):
        prompt = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]][:rows])
        known = model.generate(prompt, **arguments).tolist()
        with accelplug.attach(model, drafter=Oracle(known, PATTERN, VOCAB)) as session:
            assert model.generate(prompt, **compiled).tolist() == known
        assert 0 < session.stats.accepted < session.stats.drafted
    assert counters["stats"]["unique_graphs"] > limit == 8
    assert torch._dynamo.config.recompile_limit == limit


def test_recurrent_layers_read_steps_of_every_width(compiling):
    """Without padding, which would be read into their states: with ``dynamic=False`` each width would be a graph, and none is made."""
    torch.manual_seed(7)
    config = Lfm2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        layer_types=["conv", "full_attention"], initializer_range=0.3, eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = Lfm2ForCausalLM(config).eval()
    prompts = {"input_ids": torch.tensor([[5, 6, 7, 8, 9], [0, 0, 7, 8, 3]]), "attention_mask": torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])}
    graphs = {}
    for dynamic in (False, None):
        chosen = copy.copy(compiling)  # Transformers compiles anew for another one
        chosen.dynamic = dynamic
        arguments = {"max_new_tokens": 40, "do_sample": False, "cache_implementation": "static", "compile_config": chosen}
        known = model.generate(**prompts, **arguments).tolist()
        plain = counters["stats"]["unique_graphs"]
        shown = [known[0], known[1][2:]]  # drafters see no padding
        for pattern in (PATTERN, [(0, 0)], PATTERN):
            with accelplug.attach(model, drafter=Oracle(shown, pattern, VOCAB)) as session:
                assert model.generate(**prompts, **arguments).tolist() == known
        assert 0 < session.stats.accepted < session.stats.drafted
        graphs[dynamic] = counters["stats"]["unique_graphs"] - plain
    assert graphs[False] == 0
    assert 1 <= graphs[None] <= 5
    assert not counters["graph_break"]


@pytest.mark.parametrize("name", ["windows: with room, filling, full", "Mamba 1 beside attention"])
def test_what_is_run_by_hand_on_inductor_runs(name):
    """On the backend that compiles nothing, which takes seconds."""
    found = inductor.follow(name, new_tokens=60, backend="eager")
    assert inductor.is_right(name, found), found


def test_what_was_recorded_of_inductor_is_complete_and_right():
    recorded = json.loads(inductor.RESULT.read_text())["cases"]
    assert set(recorded) == set(inductor.CASES)
    assert [name for name, found in recorded.items() if not inductor.is_right(name, found)] == []


@pytest.mark.parametrize(
    ("way", "wrong"),
    [("suffix, first", {"as_plain": False}), ("suffix, second", {"uncompiled_steps": 3}), ("half right, second", {"graphs": 1, "accepted": 0})],
)
def test_a_wrong_run_on_inductor_is_noticed(way, wrong):
    name = "full attention"
    found = json.loads(inductor.RESULT.read_text())["cases"][name]
    found["ways"][way] |= wrong
    assert not inductor.is_right(name, found)
