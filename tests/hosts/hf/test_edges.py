"""Corners that a review of the loop found: each was wrong or unguarded once."""

from __future__ import annotations

import copy
import functools
import pickle
import threading
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DynamicCache,
    FalconConfig,
    FalconForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    StaticCache,
    TrOCRConfig,
    TrOCRForCausalLM,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, StoppingCriteria

import accelplug
from accelplug import HostError, PluginError
from accelplug.hooks import VerifierTraits, VerifyView
from accelplug.hosts.hf import continuous
from accelplug.hosts.hf.compat import cache_name
from accelplug.hosts.hf.context import build_context
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import MAKERS, VOCAB
from tests.hosts.hf.test_session import PROMPT, Constant, Misbehaves, TakesAll

SMALL: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": 0, "eos_token_id": None, "bos_token_id": None}
LONG = torch.arange(2, 42)[None]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 24}


@pytest.fixture
def model(random_models):
    return random_models["llama"]


@pytest.mark.parametrize("name", sorted(MAKERS))
@pytest.mark.parametrize("width", [1, 3])
def test_a_cache_made_without_the_models_config(random_models, name, width):
    """It keeps everything, so a window must come from the mask: chains are right, trees are refused where there is one."""
    model = random_models[name]
    plain = model.generate(LONG, past_key_values=DynamicCache(), **GREEDY)
    drafter = Oracle(plain.tolist(), [(3, 1), (0, 2)], VOCAB, width)
    if width > 1 and name in ("gemma3", "mistral"):
        with pytest.raises(HostError, match=r"pass DynamicCache\(config=model.config\) or none"):
            accelplug.generate(model, LONG, drafter=drafter, past_key_values=DynamicCache(), **GREEDY)
    else:
        assert accelplug.generate(model, LONG, drafter=drafter, past_key_values=DynamicCache(), **GREEDY).tolist() == plain.tolist()
    first = model.generate(LONG, past_key_values=DynamicCache(), return_dict_in_generate=True, max_new_tokens=5, do_sample=False)
    again = copy.deepcopy(first.past_key_values)
    plain = model.generate(first.sequences, past_key_values=first.past_key_values, **GREEDY)
    chain = Oracle(plain.tolist(), [(3, 1), (0, 2)], VOCAB)
    assert accelplug.generate(model, first.sequences, drafter=chain, past_key_values=again, **GREEDY).tolist() == plain.tolist()


def bloom() -> Any:
    return BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=2, **SMALL))


def falcon_alibi() -> Any:
    return FalconForCausalLM(FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, alibi=True, **SMALL))


def gpt_neo() -> Any:
    config = GPTNeoConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=128,
        **SMALL,
    )
    return GPTNeoForCausalLM(config)


@pytest.mark.parametrize("make", [bloom, falcon_alibi, gpt_neo])
def test_attention_by_slot_runs_chains_and_refuses_trees(make):
    torch.manual_seed(0)
    model = make().eval()
    plain = model.generate(PROMPT, **GREEDY)
    with accelplug.attach(model, drafter=Oracle(plain.tolist(), [(3, 1), (0, 2)], VOCAB)) as session:
        assert model.generate(PROMPT, **GREEDY).tolist() == plain.tolist()
    assert session.stats.accepted > 0
    with pytest.raises(HostError, match=r"a tree of drafts cannot be verified in .* attention; use a drafter of chains"):
        accelplug.generate(model, PROMPT, drafter=Oracle(plain.tolist(), [(3, 1)], VOCAB, width=2), **GREEDY)


