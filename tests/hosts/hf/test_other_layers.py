"""Cache layers of other kinds: with an index, compressed, windows beside a running state, of the caller's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    DeepseekV4Config,
    DeepseekV4ForCausalLM,
    DeepseekV32Config,
    DeepseekV32ForCausalLM,
    DynamicCache,
    ZayaConfig,
    ZayaForCausalLM,
)
from transformers.cache_utils import DynamicLayer
from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLTextConfig
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLForCausalLM

import accelplug
from accelplug import HostError
from accelplug.hosts.hf.compat import ADDS_MASKS, cache_name
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import llama
from tests.hosts.hf.test_batches import padded, unpadded
from tests.hosts.hf.test_recurrent import EVENTS, HARD, PATTERNS, PROMPTS, SMALL, VOCAB, Watched, same_cache


def deepseek_v32() -> Any:
    """Attention to the few tokens that an index chooses; of many heads, so that no two tokens score alike."""
    ranks = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    index = {"index_topk": 6, "index_n_heads": 24, "index_head_dim": 16, "num_key_value_heads": 4}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
    return DeepseekV32ForCausalLM(DeepseekV32Config(num_hidden_layers=2, **{**SMALL, **ranks, **index, **experts}))


def minimax_m3() -> Any:
    """An index over blocks of tokens, in a layer of the model's own kind."""
    index = {"index_block_size": 4, "index_topk_blocks": 2, "index_n_heads": 2, "index_head_dim": 8, "rotary_dim": 8}
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2, "dense_intermediate_size": 32, "shared_intermediate_size": 16, "head_dim": 8}
    types = ["full_attention", "minimax_m3_sparse"]
    return MiniMaxM3VLForCausalLM(MiniMaxM3VLTextConfig(num_hidden_layers=2, layer_types=types, **index, **sizes, **SMALL))


def deepseek_v4() -> Any:
    """A window, behind which several tokens become one entry."""
    types = ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"]
    rates = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 6}
    sizes = {"head_dim": 16, "q_lora_rank": 8, "o_lora_rank": 8, "o_groups": 2, "num_key_value_heads": 1, "index_head_dim": 8, "index_n_heads": 16}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    few = {"num_hidden_layers": 3, "layer_types": types, "compress_rates": rates, "sliding_window": 8, "index_topk": 2}
    return DeepseekV4ForCausalLM(DeepseekV4Config(**{**SMALL, **sizes, **experts, **few}))


def zaya() -> Any:
    """Short convolutions and a window in one layer."""
    types = ["hybrid_sliding", "hybrid"]
    few = {"num_hidden_layers": 2, "layer_types": types, "sliding_window": 8, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16}
    return ZayaForCausalLM(ZayaConfig(router_hidden_size=16, **few, **SMALL))


MAKERS = {make.__name__: make for make in (deepseek_v32, minimax_m3, deepseek_v4, zaya)}
IN_BLOCKS = ("deepseek_v4", "minimax_m3")  # plain generate() takes padding for text there


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    torch.set_num_threads(1)
    built = {}
    for name, make in MAKERS.items():
        torch.manual_seed(3)
        model = make().eval()
        with torch.no_grad():
            for weights in model.parameters():
                if weights.ndim > 1:  # large enough for the output to wander
                    weights.normal_(0, 0.3)
        model.generation_config.eos_token_id = None
        if ADDS_MASKS and name == "deepseek_v32":
            model.set_attn_implementation("eager")
        built[name] = model
    return built


