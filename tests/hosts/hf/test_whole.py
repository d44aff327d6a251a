"""Without a cache each forward pass reads the whole text, the drafts behind it: every row is what plain ``generate()`` writes."""

from __future__ import annotations

import collections
import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertLMHeadModel,
    DynamicCache,
    MambaConfig,
    MambaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    ReformerConfig,
    ReformerModelWithLMHead,
    XLMConfig,
    XLMWithLMHeadModel,
    XLNetConfig,
    XLNetLMHeadModel,
)

import accelplug
from accelplug import HostError
from accelplug.hooks import CommitView, Drafts, DraftView, IntArray
from accelplug.testing.oracle import Oracle
from tests.hosts.hf import test_encoder_decoder as two_sided
from tests.hosts.hf.conftest import VOCAB
from tests.hosts.hf.test_batches import padded, unpadded
from tests.hosts.hf.test_greedy_exact import Recorder

EVENTS: collections.Counter[str] = collections.Counter()
HARD = (
    "zero accepted", "part accepted", "all accepted", "rows accept differently", "EOS inside a draft", "rows of several lengths", "a row leaves",
    "padded prompts", "processors on", "a tree off its first branch", "chains behind recurrent layers", "drafts in a decoder",
)  # fmt: skip
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCAB}
HEADS: dict[str, Any] = {"num_attention_heads": 2, "intermediate_size": 32}
PROMPT = torch.tensor([[5, 6, 7, 8, 9]])
GREEDY: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}


def gpt() -> Any:
    """Transformers gives it no cache, whatever it is asked for."""
    return OpenAIGPTLMHeadModel(OpenAIGPTConfig(n_positions=128, n_embd=32, n_layer=2, n_head=2, vocab_size=VOCAB))


def reformer() -> Any:
    """It has a memory of its own kind."""
    sizes = {"max_position_embeddings": 128, "attention_head_size": 16, "feed_forward_size": 32, "local_attn_chunk_length": 4}
    chunks = {"attn_layers": ["local", "local"], "local_num_chunks_before": 1, "local_num_chunks_after": 0, "axial_pos_embds": False}
    return ReformerModelWithLMHead(ReformerConfig(is_decoder=True, hidden_size=32, num_attention_heads=2, vocab_size=VOCAB, **sizes, **chunks))


def mamba() -> Any:
    return MambaForCausalLM(MambaConfig(**SMALL))


def both_ways() -> Any:
    return BertLMHeadModel(BertConfig(is_decoder=False, **SMALL, **HEADS))


def xlm() -> Any:
    return XLMWithLMHeadModel(XLMConfig(emb_dim=32, n_layers=1, n_heads=2, causal=True, n_langs=1, mask_token_id=5, vocab_size=VOCAB))


def xlnet() -> Any:
    return XLNetLMHeadModel(XLNetConfig(d_model=32, n_layer=1, n_head=2, d_inner=32, vocab_size=VOCAB))


def wandering(make: Any, seed: int = 2, scale: float = 0.3) -> Any:
    torch.manual_seed(seed)
    model = make().eval()
    for weights in model.parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=scale)
    model.generation_config.update(eos_token_id=None, forced_eos_token_id=None, max_length=None)
    return model


@pytest.fixture(scope="module")
def models(random_models: dict[str, Any]) -> dict[str, Any]:
    own = {"gpt": wandering(gpt), "mamba": wandering(mamba)}
    decoders = {name: wandering(*two_sided.MAKERS[name]) for name in ("bart", "t5gemma")}
    return {**{name: random_models[name] for name in ("llama", "gemma3", "mistral")}, **own, **decoders}


