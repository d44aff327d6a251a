"""Encoder-decoder models equal plain ``generate()``: text in (T5, BART, T5Gemma) and sound in (Whisper)."""

from __future__ import annotations

import collections
import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    FSMTConfig,
    FSMTForConditionalGeneration,
    LogitsProcessor,
    ProphetNetConfig,
    ProphetNetForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig

import accelplug
from accelplug import HostError
from accelplug.hooks import CommitView, Drafts, DraftView, IntArray
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import VOCAB

IDS: dict[str, Any] = {
    "vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "decoder_start_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
LAYERS: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
}  # fmt: skip
EVENTS: collections.Counter[str] = collections.Counter()
HARD = (
    "zero accepted", "part accepted", "all accepted", "several accepted in every row", "EOS inside a draft", "budget clipped",
    "window wrapped", "processors on", "encoder padded", "decoder padded", "tree off the first branch",
)  # fmt: skip
WINDOW = 8


def t5() -> Any:
    """Distances are biased, and counted in cache slots; the decoder has fewer layers than the encoder, by which the cache is made."""
    return T5ForConditionalGeneration(T5Config(d_kv=8, d_ff=32, num_layers=3, num_decoder_layers=2, num_heads=4, d_model=32, **IDS))


def bart() -> Any:
    """Learned positions, counted in cache slots."""
    return BartForConditionalGeneration(BartConfig(max_position_embeddings=128, forced_eos_token_id=None, **LAYERS, **IDS))


def whisper() -> Any:
    """Sound in; learned positions that a caller may give."""
    sizes = {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 128}
    return WhisperForConditionalGeneration(WhisperConfig(begin_suppress_tokens=None, suppress_tokens=None, **sizes, **LAYERS, **IDS))


def t5gemma() -> Any:
    """Rotary positions; one windowed layer and one with full attention."""
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "sliding_window": WINDOW, "vocab_size": VOCAB,
    }  # fmt: skip
    config = T5GemmaConfig(encoder=T5GemmaModuleConfig(**sizes), decoder=T5GemmaModuleConfig(**sizes), **IDS)
    return T5GemmaForConditionalGeneration(config)


# Seed and scale of weights with which greedy output wanders instead of repeating one token.
MAKERS = {"t5": (t5, 2, 0.6), "bart": (bart, 2, 0.3), "whisper": (whisper, 2, 0.3), "t5gemma": (t5gemma, 1, 0.3)}
WITH_TREES = ("whisper", "t5gemma")


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    torch.set_num_threads(1)
    built = {}
    for name, (make, seed, scale) in MAKERS.items():
        torch.manual_seed(seed)
        model = make().eval()
        for weights in model.parameters():
            if weights.ndim > 1:
                torch.nn.init.normal_(weights, std=scale)
        model.generation_config.update(eos_token_id=None, forced_eos_token_id=None, max_length=None)
        built[name] = model
    return built


