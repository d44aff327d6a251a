"""The drafter adaptive inside ``generate()``: the host's own costs, the output of plain decoding."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import accelplug
from accelplug import AccelplugError
from accelplug.hooks import BuildContext, load_registry
from accelplug.hosts.hf.context import build_context


@pytest.mark.parametrize("source", ["prompt_lookup(min_ngram=1)", "draft_model", "suffix(shape='tree', min_match=1)", "draft_model: top_k"])
def test_greedy_equals_plain_generate(random_models, source):
    model = random_models["llama"]
    second, _, tree = source.partition(": ")
    given = {"name": second, "model": model, "tree": tree or "chain"} if second == "draft_model" else source
    for prompt in ([[5, 6, 7, 8, 9, 10] * 4], [[3, 4, 5], [9, 8, 7]]):
        arguments = {"attention_mask": torch.ones(len(prompt), len(prompt[0])), "max_new_tokens": 40, "do_sample": False}
        plain = model.generate(torch.tensor(prompt), **arguments)
        with accelplug.attach(model, drafter={"name": "adaptive", "source": given}) as session:
            for _ in range(2):
                assert model.generate(torch.tensor(prompt), **arguments).tolist() == plain.tolist()
        assert session.stats.drafted > 0
        if len(prompt) == 1:  # of two rows one may end first, and the costs are those of the batch that is left
            assert session.costs.seconds[1] > 0
            assert max(session.costs.latest) > 1


def test_steps_are_counted_by_the_positions_that_they_verify(random_models):
    model = random_models["llama"]

    class Two:
        def propose_one(self, tokens, budget):
            return [0, 0][:budget]

    with accelplug.attach(model, drafter=Two()) as session:
        model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=12, do_sample=False)
    assert set(session.costs.latest) <= {1, 2, 3}
    assert len(session.costs.latest[3]) > 3


def test_refusals(random_models):
    model = random_models["llama"]

    class OnDevice:
        def propose_on_device(self, view):
            raise NotImplementedError

    with pytest.raises(AccelplugError, match=r"adaptive asks in host memory and drafter 'OnDevice' .* drafts on the device only"):
        accelplug.attach(model, drafter={"name": "adaptive", "source": OnDevice()})
    default = next(field.default for field in dataclasses.fields(BuildContext) if field.name == "step_seconds")
    context = dataclasses.replace(build_context(model, None), step_seconds=default)
    with pytest.raises(AccelplugError, match="does not measure its steps"):
        load_registry(entry_points=False).build("drafter", "adaptive", context)