class Watched(Oracle):
    """The oracle, which counts what became of its drafts."""

    drafted: IntArray | None = None

    def observe(self, view: CommitView) -> None:
        accepted = view.accepted.tolist()
        EVENTS["rows accept differently"] += len(set(accepted)) > 1
        EVENTS["rows of several lengths"] += len(set(view.fresh.tolist())) > 1
        EVENTS["a tree off its first branch"] += self.width > 1 and any(accepted)
        if self.drafted is not None:
            EVENTS["a row leaves"] += len(accepted) < len(self.drafted)
            for drafted, kept in zip((self.drafted // self.width).tolist(), accepted, strict=False):
                if drafted and len(accepted) == len(self.drafted):
                    EVENTS["zero accepted" if not kept else "all accepted" if kept == drafted else "part accepted"] += 1

    def propose(self, view: DraftView) -> Drafts:
        drafts = super().propose(view)
        self.drafted = np.diff(drafts.offsets)
        return drafts


SETTINGS = st.fixed_dictionaries(
    {}, optional={"repetition_penalty": st.sampled_from([1.1, 1.5]), "no_repeat_ngram_size": st.integers(2, 4), "min_new_tokens": st.integers(1, 12)}
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    name=st.sampled_from(["llama", "gemma3", "mistral", "gpt", "mamba", "bart", "t5gemma"]),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    new=st.integers(2, 20),
    pattern=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=4),
    width=st.sampled_from([1, 1, 3]),
    given_settings=SETTINGS,
    stop=st.booleans(),
    where=st.integers(2, 20),
    batches=st.sampled_from(["auto", "auto", "lockstep"]),
    whole_output=st.booleans(),
)
def test_every_row_equals_plain_generate(
    models, name, lengths, seed, new, pattern, width, given_settings, stop, where, batches, whole_output
):
    model, two = models[name], name in two_sided.MAKERS
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length in lengths]
    inputs = two_sided.inputs_of(name, lengths, seed) if two else padded(prompts)
    width = 1 if name in ("gpt", "mamba", "bart") else width
    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True} if whole_output else {}
    arguments = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0, "use_cache": name == "gpt", **given_settings}
    free = model.generate(**inputs, **arguments)
    if stop:
        fresh = list(dict.fromkeys(free[where % len(free), -new:].tolist()))
        arguments["eos_token_id"] = fresh[where % len(fresh)]
    plain = model.generate(**inputs, **arguments, **wanted)
    known = free.tolist() if two else unpadded(free.tolist(), inputs)
    with accelplug.attach(model, drafter=Watched(known, pattern, VOCAB, width), batches=batches) as session:
        fast = model.generate(**inputs, **arguments, **wanted)

    if whole_output:
        assert type(fast) is type(plain)
        assert list(fast) == list(plain)
        for ours, theirs in zip([*fast.scores, *fast.logits], [*plain.scores, *plain.logits], strict=True):
            torch.testing.assert_close(ours, theirs, atol=3e-4, rtol=3e-4)
        fast, plain = fast.sequences, plain.sequences
    assert fast.tolist() == plain.tolist()
    accepted, made = session.stats.accepted > 0, plain.shape[1] - (1 if two else max(lengths))
    EVENTS["EOS inside a draft"] += stop and len(lengths) == 1 and made < new and session.stats.forwards + session.stats.accepted > made
    EVENTS["padded prompts"] += accepted and not two and len(set(lengths)) > 1
    EVENTS["processors on"] += accepted and bool(given_settings)
    EVENTS["chains behind recurrent layers"] += accepted and name == "mamba"
    EVENTS["drafts in a decoder"] += accepted and two


def test_every_hard_event_happened():
    print({event: int(count) for event, count in EVENTS.items()})
    missing = [event for event in HARD if not EVENTS[event]]
    assert not missing, f"the settings above never produced: {missing}"


@pytest.mark.parametrize("name", ["llama", "gpt", "bart"])
def test_every_pass_reads_the_whole_text_and_few_do(models, name, monkeypatch):
    """Fourteen passes in plain decoding's 20, each as long as the text and its drafts, and no cache."""
    model, read = models[name], []
    forward = model.forward

    @functools.wraps(forward)
    def watched(*arguments: Any, **named: Any) -> Any:
        read.append(named["decoder_input_ids" if name == "bart" else "input_ids"].shape[1])
        assert name == "gpt" or named.get("past_key_values") is None
        return forward(*arguments, **named)

    monkeypatch.setattr(model, "forward", watched)
    plain = model.generate(PROMPT, use_cache=False, **GREEDY)
    begins = 1 if name == "bart" else 5
    assert read == list(range(begins, begins + 20))
    read.clear()
    drafter = Oracle(plain.tolist(), [(3, 1)], VOCAB)
    assert accelplug.generate(model, PROMPT, drafter=drafter, use_cache=False, **GREEDY).tolist() == plain.tolist()
    assert read == [begins, *(begins + 5 + 4 * i for i in range(4)), begins + 19]


@pytest.mark.parametrize("name", ["llama", "gpt", "t5gemma"])
def test_sampling_takes_the_same_random_numbers_as_plain_sampling(models, name):
    model, width = models[name], 1 if name == "gpt" else 2
    inputs = two_sided.inputs_of(name, [9, 4], 1) if name == "t5gemma" else padded([[5, 6, 7, 8], [9, 4]])
    arguments = {"max_new_tokens": 16, "do_sample": True, "temperature": 0.9, "top_k": 20, "pad_token_id": 0, "use_cache": False}
    torch.manual_seed(3)
    plain = model.generate(**inputs, **arguments)
    known = plain.tolist() if name == "t5gemma" else unpadded(plain.tolist(), inputs)
    torch.manual_seed(3)
    with accelplug.attach(model, drafter=Oracle(known, [(3, 1), (2, 0)], VOCAB, width)) as session:
        assert model.generate(**inputs, **arguments).tolist() == plain.tolist()
    assert 0 < session.stats.accepted < session.stats.drafted


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_trees_in_both_attention_implementations(models, name, implementation):
    model = copy.deepcopy(models[name])
    model.set_attn_implementation(implementation)
    inputs = padded([[5, 6, 7, 8, 9], [4, 3]])
    plain = model.generate(**inputs, use_cache=False, **GREEDY)
    drafter = Oracle(unpadded(plain.tolist(), inputs), [(4, 1), (0, 2), (2, 0)], VOCAB, 3)
    with accelplug.attach(model, drafter=drafter) as session:
        assert model.generate(**inputs, use_cache=False, **GREEDY).tolist() == plain.tolist()
    assert session.stats.batches == "ragged"
    assert 10 < session.stats.accepted < session.stats.drafted


