"""Attentions and hidden states of each generated token: those of plain ``generate()``, whatever was drafted around them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

import accelplug
from accelplug import HostError
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import VOCAB
from tests.hosts.hf.test_batches import padded, unpadded

PATTERN = [(3, 1), (0, 2), (2, 0), (0, 0), (1, 2), (5, 1)]
WANTED: dict[str, Any] = {"return_dict_in_generate": True, "output_attentions": True, "output_hidden_states": True}
PROMPTS = {"one": [[5, 6, 7, 8, 9]], "padded": [[3, 4, 5, 6], [7, 8]]}
NAMES = (
    "attentions",
    "hidden_states",
    "decoder_attentions",
    "decoder_hidden_states",
    "cross_attentions",
    "encoder_attentions",
    "encoder_hidden_states",
)


@pytest.fixture
def eager(random_models: dict[str, Any]) -> Any:
    """Copies of the models with attention that tells its weights; Transformers leaves hooks in a model that was asked for them."""
    models = {name: copy.deepcopy(random_models[name]) for name in ("llama", "gemma3")}
    for model in models.values():
        model.set_attn_implementation("eager")
    return models


def same(ours: Any, theirs: Any) -> None:
    """Compare nested tuples of tensors; what a row has of padding counts, too."""
    if isinstance(theirs, tuple):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            same(mine, other)
    elif theirs is None:
        assert ours is None
    else:
        torch.testing.assert_close(ours, theirs, atol=5e-4, rtol=5e-3)


def check(model: Any, inputs: dict[str, torch.Tensor], width: int, **arguments: Any) -> None:
    arguments = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0, **WANTED, **arguments}
    plain = model.generate(**inputs, **arguments)
    start = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    known = plain.sequences.tolist() if model.config.is_encoder_decoder else unpadded(plain.sequences.tolist(), inputs)
    with accelplug.attach(model, drafter=Oracle(known, PATTERN, VOCAB, width)) as session:
        fast = model.generate(**inputs, **arguments)
    assert fast.sequences.tolist() == plain.sequences.tolist()
    assert 0 < session.stats.accepted < session.stats.drafted
    for name in NAMES:
        same(getattr(fast, name, None), getattr(plain, name, None))
    kept = fast.decoder_hidden_states if model.config.is_encoder_decoder else fast.hidden_states
    assert len(kept) == plain.sequences.shape[1] - start


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_every_token_has_its_own(eager, name, width, cache):
    """Gemma's windows of 16 fill up on the way, so that layers see fewer columns than there are tokens."""
    for prompts in PROMPTS.values():
        check(eager[name], padded(prompts), width, cache_implementation=cache)


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_every_token_has_all_before_it_without_a_cache(eager, name, width):
    check(eager[name], padded([[3, 4, 5, 6], [7, 8, 9, 3]]), width, use_cache=False)
    with pytest.raises(HostError, match="without a cache the hidden states and attentions of a prompt's padding"):
        accelplug.generate(eager[name], **padded(PROMPTS["padded"]), drafter="prompt_lookup", max_new_tokens=4, use_cache=False, **WANTED)


def test_an_end_inside_a_draft(eager):
    known = eager["llama"].generate(torch.tensor(PROMPTS["one"]), max_new_tokens=30, do_sample=False)[0].tolist()
    eos = next(known[i] for i in range(12, 35) if known[i] not in known[5:i])
    check(eager["llama"], padded(PROMPTS["one"]), 1, eos_token_id=eos)


def test_an_encoder_decoder():
    torch.manual_seed(2)
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "init_std": 0.3, "attn_implementation": "eager"}
    special = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": 0, "decoder_start_token_id": 1, "forced_eos_token_id": None}
    model = BartForConditionalGeneration(BartConfig(vocab_size=VOCAB, **sizes, **heads, **special)).eval()
    model.generation_config.eos_token_id = None
    check(model, padded([[5, 6, 7, 8, 9, 11, 12]]), 1)
    check(model, padded([[5, 6, 7, 8, 9, 11, 12]]), 1, use_cache=False)


def test_hidden_states_behind_recurrent_layers():
    """What such layers read a second time in a step is no token of the step's."""
    from tests.hosts.hf.test_recurrent import PROMPTS as TEXTS
    from tests.hosts.hf.test_recurrent import VOCAB as FEW
    from tests.hosts.hf.test_recurrent import lfm2

    torch.manual_seed(3)
    model = lfm2().eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.normal_(0, 0.3)
    model.generation_config.eos_token_id = None
    arguments = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0, **WANTED}
    inputs = padded(TEXTS["padded"])
    plain = model.generate(**inputs, **arguments)
    with accelplug.attach(model, drafter=Oracle(unpadded(plain.sequences.tolist(), inputs), PATTERN, FEW)) as session:
        fast = model.generate(**inputs, **arguments)
    assert 0 < session.stats.accepted < session.stats.drafted
    same(fast.hidden_states, plain.hidden_states)
    same(fast.attentions, plain.attentions)
