"""suffix over finished requests inside ``generate()``: same output, more accepted, and only where the user asked for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import accelplug
from accelplug import HostError
from accelplug.testing import DrafterConformance

GREEDY: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
SHARED = "suffix(scope='process', memory=1)"


class TestShared(DrafterConformance):
    """What the kit asks of a drafter that declares that it remembers other requests."""

    technique = SHARED


@pytest.mark.parametrize("shape", ["chain", "tree"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_second_time_the_answer_is_drafted_and_the_same(random_models, name, shape):
    model, prompts = random_models[name], torch.tensor([[5, 6, 7], [9, 8, 7]])
    plain = [model.generate(prompts, attention_mask=torch.ones_like(prompts), **GREEDY).tolist() for _ in range(2)]
    with accelplug.attach(model, drafter=f"suffix(scope='process', shape='{shape}', factor=2.0)") as session:
        accepted = []
        for expected in plain:
            before = session.stats.accepted
            assert model.generate(prompts, attention_mask=torch.ones_like(prompts), **GREEDY).tolist() == expected
            accepted.append(session.stats.accepted - before)
        eos = plain[0][0][30]
        ended = model.generate(prompts[:1], **GREEDY, eos_token_id=eos)[0].tolist()
        assert ended == plain[0][0][: plain[0][0].index(eos, 3) + 1]
    assert accepted[1] > accepted[0] + 5
    held = session.selection.drafter.instance
    assert 0 < held.finished.bytes < 3 * 41 * 400
    assert [one["kept_bytes"] for one in session.stats.as_dict()["techniques"]] == [held.finished.bytes, 0]


def test_what_nobody_asked_for_is_refused(random_models):
    model = random_models["llama"]
    for nested in ({"name": "adaptive", "source": SHARED}, {"name": "fusion", "sources": (SHARED, "input_copy")}):
        with pytest.raises(HostError, match=r"remembers across requests \(scope 'process'\), which nobody asked for by an option scope"):
            accelplug.attach(model, drafter=nested)