def test_streams_grammars_and_built_in_drafters(models, tokenizer):
    model = models["llama"]
    for drafter in ("prompt_lookup(min_ngram=1)", "suffix", "token_recycling", "transformers_candidates"):
        ours, theirs = Recorder(), Recorder()
        plain = model.generate(PROMPT, streamer=theirs, use_cache=False, **GREEDY)
        assert accelplug.generate(model, PROMPT, drafter=drafter, streamer=ours, use_cache=False, **GREEDY).tolist() == plain.tolist()
        assert vars(ours) == vars(theirs)
    model = copy.deepcopy(model)
    model.generation_config.eos_token_id = 1
    grammar = accelplug.grammar(model, {"regex": "(abc){4}x"}, tokenizer=tokenizer)
    plain = model.generate(PROMPT, logits_processor=[grammar.after({"input_ids": PROMPT})], use_cache=False, **GREEDY)
    with accelplug.attach(model, grammar=grammar) as session:
        assert model.generate(PROMPT, use_cache=False, **GREEDY).tolist() == plain.tolist()
    assert session.stats.accepted > 5


def test_a_model_that_trains_with_gradient_checkpointing(models):
    """Its layers take the cache away, behind which plain generate() goes on to read one token at a time."""
    model = copy.deepcopy(models["llama"]).train()
    expected = model.generate(PROMPT, **GREEDY).tolist()
    model.gradient_checkpointing_enable()
    assert model.generate(PROMPT, **GREEDY).tolist() != expected, "plain generate() no longer forgets the text"
    assert model.generate(PROMPT, use_cache=False, **GREEDY).tolist() == expected
    with accelplug.attach(model, drafter=Oracle(expected, [(3, 1)], VOCAB)) as session:
        assert model.generate(PROMPT, use_cache=False, **GREEDY).tolist() == expected
        assert 0 < session.stats.accepted < session.stats.drafted
        with pytest.raises(HostError, match=r"gradient checkpointing in a model that is training, .*; pass use_cache=False, or call model.eval\(\)"):
            model.generate(PROMPT, **GREEDY)


def test_a_model_with_a_memory_of_its_own_kind_runs_without_it():
    model = wandering(reformer)
    plain = model.generate(PROMPT, use_cache=False, **GREEDY)
    with accelplug.attach(model, drafter=Oracle(plain.tolist(), [(3, 1)], VOCAB)) as session:
        assert model.generate(PROMPT, use_cache=False, **GREEDY).tolist() == plain.tolist()
        assert 0 < session.stats.accepted < session.stats.drafted
        with pytest.raises(HostError, match=r"ReformerModelWithLMHead keeps a memory of its own kind, .*; pass use_cache=False"):
            model.generate(PROMPT, **GREEDY)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (both_ways, "BertLMHeadModel makes something else of a token once others follow it, .*; use a causal model"),
        (xlm, "XLMWithLMHeadModel foretells at a token put behind the text"),
        (xlnet, "XLNetLMHeadModel keeps a memory of its own kind, .*; use another model"),
    ],
)
def test_models_that_drafts_would_change_are_refused(make, sentence):
    with pytest.raises(HostError, match=sentence):
        accelplug.generate(wandering(make), PROMPT, drafter="prompt_lookup", use_cache=False, **GREEDY)


def test_what_plain_generate_gets_wrong_itself_is_refused(models):
    cache = DynamicCache(config=models["llama"].config)
    with pytest.raises(HostError, match=r"a cache beside use_cache=False, .*; leave one of them out"):
        accelplug.generate(models["llama"], PROMPT, past_key_values=cache, use_cache=False, drafter="prompt_lookup", **GREEDY)


@pytest.mark.parametrize(("name", "sentence"), [("gpt", "openai-gpt's attention"), ("mamba", "recurrent layers, which read")])
def test_trees_are_refused_where_attention_takes_no_mask_of_ours(models, name, sentence):
    with pytest.raises(HostError, match=f"a tree of drafts cannot be verified in {sentence}"):
        accelplug.generate(models[name], PROMPT, drafter=Oracle([[1] * 50], [(1, 1)], VOCAB, 2), use_cache=False, **GREEDY)