@pytest.mark.parametrize(("prompts", "pattern"), [("one", "always something wrong"), ("one", "mixed"), ("padded", "mixed")])
@pytest.mark.parametrize("name", MAKERS)
def test_output_and_cache_are_plain_generates(models, name, prompts, pattern):
    model, prompts, pattern = models[name], PROMPTS["of one length" if prompts == "padded" and name in IN_BLOCKS else prompts], PATTERNS[pattern]
    inputs = padded(prompts)
    arguments = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True, "output_scores": True}
    known = model.generate(**inputs, **arguments).sequences.tolist()
    answer = known[0][inputs["input_ids"].shape[1] :]
    eos = None
    for _ in range(2):  # without an EOS, then with one that is drafted
        plain = model.generate(**inputs, eos_token_id=eos, **arguments)
        drafter = Watched(unpadded(known, inputs), pattern, VOCAB, name=name)
        with accelplug.attach(model, drafter=drafter) as session:
            fast = model.generate(**inputs, eos_token_id=eos, **arguments)
        assert fast.sequences.tolist() == plain.sequences.tolist()
        for ours, theirs in zip(fast.scores, plain.scores, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
        same_cache(fast[cache_name()], plain[cache_name()])
        same_attributes(fast[cache_name()], plain[cache_name()])
        assert session.stats.accepted < session.stats.drafted
        EVENTS[name]["EOS inside a draft"] += eos is not None and len(prompts) == 1
        EVENTS[name]["padded prompts"] += len({*map(len, prompts)}) > 1
        if len(prompts) > 1:
            break
        start = inputs["input_ids"].shape[1]
        right = [known[0][position] for position in sorted(drafter.right) if answer.index(known[0][position]) == position - start]
        eos = right[-1]


def same_attributes(ours: Any, theirs: Any) -> None:
    """What else the layers hold: indices, entries of several tokens, how many those are."""
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        for name, held in vars(other).items():
            kept = vars(mine)[name]
            if isinstance(held, torch.Tensor) and held.is_floating_point():
                torch.testing.assert_close(kept[:1], held[:1], atol=1e-3, rtol=1e-2)
            elif isinstance(held, dict):
                for part, inner in held.items():
                    if isinstance(inner, torch.Tensor):
                        torch.testing.assert_close(kept[part][:1], inner[:1], atol=1e-3, rtol=1e-2)
                    else:
                        assert kept[part] == inner
            elif isinstance(held, int):
                assert (name, kept) == (name, held)


@pytest.mark.parametrize("name", MAKERS)
def test_every_hard_event_happened(name):
    # What is not read again leaves no rest to read.
    missing = {event for event in HARD if not EVENTS[name][event]}
    assert missing <= ({"padded prompts"} if name in IN_BLOCKS else set()) | ({"a rest"} if name in ("deepseek_v32", "minimax_m3") else set())


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_padding_in_blocks_is_refused(models, name):
    with pytest.raises(HostError, match="takes padding for text"):
        accelplug.generate(models[name], **padded(PROMPTS["padded"]), max_new_tokens=4)


@pytest.mark.parametrize("name", ["deepseek_v32", "minimax_m3", "zaya"])
def test_static_caches(models, name):
    arguments = {"max_new_tokens": 40, "do_sample": False, "cache_implementation": "static"}
    plain = models[name].generate(torch.tensor(PROMPTS["one"]), **arguments)
    for pattern in PATTERNS.values():
        with accelplug.attach(models[name], drafter=Oracle(plain.tolist(), pattern, VOCAB)) as session:
            assert models[name].generate(torch.tensor(PROMPTS["one"]), **arguments).tolist() == plain.tolist()
        assert 0 < session.stats.accepted < session.stats.drafted


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_trees_with_an_index(models, kind, implementation):
    model = copy.deepcopy(models["deepseek_v32"])
    model.set_attn_implementation(implementation)
    arguments = {"max_new_tokens": 40, "do_sample": False} | ({"cache_implementation": "static"} if kind == "static" else {})
    plain = model.generate(torch.tensor(PROMPTS["one"]), **arguments)
    if ADDS_MASKS and implementation == "sdpa":
        with pytest.raises(HostError, match="adds sdpa's masks to the scores of its index"):
            accelplug.generate(model, torch.tensor(PROMPTS["one"]), **arguments)
        return
    with accelplug.attach(model, drafter=Oracle(plain.tolist(), PATTERNS["mixed"], VOCAB, width=2)) as session:
        assert model.generate(torch.tensor(PROMPTS["one"]), **arguments).tolist() == plain.tolist()
    assert 0 < session.stats.accepted < session.stats.drafted


class Doubling(DynamicLayer):
    """A layer of the caller's: keeps its keys at twice their size, apart from where others look for them."""

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.apart = torch.cat([self.keys, self.keys])
        self.apart = torch.cat([self.apart, 2 * key_states], dim=-2)
        self.values = torch.cat([self.values, value_states], dim=-2)
        self.keys = self.apart / 2
        return self.keys, self.values


class Counting(Doubling):
    """A layer that makes of several tokens something else than of one after the other."""

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        return super().update(key_states * (1 if key_states.shape[2] in (1, 32) else 2), value_states, *args, **kwargs)


def cache_of(kind: type, count: int = 2) -> Any:
    cache = DynamicCache()
    cache.layers, cache.layer_class_to_replicate = [kind() for _ in range(count)], None
    return cache


def test_a_layer_of_the_callers_goes_back_to_a_copy():
    torch.manual_seed(7)
    model = llama().eval()
    arguments = {"inputs": torch.tensor(PROMPTS["one"]), "max_new_tokens": 30, "do_sample": False}
    plain = model.generate(**arguments)
    with accelplug.attach(model, drafter=Oracle(plain.tolist(), PATTERNS["mixed"], VOCAB)) as session:
        for _ in range(2):
            assert model.generate(**arguments, **{cache_name(): cache_of(Doubling)}).tolist() == plain.tolist()
        assert 0 < session.stats.accepted < session.stats.drafted
        with pytest.raises(HostError, match="makes of several tokens something else"):
            model.generate(**arguments, **{cache_name(): cache_of(Counting)})
