"""Static caches: rejected drafts are taken back in place, and the output is plain ``generate()``'s on the same kind of cache."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import StaticCache

import accelplug
from accelplug.hooks import CommitView
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import VOCAB
from tests.hosts.hf.test_batches import padded, unpadded
from tests.hosts.hf.test_session import PROMPT

PATTERN = [(3, 1), (0, 2), (2, 0), (0, 0), (5, 0)]


@dataclass
class Watched(Oracle):
    """The oracle, counting how many drafts were accepted per step."""

    def start(self, slots: Any) -> None:
        super().start(slots)
        self.seen: collections.Counter[int] = collections.Counter()

    def observe(self, view: CommitView) -> None:
        self.seen.update(view.accepted.tolist())


SAMPLED = {"do_sample": True, "temperature": 0.8}


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize(
    ("name", "implementation", "extra"),
    [
        ("llama", "sdpa", {"repetition_penalty": 1.3}),
        ("llama", "sdpa", SAMPLED),
        ("qwen3", "eager", {}),
    ],
)
def test_equals_plain_generate(random_models, name, implementation, extra, width):
    model = random_models[name]
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    for inputs in (padded(PROMPT.tolist()), padded([[3, 4, 5, 6], [7, 8], [9, 10, 11, 12, 13]])):
        _check(model, inputs, extra, width)
    model.set_attn_implementation(before)


def _check(model: Any, inputs: dict[str, torch.Tensor], extra: dict[str, Any], width: int) -> None:
    arguments = {"max_new_tokens": 36, "do_sample": False, "pad_token_id": 0, "cache_implementation": "static", **extra}
    start = inputs["input_ids"].shape[1]
    known = _run(model, inputs, arguments).sequences.tolist()
    arguments["eos_token_id"] = max(known[0][start:], key=lambda token: known[0].index(token, start))  # the latest newcomer
    plain = _run(model, inputs, arguments)
    drafter = Watched(unpadded(known, inputs), PATTERN, VOCAB, width)
    with accelplug.attach(model, drafter=drafter) as session:
        fast = _run(model, inputs, arguments)
    assert fast.sequences.tolist() == plain.sequences.tolist()
    assert session.stats.batches == (None if len(known) == 1 else "lockstep")
    assert drafter.seen[0]
    assert max(drafter.seen) >= (2 if len(known) == 1 else 1)
    _same_cache(fast.past_key_values, plain.past_key_values)


def _run(model: Any, inputs: dict[str, torch.Tensor], arguments: dict[str, Any]) -> Any:
    torch.manual_seed(2)
    return model.generate(**inputs, **{**arguments, "return_dict_in_generate": True})


def _same_cache(ours: Any, theirs: Any) -> None:
    """Behind the last token of plain decoding lies what rejected drafts left: nothing attends to it."""
    length = int(theirs.get_seq_length())
    assert int(ours.get_seq_length()) == length
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        assert mine.keys.shape == other.keys.shape
        torch.testing.assert_close(mine.keys[:, :, :length][0], other.keys[:, :, :length][0], atol=2e-4, rtol=2e-3)


def test_one_wrong_draft_takes_nothing_out_of_a_window(random_models):
    """A static window is a ring: the draft's place held the oldest token, which the next step still sees."""
    model = random_models["mistral"]
    arguments = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0, "cache_implementation": "static"}
    known = model.generate(PROMPT, **arguments).tolist()
    with accelplug.attach(model, drafter=Oracle(known, [(0, 1)], VOCAB)) as session:
        assert model.generate(PROMPT, **arguments).tolist() == known
    assert session.stats.drafted > 30
    assert session.stats.accepted == 0


@pytest.mark.parametrize("width", [1, 3])
def test_drafts_stay_inside_a_cache_that_ends_before_the_length_limit(random_models, width):
    """EOS comes in time, so plain decoding is fine; drafts must not be written behind the end."""
    model = random_models["llama"]
    known = model.generate(PROMPT, max_new_tokens=30, do_sample=False).tolist()
    eos = next(token for token in known[0][17:] if token not in known[0][5:17])
    size = known[0].index(eos, 5)  # every token but the last is in the cache
    arguments = {"max_new_tokens": 60, "do_sample": False, "eos_token_id": eos, "pad_token_id": 0}
    plain = model.generate(PROMPT, past_key_values=StaticCache(config=model.config, max_cache_len=size), **arguments).tolist()
    drafter = Oracle([known[0] + [1] * 40], [(9, 9)], VOCAB, width)
    fast = accelplug.generate(
        model, PROMPT, drafter=drafter, past_key_values=StaticCache(config=model.config, max_cache_len=size), **arguments
    )
    assert fast.tolist() == plain


def test_a_conversation_goes_on_in_a_static_cache(random_models):
    model = random_models["llama"]
    outputs = []
    for drafter in (None, Oracle([range(VOCAB)], [(0, 3)], VOCAB)):
        ids, cache = PROMPT, StaticCache(config=model.config, max_cache_len=64)
        for turn in ([11, 12], [13, 14, 15], []):
            ids = accelplug.generate(model, ids, drafter=drafter, max_new_tokens=9, do_sample=False, past_key_values=cache)
            ids = torch.cat([ids, torch.tensor([turn], dtype=torch.long)], 1)
        outputs.append(ids.tolist())
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("name", ["gemma3", "mistral"])
def test_windows_get_back_what_rejected_drafts_pushed_out(random_models, name, width):
    """Before the window of 16 is full, while it fills inside a draft, and behind that; 15 drafts are the most that it can take back."""
    model = random_models[name]
    for inputs in (padded([[5, 6, 7]]), padded([[3, 4, 5, 6], [7, 8]]), padded([list(range(3, 30))])):
        arguments = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0, "cache_implementation": "static"}
        plain = _run(model, inputs, arguments)
        known = unpadded(plain.sequences.tolist(), inputs)
        drafter = Watched(known, [(2, 3), (0, 2), (11, 9), (0, 0), (5, 0), (1, 1)], VOCAB, width)
        with accelplug.attach(model, drafter=drafter) as session:
            fast = _run(model, inputs, arguments)
        assert fast.sequences.tolist() == plain.sequences.tolist()
        assert drafter.seen[0]
        assert max(drafter.seen) >= (7 if len(known) == 1 else 1)
        assert session.stats.accepted < session.stats.drafted
        for mine, other in zip(fast.past_key_values.layers, plain.past_key_values.layers, strict=True):
            assert int(mine.get_seq_length()) == int(other.get_seq_length())
            held = min(int(other.get_seq_length()), other.max_cache_len)
            torch.testing.assert_close(mine.keys[0, :, :held], other.keys[0, :, :held], atol=2e-4, rtol=2e-3)