@pytest.mark.parametrize(("width", "batches"), [(1, "auto"), (2, "auto"), (1, "lockstep")])
def test_token_types_go_on_as_the_prompts_end(width, batches):
    """The last one is the answer's, as in plain generate()."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3, **SMALL)).eval()
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]]), "token_type_ids": torch.tensor([[40, 40, 50, 50], [40, 40, 51, 52]])}
    plain = model.generate(**inputs, **GREEDY)
    assert plain.tolist() != model.generate(inputs["input_ids"], **GREEDY).tolist()
    with accelplug.attach(model, drafter=Oracle(plain.tolist(), [(3, 1), (0, 2)], VOCAB, width), batches=batches) as session:
        assert model.generate(**inputs, **GREEDY).tolist() == plain.tolist()
        assert model.generate(**{name: value[:1] for name, value in inputs.items()}, **GREEDY).tolist() == plain[:1].tolist()
    assert session.stats.accepted > 0
    assert session.stats.lockstep_because in ("token_type_ids, which the model is given for all rows at once", "batches='lockstep'")


def test_a_model_that_counts_positions_itself_runs_chains_and_refuses_trees():
    torch.manual_seed(1)
    config = TrOCRConfig(d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=32, init_std=0.2, **SMALL)
    model = TrOCRForCausalLM(config).eval()
    plain = model.generate(PROMPT, **GREEDY)
    with accelplug.attach(model, drafter=Oracle(plain.tolist(), [(3, 1), (0, 2)], VOCAB)) as session:
        assert model.generate(PROMPT, **GREEDY).tolist() == plain.tolist()
    assert session.stats.accepted > 0
    with pytest.raises(HostError, match="TrOCRForCausalLM counts positions itself"):
        accelplug.generate(model, PROMPT, drafter=Oracle(plain.tolist(), [(3, 1)], VOCAB, width=2), **GREEDY)


def test_a_static_cache_that_is_too_small_says_so(model):
    """Plain generate() fails in the layer that overflows; an answer that ends in time is an answer."""
    small = {**GREEDY, "past_key_values": StaticCache(config=model.config, max_cache_len=20)}
    with pytest.raises(HostError, match="the static cache is full: it has 20 slots"):
        accelplug.generate(model, PROMPT, drafter=Constant(), **small)
    with pytest.raises(HostError, match="the static cache is full"):
        accelplug.generate(model, PROMPT, **{**small, "past_key_values": StaticCache(config=model.config, max_cache_len=20)})
    fits = {"do_sample": False, "max_new_tokens": 16, "past_key_values": StaticCache(config=model.config, max_cache_len=20)}
    plain = model.generate(PROMPT, do_sample=False, max_new_tokens=16)
    assert accelplug.generate(model, PROMPT, drafter=Constant(), **fits).tolist() == plain.tolist()


def test_weights_sharded_over_processes_are_refused(model, monkeypatch):
    """There plain generate() goes on until every process is done, so that none waits for another's forward pass."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    accelplug.generate(model, PROMPT, drafter="prompt_lookup", **GREEDY)
    monkeypatch.setattr("transformers.generation.utils.is_fsdp_managed_module", lambda _: True)
    with pytest.raises(HostError, match="weights that FSDP or ZeRO 3 shards over processes"):
        accelplug.generate(model, PROMPT, drafter="prompt_lookup", synced_gpus=False, **GREEDY)


def test_token_healing_heals_as_plain_generate_does(model, tokenizer, monkeypatch):
    """The last token of a prompt goes back and comes anew, as the longer token that the model prefers."""
    words = tokenizer.get_vocab()
    start = tokenizer.decode(PROMPT[0].tolist())
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token = "<unk>"
    added = [f"{start[-1]}{end}" for end in "abcdefgh"]
    tokenizer.add_tokens(added)
    # The model has no such tokens: ids of others stand for them.
    longer = dict(zip(added, range(10, 18), strict=True))
    monkeypatch.setattr(tokenizer, "get_vocab", lambda: {**words, **longer})
    monkeypatch.setattr(tokenizer, "convert_tokens_to_ids", {**words, **longer}.get)
    config = GenerationConfig(token_healing=True, **GREEDY)
    plain = model.generate(PROMPT, token_healing=True, tokenizer=tokenizer, **GREEDY).tolist()
    unhealed = model.generate(PROMPT, **GREEDY).tolist()
    assert plain[0][:5] != unhealed[0][:5]
    for arguments in ({"token_healing": True, **GREEDY}, {"generation_config": config}):
        drafter = Oracle(plain, [(2, 1), (0, 2)], VOCAB)
        with accelplug.attach(model, drafter=drafter, tokenizer=tokenizer) as session:
            assert model.generate(PROMPT, **arguments).tolist() == plain
        assert 0 < session.stats.accepted < session.stats.drafted
        assert "heal_tokens" not in vars(model)
    with pytest.raises(HostError, match="token_healing needs the model's tokenizer"):
        accelplug.generate(model, PROMPT, drafter="prompt_lookup", token_healing=True, **GREEDY)


