"""Recurrent layers: rejected drafts leave their state too, and the output is plain ``generate()``'s."""

from __future__ import annotations

import collections
import copy
import functools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MiniMaxConfig,
    MiniMaxForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
    xLSTMConfig,
    xLSTMForCausalLM,
)

import accelplug
from accelplug import HostError
from accelplug.hooks import CommitView, Drafts, DraftView
from accelplug.hosts.hf import reading_on
from accelplug.hosts.hf.compat import cache_name
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.test_batches import padded, unpadded

VOCAB = 64
SPECIAL = {"vocab_size": VOCAB, "eos_token_id": None, "bos_token_id": None, "pad_token_id": 0}
SMALL = {**SPECIAL, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
MIXER = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_expand": 2, "mamba_chunk_size": 8}


def mamba2() -> Any:
    """No attention at all: nothing counts tokens."""
    config = Mamba2Config(num_heads=4, head_dim=16, hidden_size=32, state_size=8, num_hidden_layers=2, n_groups=1, chunk_size=8, **SPECIAL)
    return Mamba2ForCausalLM(config)


def qwen3_next() -> Any:
    """Gated delta rule, then attention, with experts."""
    linear = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    types = ["linear_attention", "linear_attention", "full_attention"]
    return Qwen3NextForCausalLM(Qwen3NextConfig(num_hidden_layers=3, layer_types=types, head_dim=8, **linear, **experts, **SMALL))


def lfm2() -> Any:
    """Short convolutions beside attention, and no recurrent state."""
    return Lfm2ForCausalLM(Lfm2Config(num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"], **SMALL))


def falcon_h1() -> Any:
    """Attention and Mamba 2 side by side in each layer."""
    return FalconH1ForCausalLM(FalconH1Config(num_hidden_layers=2, mamba_d_ssm=64, **MIXER, **SMALL))


def jamba() -> Any:
    """Attention, experts, and Mamba mixers, which read several tokens at once as if there were none before."""
    periods = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 4}
    return JambaForCausalLM(JambaConfig(num_hidden_layers=2, mamba_d_state=4, use_mamba_kernels=False, **periods, **SMALL))


def nemotron_h() -> Any:
    """Layers of experts, which keep nothing, and Mamba 2 that heeds limits of its time steps only where it reads several tokens."""
    types = ["linear_attention", "moe", "full_attention"]
    mixer = {"ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "chunk_size": 8}
    experts = {"n_routed_experts": 4, "moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16}
    return NemotronHForCausalLM(NemotronHConfig(layers_block_type=types, head_dim=8, **mixer, **experts, **SMALL))


def mamba() -> Any:
    """Nothing but such mixers as Jamba's."""
    return MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **SPECIAL))


def minimax() -> Any:
    """Lightning attention, whose states lie beside the layers of a cache of the model's own kind."""
    types = ["full_attention", "linear_attention", "linear_attention"]
    return MiniMaxForCausalLM(MiniMaxConfig(num_hidden_layers=3, layer_types=types, head_dim=8, num_local_experts=4, block_size=16, **SMALL))


def xlstm() -> Any:
    """States in no cache of Transformers'."""
    return xLSTMForCausalLM(xLSTMConfig(hidden_size=128, num_heads=2, num_hidden_layers=2, chunk_size=16, **SPECIAL))


def recurrent_gemma() -> Any:
    """States in the modules, which read several tokens as if there were none before, beside attention with a window."""
    config = RecurrentGemmaConfig(num_hidden_layers=3, attention_window_size=16, head_dim=8, **SMALL)
    return RecurrentGemmaForCausalLM(config)


def rwkv() -> Any:
    """States in a list of tensors."""
    return RwkvForCausalLM(RwkvConfig(context_length=64, hidden_size=16, num_hidden_layers=2, **SPECIAL))


MAKERS = {
    make.__name__: make
    for make in (mamba2, qwen3_next, lfm2, falcon_h1, jamba, nemotron_h, mamba, minimax, xlstm, recurrent_gemma, rwkv)
}
# Plain generate() adds RWKV's rows to each other, and in some releases leaves RecurrentGemma's padding out of its masks.
ONE_LENGTH, ONE_PROMPT = ("recurrent_gemma",), ("rwkv",)
EVENTS: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
HARD = ("all rejected", "some rejected", "none rejected", "EOS inside a draft", "a rest", "padded prompts")


@dataclass
class Watched(Oracle):
    """The oracle, counting what became of its drafts."""

    name: str = ""
    last: list[int] = field(default_factory=list)
    right: set[int] = field(default_factory=set)  # where in the first row drafts were right, and accepted where it is the only one

    def observe(self, view: CommitView) -> None:
        for drafted, accepted in zip(self.last, view.accepted.tolist(), strict=False):
            if drafted:
                EVENTS[self.name]["all rejected" if not accepted else "some rejected" if accepted < drafted else "none rejected"] += 1

    def propose(self, view: DraftView) -> Drafts:
        is_early = len(self.sequences) == 1 and int(view.lengths[0]) + 2 < len(self.sequences[0])
        EVENTS[self.name]["a rest"] += is_early and not view.budgets.any()
        right, _ = self.pattern[self.steps % len(self.pattern)]
        drafts = super().propose(view)
        first = int(view.lengths[0])
        self.right |= set(range(first, first + min(right, int(drafts.offsets[1]))))
        self.last = (drafts.offsets[1:] - drafts.offsets[:-1]).tolist()
        return drafts


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
                    weights.normal_(0, 0.6 if name == "recurrent_gemma" else 0.3)
        model.generation_config.eos_token_id = None
        built[name] = model
    return built


PATTERNS = {"mixed": [(3, 1), (0, 2), (2, 0), (0, 0), (5, 0), (1, 3)], "always something wrong": [(1, 2), (0, 3)]}
PROMPTS = {
    "one": [[5, 6, 7, 8, 9, 5, 6]],
    "padded": [[3, 4, 5, 6, 9, 2], [7, 8], [9, 10, 11, 12]],
    "of one length": [[3, 4, 5, 6, 9, 2], [7, 8, 1, 2, 3, 4]],
}


@pytest.mark.parametrize(("prompts", "pattern"), [("one", "always something wrong"), ("one", "mixed"), ("padded", "mixed")])
@pytest.mark.parametrize("name", MAKERS)
def test_output_and_cache_are_plain_generates(models, name, prompts, pattern):
    if prompts == "padded" and name in (*ONE_LENGTH, *ONE_PROMPT):
        prompts = "of one length" if name in ONE_LENGTH else "one"
    model, prompts, pattern = models[name], PROMPTS[prompts], PATTERNS[pattern]
    inputs = padded(prompts)
    arguments = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True, "output_scores": True}
    start = inputs["input_ids"].shape[1]
    known = model.generate(**inputs, **arguments).sequences.tolist()
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
        assert session.stats.accepted < session.stats.drafted
        assert session.stats.batches == (None if len(prompts) == 1 else "lockstep")
        EVENTS[name]["EOS inside a draft"] += eos is not None and len(prompts) == 1
        EVENTS[name]["padded prompts"] += len({*map(len, prompts)}) > 1
        drafted = [known[0][position] for position in sorted(drafter.right) if known[0].index(known[0][position], start) == position]
        eos = drafted[-1]


def same_cache(ours: Any, theirs: Any) -> None:
    if theirs is None:  # RecurrentGemma returns none
        return
    for mine, other in zip(elsewhere(ours), elsewhere(theirs), strict=True):
        torch.testing.assert_close(mine[:1], other[:1], atol=1e-3, rtol=1e-2)
    for mine, other in zip(getattr(ours, "layers", ()), getattr(theirs, "layers", ()), strict=True):
        for states in ("keys", "values"):
            if getattr(other, states, None) is not None:
                assert getattr(mine, states).shape == getattr(other, states).shape
                torch.testing.assert_close(getattr(mine, states)[0], getattr(other, states)[0], atol=1e-3, rtol=1e-2)
        for states in ("conv_states", "recurrent_states"):
            for i, state in getattr(other, states, {}).items():
                if state is not None:
                    torch.testing.assert_close(getattr(mine, states)[i][0], state[0], atol=1e-3, rtol=1e-2)


def elsewhere(cache: Any) -> list[torch.Tensor]:
    """The states that lie in no layer: RWKV's, xLSTM's, MiniMax's."""
    if isinstance(cache, list):
        return cache
    if hasattr(cache, "rnn_state"):
        return [cache.seqlen_offset, *(state for states in cache.rnn_state.values() for state in states)]
    return [state for state in getattr(cache, "linear_cache", ()) if len(state)]


@pytest.mark.parametrize("name", MAKERS)
def test_every_hard_event_happened(name):
    print(name, dict(EVENTS[name]))
    assert {event for event in HARD if not EVENTS[name][event]} <= ({"padded prompts"} if name in (*ONE_LENGTH, *ONE_PROMPT) else set())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MAKERS)
