"""The settings that users have: adapters, pipelines, small types, streamers, threads. Each is right or refused."""

from __future__ import annotations

import asyncio
import copy
import threading
from typing import Any

import pytest
import torch
from transformers import AsyncTextIteratorStreamer, LlamaForCausalLM, LogitsProcessor, TextIteratorStreamer, pipeline

import accelplug
from accelplug import HostError
from accelplug.hosts.hf.compat import cache_name
from accelplug.hosts.hf.verify import likeliest
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import VOCAB
from tests.hosts.hf.test_batches import padded, unpadded

PROMPT = torch.tensor([[5, 6, 7, 8, 9]])
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 24}
PATTERN = [(3, 1), (2, 0), (1, 2)]


@pytest.fixture
def model(random_models):
    return random_models["llama"]


def equal_to_plain(model: Any, attached_to: Any = None, **arguments: Any) -> accelplug.Stats:
    """Generate plainly and with drafts of every fate, both from one seed; return what the session counted."""
    arguments = {**GREEDY, **arguments}
    if not {"input_ids", "inputs_embeds", "bos_token_id"} & set(arguments):
        arguments["input_ids"] = PROMPT
    torch.manual_seed(0)
    plain = model.generate(**arguments)
    torch.manual_seed(0)
    target = model if attached_to is None else attached_to
    with accelplug.attach(target, drafter=Oracle(plain.tolist(), PATTERN, VOCAB), batches="lockstep") as session:
        assert model.generate(**arguments).tolist() == plain.tolist()
    assert 0 < session.stats.accepted < session.stats.drafted
    assert session.stats.forwards < session.stats.tokens
    return session.stats


@pytest.mark.parametrize(
    "arguments",
    [
        {"input_ids": torch.tensor([[5]])},
        {"bos_token_id": 3},
        {"num_return_sequences": 3, "do_sample": True, "temperature": 0.8},
        {"prefill_chunk_size": 2},
        {"guidance_scale": 1.5},
        {"sequence_bias": [[[5], 2.0]]},
        {"max_time": 100.0},
    ],
    ids=str,
)
def test_arguments_of_a_call(model, arguments):
    equal_to_plain(model, **arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_of_equal_logits_the_first_is_taken_as_plain_generate_takes_it(dtype):
    torch.manual_seed(0)
    logits = torch.randint(-3, 3, (2, 5, 700)).to(dtype)
    assert (logits == logits.amax(-1, keepdim=True)).sum(-1).min() > 1
    assert likeliest(logits) == logits.float().argmax(-1).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model, dtype):
    equal_to_plain(copy.deepcopy(model).to(dtype))


def test_inference_mode_and_embeddings(model):
    with torch.inference_mode():
        equal_to_plain(model)
        equal_to_plain(model, inputs_embeds=model.get_input_embeddings()(PROMPT))