def test_what_torch_compile_returns_is_attached_to_once_and_let_go(random_models):
    model = copy.deepcopy(random_models["llama"])
    plain = model.generate(PROMPT, **GREEDY)
    compiled = torch.compile(model, backend="eager")
    for one, other in ((compiled, model), (model, compiled), (compiled, compiled)):
        with accelplug.attach(one, drafter="prompt_lookup"):
            assert compiled.generate(PROMPT, **GREEDY).tolist() == plain.tolist()
            with pytest.raises(HostError, match="attached to this model already"), accelplug.attach(other):
                pass
        assert "generate" not in {*vars(model), *vars(compiled)}


def test_a_model_that_takes_a_cache_and_does_not_fill_it_is_refused(model, monkeypatch):
    """Plain generate() gives it one token at a time all the same."""
    forward = model.forward

    @functools.wraps(forward)
    def forgets(**named: Any) -> Any:
        return forward(**{**named, cache_name(): None, "use_cache": False})

    monkeypatch.setattr(model, "forward", forgets)
    with pytest.raises(HostError, match=r"LlamaForCausalLM fills no cache, so that plain .* alone; pass use_cache=False"):
        accelplug.generate(model, PROMPT, drafter="prompt_lookup", **GREEDY)


def test_flash_attention_refuses_trees_before_anything_runs(model, monkeypatch):
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(HostError, match="'flash_attention_2' cannot verify a tree of drafts; load the model with 'sdpa' or 'eager'"):
        accelplug.generate(model, PROMPT, drafter=Oracle([[1] * 50], [(3, 1)], VOCAB, width=2), **GREEDY)


@pytest.mark.parametrize("thing", ["gpt2", object(), None])
def test_only_a_loaded_model_can_be_attached(thing):
    with pytest.raises(HostError, match="takes a loaded model"):
        accelplug.attach(thing, drafter="prompt_lookup")


def test_a_wrapper_is_refused_on_one_line_with_what_to_pass_instead(model):
    with pytest.raises(HostError, match=r"and got DataParallel; of a wrapper pass what it wraps, its \.module$"):
        accelplug.attach(torch.nn.DataParallel(model), drafter="prompt_lookup")


@pytest.mark.parametrize("copies", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "deepcopy", "pickle"])
def test_a_copy_of_an_attached_model_is_its_own(model, copies):
    plain = model.generate(PROMPT, **GREEDY).tolist()
    with accelplug.attach(model, drafter="prompt_lookup") as session:
        copied = copies(model)
        assert copied.generate(PROMPT, **GREEDY).tolist() == plain
        assert session.stats.requests == 0
        with accelplug.attach(copied, drafter="prompt_lookup") as other:
            copied.generate(PROMPT, **GREEDY)
        assert (session.stats.requests, other.stats.requests) == (0, 1)
        model.generate(PROMPT, **GREEDY)
        assert session.stats.requests == 1
        assert not {"generate", "init_continuous_batching", "generate_batch", "__getstate__"} & set(vars(copied))
    assert not {"generate", "init_continuous_batching", "generate_batch", "__getstate__"} & set(vars(model))


def test_a_copy_keeps_a_generate_of_the_users_own(random_models):
    model = copy.copy(random_models["llama"])
    model.generate = lambda *_, **__: "mine"
    with accelplug.attach(model, drafter="prompt_lookup"):
        assert copy.copy(model).generate() == "mine"