def test_half_precision_differs_at_near_ties_only(models, name, dtype):
    """As everywhere: several tokens read at once round unlike one, which shows where two tokens are nearly as good as each other."""
    model, inputs = copy.deepcopy(models[name]).to(dtype), padded(PROMPTS["one"])
    arguments = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(**inputs, return_dict_in_generate=True, output_logits=True, **arguments)
    known = plain.sequences.tolist()
    with accelplug.attach(model, drafter=Oracle(known, PATTERNS["mixed"], VOCAB)) as session:
        fast = model.generate(**inputs, **arguments).tolist()
    assert 0 < session.stats.accepted < session.stats.drafted
    if fast != known:
        at = next(i for i, (ours, theirs) in enumerate(zip(fast[0], known[0], strict=True)) if ours != theirs)
        logits = plain.logits[at - inputs["input_ids"].shape[1]][0].float()
        eps = torch.finfo(torch.bfloat16 if name == "xlstm" else dtype).eps  # xLSTM computes in bfloat16 whatever it is loaded in
        assert logits.max() - logits[fast[0][at]] <= 3 * eps * logits.abs().max()


@pytest.mark.parametrize("name", ["mamba2", "qwen3_next"])
def test_sampling_draws_what_plain_generate_draws(models, name):
    arguments = {"input_ids": torch.tensor(PROMPTS["one"]), "max_new_tokens": 40, "do_sample": True, "temperature": 0.7}
    torch.manual_seed(1)
    plain = models[name].generate(**arguments)
    torch.manual_seed(1)
    with accelplug.attach(models[name], drafter=Oracle(plain.tolist(), PATTERNS["mixed"], VOCAB)) as session:
        assert models[name].generate(**arguments).tolist() == plain.tolist()
    assert 0 < session.stats.accepted < session.stats.drafted


