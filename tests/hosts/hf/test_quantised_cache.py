"""Quantised caches: drafts end where a block of tokens is rounded, so that it is rounded as in plain decoding."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import cache_utils
from transformers.cache_utils import Cache, QuantizedLayer

import accelplug
from accelplug.hooks import CommitView, Drafts, DraftView
from accelplug.hosts.hf.compat import cache_name
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import VOCAB
from tests.hosts.hf.test_batches import padded, unpadded

PATTERN = [(3, 1), (0, 2), (2, 0), (0, 0), (6, 0), (1, 3)]
PROMPTS = {"one": [[5, 6, 7, 8, 9]], "padded": [[3, 4, 5, 6], [7, 8]]}
BLOCK = 8


class Rounded(QuantizedLayer):
    """Transformers' layer, with three bits and one scale for all tokens: what comes into one rounding changes all of it."""

    def _quantize(self, tensor: torch.Tensor, axis: int) -> Any:
        scale = tensor.abs().amax() / 3
        return (tensor / scale).round().to(torch.int8), scale

    def _dequantize(self, q_tensor: Any) -> torch.Tensor:
        values, scale = q_tensor
        return values * scale


@dataclass
class Watched(Oracle):
    """The oracle, counting what became of its drafts."""

    events: collections.Counter[str] = field(default_factory=collections.Counter)
    last: int = 0

    def observe(self, view: CommitView) -> None:
        accepted = int(view.accepted[0])
        self.events["all rejected" if not accepted else "some rejected" if accepted < self.last else "none rejected"] += self.last > 0

    def propose(self, view: DraftView) -> Drafts:
        right, wrong = self.pattern[self.steps % len(self.pattern)]
        drafts = super().propose(view)
        self.last = int(drafts.offsets[1])
        left = len(self.sequences[0]) - int(view.lengths[0])
        self.events["cut at a block"] += bool(self.last < min(left, right + wrong))
        return drafts


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_output_and_cache_are_plain_generates(random_models, name, prompts, width):
    model, inputs = random_models[name], padded(prompts)
    arguments = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True, "output_scores": True}

    def cache() -> Cache:
        return Cache(layers=[Rounded(residual_length=BLOCK) for _ in range(2)])

    plain = model.generate(**inputs, past_key_values=cache(), **arguments)
    assert plain.sequences.tolist() != model.generate(**inputs, **arguments).sequences.tolist(), "the rounding makes no difference"
    drafter = Watched(unpadded(plain.sequences.tolist(), inputs), PATTERN, VOCAB, width)
    with accelplug.attach(model, drafter=drafter):
        fast = model.generate(**inputs, past_key_values=cache(), **arguments)
    assert fast.sequences.tolist() == plain.sequences.tolist()
    for ours, theirs in zip(fast.scores, plain.scores, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    for mine, other in zip(fast.past_key_values.layers, plain.past_key_values.layers, strict=True):
        assert mine.get_seq_length() == other.get_seq_length()
        assert mine.keys.shape == other.keys.shape
        torch.testing.assert_close(mine._quantized_keys[1], other._quantized_keys[1])
    print(dict(drafter.events))
    assert drafter.events["some rejected"]
    assert drafter.events["all rejected"]
    assert width > 1 or drafter.events["cut at a block"]


@pytest.mark.skipif(not hasattr(cache_utils, "Fp8QuantizedLayer"), reason="Transformers has FP8 caches from 5.24 on")
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_fp8(random_models, prompts, width):
    model, inputs = random_models["llama"], padded(prompts)
    arguments = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
    quantised = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    plain = model.generate(**inputs, **arguments, **quantised)
    drafter = Watched(unpadded(plain.sequences.tolist(), inputs), PATTERN, VOCAB, width)
    with accelplug.attach(model, drafter=drafter):
        fast = model.generate(**inputs, **arguments, **quantised)
    assert fast.sequences.tolist() == plain.sequences.tolist()
    for mine, other in zip(fast[cache_name()].layers, plain[cache_name()].layers, strict=True):
        assert mine.get_seq_length() == other.get_seq_length()
        # Rounding of a step's arithmetic may come to the next of eight bits.
        torch.testing.assert_close(*(layer._quantized_keys[0].float()[0] for layer in (mine, other)), atol=0.01, rtol=0.13)
    assert drafter.events["some rejected"]
    assert drafter.events["all rejected"]


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_hqq(random_models, prompts, width):
    pytest.importorskip("hqq", reason="the backend 'hqq' needs hqq")
    model, inputs = random_models["llama"], padded(prompts)
    config = {"backend": "hqq", "nbits": 4, "q_group_size": 16, "residual_length": BLOCK, "axis_key": 1, "axis_value": 1}
    arguments = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0, "cache_implementation": "quantized", "cache_config": config}
    plain = model.generate(**inputs, **arguments).tolist()
    drafter = Watched(unpadded(plain, inputs), PATTERN, VOCAB, width)
    with accelplug.attach(model, drafter=drafter):
        assert model.generate(**inputs, **arguments).tolist() == plain
    assert drafter.events["some rejected"]
    assert width > 1 or drafter.events["cut at a block"]


@pytest.mark.by_hand  # optimum-quanto compiles a kernel for minutes when it is first used
def test_quanto(random_models):
    pytest.importorskip("optimum.quanto", reason="cache_implementation='quantized' needs optimum-quanto")
    model = random_models["llama"]
    config = {"backend": "quanto", "nbits": 4, "q_group_size": 16, "residual_length": BLOCK, "axis_key": 0, "axis_value": 0}
    arguments = {"max_new_tokens": 40, "do_sample": False, "cache_implementation": "quantized", "cache_config": config}
    inputs = torch.tensor(PROMPTS["one"])
    plain = model.generate(inputs, **arguments)
    with accelplug.attach(model, drafter=Oracle(plain.tolist(), PATTERN, VOCAB)) as session:
        assert model.generate(inputs, **arguments).tolist() == plain.tolist()
    assert 0 < session.stats.accepted < session.stats.drafted