def test_a_generate_of_the_users_own_is_put_back(random_models):
    model = copy.deepcopy(random_models["llama"])
    calls = []

    def mine(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return type(model).generate(model, *args, **kwargs)

    model.generate = mine
    with accelplug.attach(model, drafter="prompt_lookup"):
        model.generate(PROMPT, **GREEDY)
    assert model.generate is mine
    assert calls == [1]


def test_what_somebody_puts_in_place_of_generate_meanwhile_stays(random_models):
    model = copy.deepcopy(random_models["llama"])
    with accelplug.attach(model, drafter="prompt_lookup"):
        model.generate = mine = lambda **_: "mine"
    assert model.generate is mine
    with accelplug.attach(model, drafter="prompt_lookup"):
        del model.generate
    assert "generate" not in vars(model)


def test_of_two_threads_that_attach_at_once_one_is_refused(random_models, monkeypatch):
    """The second one comes between the first one's look and its taking of the model."""
    model = copy.deepcopy(random_models["llama"])
    first, second = (accelplug.attach(model, drafter="prompt_lookup") for _ in range(2))
    refused, governed = [], continuous.governed

    def enter() -> None:
        try:
            second.__enter__()
        except HostError as exc:
            refused.append(str(exc))

    other = threading.Thread(target=enter)

    def slow(session: Any) -> Any:
        monkeypatch.undo()
        other.start()
        other.join(0.2)
        return governed(session)

    monkeypatch.setattr(continuous, "governed", slow)
    with first:
        other.join()
        assert model.generate.session is first
    (reason,) = refused
    assert "attached to this model already" in reason
    assert not {"generate", "init_continuous_batching"} & set(vars(model))


@pytest.mark.parametrize("name", ["gemma3", "mistral"])
def test_layers_stop_recording_also_after_an_error(random_models, name):
    model = random_models[name]
    out = accelplug.generate(model, PROMPT, drafter=Constant(), return_dict_in_generate=True, **GREEDY)
    assert not any(getattr(layer, "record_past", False) for layer in out.past_key_values.layers)
    cache = DynamicCache(config=model.config)
    with pytest.raises(ZeroDivisionError):
        accelplug.generate(model, PROMPT, drafter=Misbehaves("raises"), past_key_values=cache, **GREEDY)
    assert cache.layers
    assert not any(getattr(layer, "record_past", False) for layer in cache.layers)


def test_a_request_is_finished_and_the_session_free_after_an_error(model):
    calls = []

    class Fails(Constant):
        def finish(self, slots: Any) -> None:
            calls.append(slots.tolist())

        def propose_one(self, tokens: Any, budget: int) -> list[int]:
            if not calls:
                raise ValueError("once")
            return super().propose_one(tokens, budget)

    plain = model.generate(PROMPT, **GREEDY)
    with accelplug.attach(model, drafter=Fails()):
        with pytest.raises(ValueError, match="once"):
            model.generate(PROMPT, **GREEDY)
        assert calls == [[0]]
        assert model.generate(PROMPT, **GREEDY).tolist() == plain.tolist()


@pytest.mark.parametrize("method", ["start", "finish", "observe"])
def test_every_method_of_a_drafter_is_named_when_it_raises(model, method):
    drafter = type("Breaks", (Constant,), {method: lambda self, view: 1 / 0})()
    with pytest.raises(ZeroDivisionError) as caught:
        accelplug.generate(model, PROMPT, drafter=drafter, **GREEDY)
    assert any("Breaks" in note for note in caught.value.__notes__)


class Seen(StoppingCriteria):
    """Stops after ten tokens by the scores it is given, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.calls += 1
        return torch.full((len(input_ids),), len(scores) >= 10)


class LateEos(EosTokenCriteria):
    """EOS counts from the twelfth token on."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return super().__call__(input_ids, scores, **kwargs) & (input_ids.shape[1] >= 17)


def test_stopping_criteria_of_users_are_asked_as_in_plain_generate(model):
    free = model.generate(PROMPT, **GREEDY)
    drafter = Oracle(free.tolist(), [(4, 1)], VOCAB)
    eos = int(free[0, 20]) if free[0, 20] not in free[0, 5:20] else None
    for make in (lambda: [Seen()], lambda: [MaxLengthCriteria(14)], lambda: [LateEos(free[0, 8:].tolist())]):
        asked, plain_asked = make(), make()
        wanted = {**GREEDY, "return_dict_in_generate": True, "output_scores": True, "eos_token_id": eos}
        plain = model.generate(PROMPT, stopping_criteria=plain_asked, **wanted).sequences
        fast = accelplug.generate(model, PROMPT, drafter=drafter, stopping_criteria=asked, **wanted).sequences
        assert fast.tolist() == plain.tolist()
        assert plain.shape[1] < free.shape[1]
        assert getattr(asked[0], "calls", 0) == getattr(plain_asked[0], "calls", 0)


def test_the_budget_leaves_room_for_the_targets_own_token(model):
    seen = []

    class Greedy(Constant):
        def propose_one(self, tokens: Any, budget: int) -> list[int]:
            seen.append(len(tokens) + budget)
            return [3] * budget

    accelplug.generate(model, PROMPT, drafter=Greedy(), **GREEDY)
    assert set(seen) == {5 + 24 - 1}


def test_a_streamer_is_given_one_token_at_a_time(model):
    shapes = []

    class Shapes:
        def put(self, value: torch.Tensor) -> None:
            shapes.append(tuple(value.shape))

        def end(self) -> None:
            shapes.append("end")

    plain = model.generate(PROMPT, streamer=Shapes(), **GREEDY)
    expected, shapes[:] = list(shapes), []
    accelplug.generate(model, PROMPT, drafter=Oracle(plain.tolist(), [(4, 1)], VOCAB), streamer=Shapes(), **GREEDY)
    assert shapes == expected


def test_several_eos_ids_reach_the_context(model):
    model.generation_config.eos_token_id = [3, 4]
    try:
        assert build_context(model, None).eos_token_ids == (3, 4)
    finally:
        model.generation_config.eos_token_id = None


@dataclass(frozen=True)
class Returns:
    """A lossy rule with a fixed answer."""

    answer: float
    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless=None)

    def accept(self, view: VerifyView) -> torch.Tensor:
        return torch.tensor([self.answer])