@pytest.mark.parametrize("name", ["qwen3_next", "lfm2"])
def test_a_conversation_goes_on_from_the_cache(models, name):
    outputs = []
    for drafter in (None, Oracle([range(VOCAB)], [(0, 3)], VOCAB)):
        ids, cache = torch.tensor(PROMPTS["one"]), None
        for turn in ([11, 12], [13, 14, 15], []):
            given = {} if cache is None else {"past_key_values": cache}
            out = accelplug.generate(
                models[name], ids, drafter=drafter, max_new_tokens=9, do_sample=False, return_dict_in_generate=True, **given
            )
            ids, cache = torch.cat([out.sequences, torch.tensor([turn], dtype=torch.long)], 1), out.past_key_values
        outputs.append(ids.tolist())
    assert outputs[0] == outputs[1]


def test_a_static_cache(models):
    arguments = {"max_new_tokens": 30, "do_sample": False, "cache_implementation": "static"}
    plain = models["qwen3_next"].generate(torch.tensor(PROMPTS["one"]), **arguments)
    with accelplug.attach(models["qwen3_next"], drafter=Oracle(plain.tolist(), PATTERNS["mixed"], VOCAB)) as session:
        assert models["qwen3_next"].generate(torch.tensor(PROMPTS["one"]), **arguments).tolist() == plain.tolist()
    assert 0 < session.stats.accepted < session.stats.drafted


@pytest.mark.parametrize("name", MAKERS)
def test_mixers_that_forget_are_found_and_left_as_they_were(models, name):
    """Whether one does is a fact of this release of Transformers: the model itself is asked."""
    slowed = reading_on.mixers_to_slow(models[name])
    assert bool(slowed) == (name in ("jamba", "nemotron_h", "mamba", "recurrent_gemma"))
    assert reading_on.reads_on(models[name], slowed)
    assert not any("forward" in vars(module) for module in models[name].modules())


