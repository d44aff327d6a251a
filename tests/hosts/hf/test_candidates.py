"""Transformers' own candidate generators inside accelplug's loop, beside their own loop; other exactness tests are in test_drafters.py."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.candidate_generator import CandidateGenerator

import accelplug
from accelplug import AccelplugError
from accelplug.hooks import BuildContext, load_registry
from accelplug.hosts.hf.context import build_context
from tests.hosts.hf.conftest import VOCAB

PROMPT = [5, 6, 7, 8, 9, 10] * 4
GREEDY: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
EXIT = "transformers_candidates(generator='early_exit', exit_layer=1, num_tokens=3)"


class Drawn(CandidateGenerator):
    """Draws a few of the first tokens there are; remembers what it is told."""

    def __init__(self) -> None:
        self.random, self.told = np.random.default_rng(0), []

    def get_candidates(self, input_ids, **_):
        drawn = torch.from_numpy(self.random.integers(0, 12, size=(1, 3)))
        return torch.cat([input_ids, drawn], 1), torch.zeros(1, 3, VOCAB)

    def update_candidate_strategy(self, input_ids, scores, num_matches):
        self.told.append((input_ids.shape[1], scores.shape[1], num_matches))


def forwards(model: Any, **arguments: Any) -> int:
    passes = []
    hook = model.register_forward_pre_hook(lambda *_: passes.append(1))
    model.generate(torch.tensor([PROMPT]), **GREEDY, **arguments)
    hook.remove()
    return len(passes)


def test_prompt_lookup_drafts_what_it_does_in_transformers_own_loop(random_models):
    model = random_models["llama"]
    own = forwards(model, prompt_lookup_num_tokens=6, max_matching_ngram_size=2)
    with accelplug.attach(model, drafter="transformers_candidates(num_tokens=6)") as session:
        ours = forwards(model)
    assert session.stats.accepted > 0
    assert 0 <= ours - own <= 1  # accelplug drafts behind the prompt's first token, Transformers before it


def test_an_early_exit_leaves_the_model_alone(random_models):
    model = random_models["gemma3"]
    before = model.config.to_dict(), list(model.model.layers), model.generation_config.to_dict()
    plain = model.generate(torch.tensor([PROMPT]), **GREEDY)
    with accelplug.attach(model, drafter=EXIT) as session:
        assert model.generate(torch.tensor([PROMPT]), **GREEDY).tolist() == plain.tolist()
    assert session.stats.drafted > 0
    assert before == (model.config.to_dict(), list(model.model.layers), model.generation_config.to_dict())


@pytest.mark.parametrize("drafter", ["transformers_candidates", EXIT, "drawn"])
def test_sampling_draws_plain_generates_tokens(random_models, drafter):
    model, made = random_models["qwen3"], []
    if drafter == "drawn":
        drafter = {"name": "transformers_candidates", "generator": lambda _: made.append(Drawn()) or made[-1]}
    arguments = {"max_new_tokens": 60, "do_sample": True, "top_k": 12, "pad_token_id": 0, "temperature": 0.7}
    with accelplug.attach(model, drafter=drafter) as session:
        for seed in range(4):
            outputs = []
            for generate in (model.generate, type(model).generate.__get__(model)):
                torch.manual_seed(seed)
                outputs.append(generate(torch.tensor([PROMPT]), **arguments).tolist())
            assert outputs[0] == outputs[1]
    assert 0 < session.stats.accepted < session.stats.drafted
    if made:
        told = [call for generator in made for call in generator.told]
        assert sum(matches for *_, matches in told) == session.stats.accepted
        assert {scores for _, scores, _ in told} <= {2, 3, 4}


@pytest.mark.parametrize(
    ("drafter", "sentence"),
    [
        ("transformers_candidates(generator='magic')", "generator='magic' is none; choose 'prompt_lookup', 'early_exit' with exit_layer=..."),
        ("transformers_candidates(generator='early_exit')", "choose 'prompt_lookup', 'early_exit' with exit_layer=..."),
        ("transformers_candidates(generator='early_exit', exit_layer=9)", "exit_layer=9 is no early exit of LlamaForCausalLM, which has"),
    ],
)
def test_refusals(random_models, drafter, sentence):
    with pytest.raises(AccelplugError, match=sentence):
        accelplug.attach(random_models["llama"], drafter=drafter)


def test_a_generator_that_reads_hidden_states_is_refused(random_models):
    class Reading(Drawn):
        requires_model_outputs = True

    drafter = {"name": "transformers_candidates", "generator": lambda _: Reading()}
    with (
        accelplug.attach(random_models["llama"], drafter=drafter),
        pytest.raises(AccelplugError, match="Reading reads the target's hidden states, which generators of a function's are not shown; use 'mtp' or 'dflash'"),
    ):
        random_models["llama"].generate(torch.tensor([PROMPT]), **GREEDY)


def test_other_hosts_have_none(random_models):
    default = next(field.default for field in dataclasses.fields(BuildContext) if field.name == "candidates")
    context = dataclasses.replace(build_context(random_models["llama"], None), candidates=default)
    with pytest.raises(AccelplugError, match="this host has no candidate generators of its own, and 'prompt_lookup' was asked for"):
        load_registry(entry_points=False).build("drafter", "transformers_candidates", context)
