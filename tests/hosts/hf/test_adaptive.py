"""The drafter adaptive inside ``generate()``: the host's own costs, the output of plain decoding."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import accelplug
from accelplug import AccelplugError
from accelplug.hooks import BuildContext, load_registry
from accelplug.hosts.hf.context import build_context


@pytest.mark.parametrize("source", ["prompt_lookup", "draft_model"])
def test_greedy_equals_plain_generate(random_models, source):
    model = random_models["llama"]
    given = "prompt_lookup(min_ngram=1)" if source == "prompt_lookup" else {"name": "draft_model", "model": model}
    for prompt in ([[5, 6, 7, 8, 9, 10] * 4], [[3, 4, 5], [9, 8, 7]]):
        arguments = {"attention_mask": torch.ones(len(prompt), len(prompt[0])), "max_new_tokens": 40, "do_sample": False}
        plain = model.generate(torch.tensor(prompt), **arguments)
        with accelplug.attach(model, drafter={"name": "adaptive", "source": given}) as session:
            for _ in range(2):
                assert model.generate(torch.tensor(prompt), **arguments).tolist() == plain.tolist()
        assert session.stats.drafted > 0
        assert session.costs.seconds[1] > 0
        assert max(session.costs.latest) > 1


def test_refusals(random_models):
    model = random_models["llama"]
    tree = {"name": "draft_model", "model": model, "tree": "top_k"}
    with pytest.raises(AccelplugError, match=r"adaptive: drafter 'draft_model' .* drafts no chains in host memory"):
        accelplug.attach(model, drafter={"name": "adaptive", "source": tree})
    default = next(field.default for field in dataclasses.fields(BuildContext) if field.name == "step_seconds")
    context = dataclasses.replace(build_context(model, None), step_seconds=default)
    with pytest.raises(AccelplugError, match="does not measure its steps"):
        load_registry(entry_points=False).build("drafter", "adaptive", context)