@pytest.mark.parametrize("answer", [float("nan"), 7.0, -0.1])
def test_a_rule_must_return_probabilities(model, answer):
    with pytest.raises(PluginError, match="returned the acceptance probability"):
        accelplug.generate(model, PROMPT, drafter=Constant(), verifier=Returns(answer), allow_lossy=True, **GREEDY)


class Leaves(Returns):
    """Rejects everything, and leaves what it is told to."""

    def __init__(self, rest: Any) -> None:
        object.__setattr__(self, "answer", 0.0)
        object.__setattr__(self, "rest", rest)

    def residual(self, view: VerifyView) -> Any:
        return self.rest(view.target)


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize(
    ("rest", "sentence"),
    [
        (lambda target: target[0], "returned a residual that is no tensor"),
        (lambda target: target[:, :7], "returned a residual that is no tensor"),
        (lambda target: None, "returned a residual that is no tensor"),
        (lambda target: target * float("nan"), "returned a residual that sums to nan"),
        (lambda target: target * 0, "returned a residual that sums to 0"),
        (lambda target: -target, "returned a residual that sums to -1"),
    ],
)
def test_a_rule_must_leave_a_distribution(model, rest, sentence, do_sample):
    with pytest.raises(PluginError, match=f"Leaves.*{sentence}"):
        accelplug.generate(model, PROMPT, drafter=Constant(), verifier=Leaves(rest), allow_lossy=True, max_new_tokens=9, do_sample=do_sample)


def test_lossy_accepts_are_counted_under_sampling(model):
    """The drafts are unlikely, so nearly every accepted one is a loss; the likely ones are not."""
    torch.manual_seed(0)
    with accelplug.attach(model, drafter=Constant(), verifier=TakesAll(), allow_lossy=True) as session:
        model.generate(PROMPT, do_sample=True, max_new_tokens=60)
    assert session.stats.accepted * 0.8 < session.stats.lossy_accepts <= session.stats.accepted


def test_a_device_only_drafter_is_refused(model):
    class OnDevice:
        def propose_on_device(self, view: Any) -> Any: ...

    with pytest.raises(HostError, match="drafts on the device only"):
        accelplug.attach(model, drafter=OnDevice())


def test_forwards_are_counted_per_request(model):
    ids = PROMPT.repeat(3, 1)
    with accelplug.attach(model) as session:
        model.generate(ids, **GREEDY)
    assert (session.stats.forwards, session.stats.tokens, session.stats.tokens_per_forward) == (72, 72, 1.0)
    assert np.isclose(session.stats.acceptance, 0)