@dataclass
class Watched(Oracle):
    """The oracle, which keeps the encoder's tokens that it was shown, and counts what became of its drafts."""

    inputs: list[Any] = field(default_factory=list)
    drafted: IntArray | None = None

    def observe(self, view: CommitView) -> None:
        if self.drafted is not None and len(self.drafted) == len(view.accepted):
            for levels, accepted in zip((self.drafted // self.width).tolist(), view.accepted.tolist(), strict=True):
                if levels:
                    EVENTS["zero accepted" if accepted == 0 else "all accepted" if accepted == levels else "part accepted"] += 1
                    EVENTS["tree off the first branch"] += self.width > 1 and accepted > 0
            EVENTS["several accepted in every row"] += len(view.accepted) > 1 and bool((view.fresh > 1).all())

    def propose(self, view: DraftView) -> Drafts:
        self.inputs.append(None if view.inputs is None else [row.tolist() for row in view.inputs])
        drafts = super().propose(view)
        self.drafted = np.diff(drafts.offsets)
        EVENTS["budget clipped"] += bool((view.budgets < max(map(sum, self.pattern)) * self.width).any())
        return drafts


def inputs_of(name: str, lengths: list[int], seed: int) -> dict[str, Any]:
    """Return what the encoder reads: one row of tokens, padded on the right, or of sound for each length."""
    generator = torch.Generator().manual_seed(seed)
    if name == "whisper":
        return {"input_features": torch.randn(len(lengths), 8, 32, generator=generator)}
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return {"input_ids": torch.randint(3, VOCAB, mask.shape, generator=generator) * mask, "attention_mask": mask.long()}


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([1.1, 1.5]),
        "no_repeat_ngram_size": st.integers(2, 4),
        "encoder_no_repeat_ngram_size": st.integers(1, 2),
        "forced_bos_token_id": st.just(9),
        "forced_eos_token_id": st.just(11),
        "suppress_tokens": st.just([5, 6, 7]),
        "begin_suppress_tokens": st.just([8]),
        "min_new_tokens": st.integers(1, 20),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    name=st.sampled_from(sorted(MAKERS)),
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    new=st.integers(2, 40),
    pattern=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=4),
    width=st.sampled_from([1, 1, 3]),
    given_settings=SETTINGS,
    prompt=st.sampled_from(["start", "tokens", "padded tokens"]),
    stop=st.booleans(),
    where=st.integers(2, 30),
)
def test_every_row_equals_plain_generate(models, name, lengths, seed, new, pattern, width, given_settings, prompt, stop, where):
    model, inputs = models[name], inputs_of(name, lengths, seed)
    width = width if name in WITH_TREES else 1
    if name == "whisper":  # reads no tokens that could be repeated, and takes its suppressed tokens out of the call itself
        given_settings = {key: value for key, value in given_settings.items() if "suppress" not in key and "encoder" not in key}
    if prompt != "start":
        inputs["decoder_input_ids"] = torch.tensor([[2, 20, 21, 22]]).repeat(len(lengths), 1)
    if prompt == "padded tokens":
        inputs["decoder_attention_mask"] = torch.tensor([[1] * 4] * len(lengths))
        inputs["decoder_attention_mask"][0, :2] = 0
    # Whisper's generate() leaves the prompt out of its answer unless it is asked for a whole output.
    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    arguments = {"max_new_tokens": new, "do_sample": False, **given_settings, **wanted}
    free = model.generate(**inputs, **arguments).sequences.tolist()
    if stop:
        fresh = list(dict.fromkeys(free[where % len(free)][len(free[0]) - new :]))
        arguments["eos_token_id"] = fresh[where % len(fresh)]
    plain = model.generate(**inputs, **arguments)
    if prompt == "padded tokens":
        free[0] = free[0][2:]
    with accelplug.attach(model, drafter=Watched(free, pattern, VOCAB, width)) as session:
        fast = model.generate(**inputs, **arguments)

    assert type(fast) is type(plain)
    assert fast.sequences.tolist() == plain.sequences.tolist()
    made = len(plain.scores)
    assert len(fast.scores) == len(fast.logits) == made
    for ours, theirs in zip([*fast.scores, *fast.logits], [*plain.scores, *plain.logits], strict=True):
        torch.testing.assert_close(ours, theirs, atol=3e-4, rtol=3e-4)
    _check_caches(fast.past_key_values, plain.past_key_values)
    accepted = session.stats.accepted > 0
    EVENTS["EOS inside a draft"] += stop and len(lengths) == 1 and made < new and session.stats.forwards + session.stats.accepted > made
    EVENTS["window wrapped"] += name == "t5gemma" and made > WINDOW + 8 and accepted
    EVENTS["processors on"] += bool(given_settings) and accepted
    EVENTS["encoder padded"] += accepted and len(set(lengths)) > 1 and name != "whisper"
    EVENTS["decoder padded"] += accepted and prompt == "padded tokens"