def test_memory_that_ran_out_is_not_held_against_a_model(models, monkeypatch):
    """The comparison was swallowed with it, and the model refused for as long as it lived."""
    model, made, behind = copy.deepcopy(models["mamba2"]), [], reading_on._behind

    def runs_out(*given):
        made.append(None if made else behind(*given))
        if made[-1] is None:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return made[-1]

    with monkeypatch.context() as patched:
        patched.setattr(reading_on, "_behind", runs_out)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            reading_on.mixers_to_slow(model)
    assert len(made) == 2
    assert reading_on.mixers_to_slow(model) == reading_on.mixers_to_slow(models["mamba2"])


def test_other_adapters_are_asked_again(models, monkeypatch):
    """What reads on without an adapter, or with one beside the weights, need not with one inside of them."""
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(copy.deepcopy(models["mamba2"]), peft.LoraConfig(target_modules=["in_proj"], init_lora_weights=False)).eval()
    wrapped.add_adapter("other", peft.LoraConfig(target_modules=["in_proj"], init_lora_weights=False))
    model, asked, ask = wrapped.get_base_model(), [], reading_on._mixers_to_slow
    monkeypatch.setattr(reading_on, "_mixers_to_slow", lambda *given: [asked.append(1), ask(*given)][1])
    for change in (lambda: None, lambda: wrapped.set_adapter("other"), wrapped.merge_adapter, wrapped.unmerge_adapter, lambda: wrapped.set_adapter("default")):
        change()
        arguments = {"input_ids": torch.tensor(PROMPTS["one"]), "max_new_tokens": 12, "do_sample": False}
        plain = wrapped.generate(**arguments).tolist()
        with accelplug.attach(wrapped, drafter=Oracle(plain, PATTERNS["mixed"], VOCAB)) as session:
            assert wrapped.generate(**arguments).tolist() == plain
        assert 0 < session.stats.accepted < session.stats.drafted
        assert model is wrapped.get_base_model()
    assert len(asked) == 3


def test_trees_are_refused(models):
    for model in models.values():
        with pytest.raises(HostError, match="a tree of drafts cannot be verified in recurrent layers"):
            accelplug.generate(model, torch.tensor([[5, 6]]), drafter=Oracle([[1] * 50], [(3, 1)], VOCAB, 2), max_new_tokens=4)


class ForgetfulMamba2(Mamba2ForCausalLM):
    """Reads several tokens as if there were none before, in whatever module that may be."""

    @functools.wraps(Mamba2ForCausalLM.forward)
    def forward(self, input_ids: Any = None, **arguments: Any) -> Any:
        cache = arguments.get("cache_params", arguments.get("cache"))
        if cache is not None and input_ids.shape[1] > 1 and cache.has_previous_state():
            cache.reset()
        return super().forward(input_ids, **arguments)


def test_a_model_whose_state_is_out_of_reach_is_refused(models):
    forgetful = ForgetfulMamba2(models["mamba2"].config).eval()
    with pytest.raises(HostError, match="ForgetfulMamba2 makes of several tokens something else than of one after the other"):
        accelplug.generate(forgetful, torch.tensor([[5, 6]]), drafter="prompt_lookup", max_new_tokens=4)


def test_batches_that_plain_generate_itself_reads_wrongly_are_refused(models):
    with pytest.raises(HostError, match=r"RwkvForCausalLM mixes the rows of a batch where it reads one token.*give it one prompt"):
        accelplug.generate(models["rwkv"], torch.tensor([[5, 6], [7, 8]]), drafter="prompt_lookup", max_new_tokens=4)
    types = ["linear_attention", "full_attention"]  # Transformers makes masks by the first layer, which keeps no tokens
    config = MiniMaxConfig(num_hidden_layers=2, layer_types=types, head_dim=8, num_local_experts=4, block_size=16, **SMALL)
    with pytest.raises(HostError, match=r"MiniMaxForCausalLM forgets padding behind the prompt.*give it prompts of one length"):
        accelplug.generate(MiniMaxForCausalLM(config).eval(), **padded(PROMPTS["padded"]), drafter="prompt_lookup", max_new_tokens=4)


def test_states_are_not_returned_as_attentions(models):
    arguments = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_attentions": True}
    with pytest.raises(HostError, match="MiniMaxForCausalLM returns the states of its recurrent layers as their attentions"):
        accelplug.generate(models["minimax"], torch.tensor([[5, 6]]), drafter="prompt_lookup", **arguments)