def test_a_device_map(model, tmp_path):
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    model.save_pretrained(tmp_path)
    equal_to_plain(LlamaForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"}))
    parts = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
    split = {**dict.fromkeys(parts, "cpu"), **{f"model.layers.{layer}": "disk" for layer in range(1, model.config.num_hidden_layers)}}
    equal_to_plain(LlamaForCausalLM.from_pretrained(tmp_path, device_map=split, offload_folder=tmp_path / "disk"))


def adapted(model: Any, config: Any) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    return peft.get_peft_model(copy.deepcopy(model), config(peft)).eval()


def lora(peft: Any) -> Any:
    return peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")


def prompt_tuning(peft: Any) -> Any:
    return peft.PromptTuningConfig(num_virtual_tokens=4, num_layers=2, token_dim=48, num_attention_heads=4, task_type="CAUSAL_LM")


def prefix_tuning(peft: Any) -> Any:
    return peft.PrefixTuningConfig(num_virtual_tokens=4, num_layers=2, token_dim=32, num_attention_heads=2, task_type="CAUSAL_LM")


def test_a_lora_attached_at_either_end(model):
    wrapper = adapted(model, lora)
    base = wrapper.base_model.model
    assert wrapper.generate(input_ids=PROMPT, **GREEDY).tolist() != model.generate(PROMPT, **GREEDY).tolist()
    equal_to_plain(wrapper)
    equal_to_plain(wrapper, attached_to=base)
    equal_to_plain(base)
    with accelplug.attach(wrapper), accelplug.attach(base), pytest.raises(HostError, match="attached to this model already"):
        wrapper.generate(input_ids=PROMPT, **GREEDY)
    assert not {"generate", "init_continuous_batching"} & {*vars(wrapper), *vars(base)}


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("config", [prompt_tuning, prefix_tuning])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_virtual_tokens(random_models, name, config, width):
    """Of the prompt's own positions prompt tuning makes none, prefix tuning later ones."""
    if cache_name() == "cache" and config is prefix_tuning:
        pytest.skip("PEFT looks for the cache by its old name, and prefix tuning then has no effect")
    wrapper = adapted(random_models[name], lambda peft: with_layers(config(peft), random_models[name].config.num_hidden_layers))
    if cache_name() == "cache":
        with accelplug.attach(wrapper, drafter="prompt_lookup"), pytest.raises(HostError, match="PEFT puts its virtual tokens before each token"):
            wrapper.generate(input_ids=PROMPT, **GREEDY)
        return
    for inputs in (padded([[5, 6, 7, 8, 9]]), padded([[3, 4, 5, 6], [7, 8]])):
        plain = wrapper.generate(**inputs, **GREEDY, pad_token_id=0)
        assert plain.tolist() != random_models[name].generate(**inputs, **GREEDY, pad_token_id=0).tolist()
        drafter = Oracle(unpadded(plain.tolist(), inputs), PATTERN, VOCAB, width)
        for target in (wrapper, wrapper.base_model):
            with accelplug.attach(target, drafter=drafter) as session:
                assert wrapper.generate(**inputs, **GREEDY, pad_token_id=0).tolist() == plain.tolist()
            assert 0 < session.stats.accepted < session.stats.drafted
            assert session.stats.batches == (None if len(plain) == 1 else "lockstep")


def with_layers(config: Any, count: int) -> Any:
    config.num_layers = count
    return config


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize.*:UserWarning")
def test_activations_that_are_rounded_together_are_refused(model):
    """Plain decoding of the same tokens, one by one and in one pass, differs too."""
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(HostError, match="a dynamically quantised Linear rounds all tokens together in a forward pass"):
        accelplug.attach(quantised, drafter="prompt_lookup")
    accelplug.generate(quantised, PROMPT, drafter="prompt_lookup", allow_lossy=True, **GREEDY)


def test_a_pipeline(model, tokenizer):
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    plain = write("&'()*&'()*", **GREEDY)
    with accelplug.attach(model, drafter="prompt_lookup(min_ngram=1)") as session:
        assert write("&'()*&'()*", **GREEDY) == plain
    assert session.stats.accepted > 0


def test_text_streamers(model, tokenizer):
    plain = model.generate(PROMPT, **GREEDY)
    drafter = Oracle(plain.tolist(), PATTERN, VOCAB)

    def pieces(streamer: Any) -> list[str]:
        worker = threading.Thread(target=model.generate, args=(PROMPT,), kwargs={**GREEDY, "streamer": streamer})
        worker.start()
        found = list(streamer)
        worker.join()
        return found

    async def pieces_later() -> list[str]:
        streamer = AsyncTextIteratorStreamer(tokenizer, timeout=60)
        worker = threading.Thread(target=model.generate, args=(PROMPT,), kwargs={**GREEDY, "streamer": streamer})
        worker.start()
        return [piece async for piece in streamer]

    expected = pieces(TextIteratorStreamer(tokenizer, timeout=60))
    assert asyncio.run(pieces_later()) == expected
    with accelplug.attach(model, drafter=drafter) as session:
        assert pieces(TextIteratorStreamer(tokenizer, timeout=60)) == expected
        assert asyncio.run(pieces_later()) == expected
    assert session.stats.accepted > 0


WAYS_IN = {
    "generate_batch": lambda model: model.generate_batch(inputs=[[5, 6, 7]], max_new_tokens=2),
    "paged cache": lambda model: model.generate(PROMPT, cache_implementation="paged", max_new_tokens=2),
    "manager": lambda model: model.init_continuous_batching(),
}


@pytest.mark.parametrize("enter", WAYS_IN.values(), ids=WAYS_IN)
def test_continuous_batching_is_refused_while_attached(model, enter):
    with (
        accelplug.attach(model, drafter="prompt_lookup"),
        pytest.raises(HostError, match="continuous batching runs without accelplug's drafts"),
    ):
        enter(model)
    assert "init_continuous_batching" not in vars(model)


def test_a_copy_of_an_attached_model_may_batch_continuously(model):
    with accelplug.attach(model, drafter="prompt_lookup"):
        copied = copy.deepcopy(model)
    assert copied.init_continuous_batching.__self__ is copied


class Budget(LogitsProcessor):
    """Has a model end its thinking behind so many tokens."""

    def __init__(self, tokens: int, ends: int) -> None:
        self.tokens, self.ends = tokens, ends

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        over = (input_ids.shape[1] >= PROMPT.shape[1] + self.tokens) & (input_ids != self.ends).all(1)
        ended = torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([self.ends]), 0.0)
        return torch.where(over.unsqueeze(1), ended, scores)


@pytest.mark.parametrize("sampling", [False, True])
def test_a_budget_for_thinking_holds_inside_drafts(model, sampling):
    """sgl-project/sglang#26330: with speculation a request's own processor was not asked, and a model thought on past its budget."""
    arguments = {**GREEDY, "do_sample": sampling, "input_ids": PROMPT}
    torch.manual_seed(0)
    unbounded = model.generate(**arguments)
    ends = next(token for token in range(10, VOCAB) if token not in unbounded[0].tolist())
    torch.manual_seed(0)
    bounded = model.generate(**arguments, logits_processor=[Budget(10, ends)])
    assert bounded[0, PROMPT.shape[1] :].tolist().index(ends) == 10
    torch.manual_seed(0)
    with accelplug.attach(model, drafter=Oracle(unbounded.tolist(), [(4, 0)], VOCAB)) as session:  # its third draft goes over the budget
        assert model.generate(**arguments, logits_processor=[Budget(10, ends)]).tolist() == bounded.tolist()
    assert 0 < session.stats.accepted < session.stats.drafted