def _check_caches(ours: Any, theirs: Any) -> None:
    """Compare the decoder's part where both are whole, and the encoder's, which no draft may touch."""
    assert ours.get_seq_length() == theirs.get_seq_length()
    for mine, other in _filled(ours.self_attention_cache, theirs.self_attention_cache):
        assert mine.keys.shape == other.keys.shape
        assert not getattr(mine, "record_past", False)
    for mine, other in _filled(ours.cross_attention_cache, theirs.cross_attention_cache):
        torch.testing.assert_close(mine.keys, other.keys)
        torch.testing.assert_close(mine.values, other.values)


def _filled(ours: Any, theirs: Any) -> list[tuple[Any, Any]]:
    """Pair the layers that hold something: the decoder's, of which there may be fewer than the encoder has."""
    pairs = list(zip(ours.layers, theirs.layers, strict=True))
    assert [mine.is_initialized for mine, _ in pairs] == [other.is_initialized for _, other in pairs]
    return [(mine, other) for mine, other in pairs if mine.is_initialized]


def test_every_hard_event_happened():
    print({event: int(count) for event, count in EVENTS.items()})
    missing = [event for event in HARD if not EVENTS[event]]
    assert not missing, f"the settings above never produced: {missing}"


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_sampling_takes_the_same_random_numbers_as_plain_sampling(models, name, width):
    model, inputs = models[name], inputs_of(name, [9, 4], 1)
    if width > 1 and name not in WITH_TREES:
        pytest.skip("trees are refused")
    arguments = {"max_new_tokens": 24, "do_sample": True, "temperature": 0.9, "top_k": 20, "return_dict_in_generate": True}
    accepted = 0
    for seed in range(3):
        torch.manual_seed(seed)
        plain = model.generate(**inputs, **arguments).sequences
        torch.manual_seed(seed)
        with accelplug.attach(model, drafter=Oracle(plain.tolist(), [(3, 1), (2, 0)], VOCAB, width)) as session:
            assert model.generate(**inputs, **arguments).sequences.tolist() == plain.tolist()
        accepted += session.stats.accepted
    assert accepted > 20


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", WITH_TREES)
def test_trees_in_both_attention_implementations(models, name, implementation):
    model, inputs = models[name], inputs_of(name, [9], 3)
    before = model.config._attn_implementation
    if implementation == "sdpa" and not model._supports_sdpa:
        pytest.skip("this release of Transformers runs the model without sdpa")
    model.set_attn_implementation(implementation)
    try:
        arguments = {"max_new_tokens": 30, "do_sample": False, "return_dict_in_generate": True}
        plain = model.generate(**inputs, **arguments).sequences
        with accelplug.attach(model, drafter=Oracle(plain.tolist(), [(4, 1), (0, 2), (2, 0)], VOCAB, 3)) as session:
            assert model.generate(**inputs, **arguments).sequences.tolist() == plain.tolist()
        assert session.stats.accepted > 10
        assert session.stats.forwards < 20
    finally:
        model.set_attn_implementation(before)


def fsmt() -> Any:
    sizes = {"src_vocab_size": VOCAB, "tgt_vocab_size": VOCAB, "langs": ["a", "b"]}
    return FSMTForConditionalGeneration(FSMTConfig(**sizes, **LAYERS, **IDS))


def prophetnet() -> Any:
    return ProphetNetForConditionalGeneration(ProphetNetConfig(hidden_size=32, num_encoder_layers=1, num_decoder_layers=1, **IDS))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (fsmt, "fsmt models, which read one token at a time; use another model"),
        (prophetnet, "prophetnet models, which read one token at a time; use another model"),
    ],
)
def test_models_that_differ_over_several_tokens_are_refused(make, sentence):
    with pytest.raises(HostError, match=sentence):
        accelplug.generate(make().eval(), torch.tensor([[4, 5]]), drafter="prompt_lookup", max_new_tokens=3, num_beams=1)


@pytest.mark.parametrize("name", sorted(set(MAKERS) - set(WITH_TREES)))
def test_trees_are_refused_where_positions_are_cache_slots(models, name):
    with pytest.raises(HostError, match=f"a tree of drafts cannot be verified in {name}'s attention; use a drafter of chains"):
        accelplug.generate(models[name], **inputs_of(name, [5], 0), drafter=Oracle([[1] * 9], [(1, 1)], VOCAB, 2), max_new_tokens=9)


def test_drafters_see_what_the_encoder_reads(models, random_models):
    def seen(model: Any, **arguments: Any) -> list[Any]:
        drafter = Watched([[1] * 99] * 4, [(1, 0)], VOCAB)
        accelplug.generate(model, drafter=drafter, max_new_tokens=3, **arguments)
        return drafter.inputs

    inputs = inputs_of("bart", [5, 3], 0)
    rows = [inputs["input_ids"][0].tolist(), inputs["input_ids"][1, :3].tolist()]
    assert seen(models["bart"], **inputs) == [rows] * 2
    assert seen(models["t5"], **inputs, do_sample=True, num_return_sequences=2)[0] == [rows[0], rows[0], rows[1], rows[1]]
    encoded = models["bart"].get_encoder()(inputs["input_ids"])
    assert seen(models["bart"], encoder_outputs=encoded)[0] is None
    assert seen(models["whisper"], **inputs_of("whisper", [1], 0))[0] is None
    assert seen(random_models["llama"], input_ids=inputs["input_ids"])[0] is None


class PrefersInput(LogitsProcessor):
    """Makes the model say its input again, but for one token in six."""

    def __init__(self, inputs: torch.Tensor) -> None:
        self.inputs = inputs

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        at = input_ids.shape[1] - 1
        if at < self.inputs.shape[1] and at % 6 != 4:
            scores = scores.scatter_add(1, self.inputs[:, at : at + 1], torch.full((len(scores), 1), 1000.0))
        return scores


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_input_copy_copies_what_the_encoder_reads(models, name):
    model, ids = models[name], torch.stack([torch.randperm(VOCAB - 3)[:40] + 3 for _ in range(2)])
    arguments: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False, "logits_processor": [PrefersInput(ids)]}
    plain = model.generate(ids, **arguments)
    with accelplug.attach(model, drafter="input_copy") as session:
        assert model.generate(ids, **arguments).tolist() == plain.tolist()
    assert session.stats.forwards < 40
    assert 0 < session.stats.accepted < session.stats.drafted


def test_long_sound_is_transcribed_piece_by_piece(models):
    """Whisper's own generate() calls the loop once per window, and tries again at a higher temperature."""
    model = copy.deepcopy(models["whisper"])
    of_timestamps = {"no_timestamps_token_id": 60, "eos_token_id": 50, "max_initial_timestamp_index": None, "is_multilingual": False}
    for name, value in of_timestamps.items():
        setattr(model.generation_config, name, value)
    sound = torch.randn(1, 8, 3 * 32, generator=torch.Generator().manual_seed(4))
    arguments: dict[str, Any] = {"max_new_tokens": 20, "temperature": (0.0, 0.5), "logprob_threshold": -1.0, "return_timestamps": True}
    torch.manual_seed(0)
    plain = model.generate(sound, **arguments)
    torch.manual_seed(0)
    with accelplug.attach(model, drafter="prompt_lookup(min_ngram=1)") as session:
        assert model.generate(sound, **arguments).tolist() == plain.tolist()
    assert session.stats.requests > 2
    assert session.stats.accepted > 0


def test_a_model_whose_generate_has_a_loop_of_its_own_is_named(models, monkeypatch):
    model = models["bart"]
    own = type(model).generate

    def generate(self: Any, *args: Any, custom_generate: Any = None, **rest: Any) -> Any:
        assert custom_generate is not None
        return own(self, *args, **rest)

    monkeypatch.setattr(type(model), "generate", generate)
    with pytest.raises(HostError, match=r"BartForConditionalGeneration.generate\(\) has a decoding loop of its own"):
        accelplug.generate(model, **inputs_of("bart", [4], 0), drafter="prompt_lookup", max_new_tokens=3)
