"""Every built-in drafter and tree policy beside every lossless rule: plain generate()'s greedy output, or exactly these refusals."""

from __future__ import annotations

import copy

import pytest
import torch

import accelplug
from accelplug import HostError

TREES = {"token_recycling", "suffix(shape='tree')", "fusion", "draft_model: top_k", "draft_model: best_first", "draft_model: sequoia"}
DRAWN = {"draft_model: gumbel_top_k", "draft_model: stochastic_beam"}  # without replacement under sampling
MODELLED = ("chain", "top_k", "best_first", "sequoia(acceptance=[0.5, 0.3])", "gumbel_top_k", "stochastic_beam")
PLAIN = (
    "prompt_lookup", "suffix", "suffix(shape='tree')", "input_copy", "token_recycling", "token_recycling(shape='chain')", "fusion",
    "adaptive", "adaptive(source='suffix')", "transformers_candidates",
)  # fmt: skip
DRAFTERS = (*PLAIN, *(f"draft_model: {tree}" for tree in MODELLED))
RULES = ("token_wise", "greedy", "block", "traversal", "k_seq")
NEEDS_INDEPENDENT_SIBLINGS = {"draft_model: best_first", "draft_model: sequoia", *DRAWN}  # which k_seq cannot do without


@pytest.fixture(scope="module")
def target(random_models):
    return random_models["llama"]


@pytest.fixture(scope="module")
def noisy(target):
    """The target with noise on its matrices: often right, often wrong."""
    torch.manual_seed(1)
    model = copy.deepcopy(target)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.add_(0.12 * weights.std() * torch.randn_like(weights))
    return model


@pytest.fixture(scope="module")
def accepted():
    """Accepted and rejected drafts by drafter, over all rules."""
    return {}


def choice(drafter, noisy):
    name, _, tree = drafter.partition(": ")
    return {"name": name, "model": noisy, "tree": tree} if tree else drafter


def is_refused(drafter, rule):
    """Which pairs admission refuses: a rule for chains beside trees, one for independent siblings beside others."""
    name = drafter.partition("(acceptance")[0]
    return (rule == "block" and name in TREES | DRAWN) or (rule == "k_seq" and name in NEEDS_INDEPENDENT_SIBLINGS)


def prompts_for(target):
    """Two prompts: one that repeats, and one that holds what the model says after its beginning."""
    said = target.generate(torch.tensor([[5, 6, 7]]), attention_mask=torch.ones(1, 3), max_new_tokens=12, do_sample=False, pad_token_id=0)
    return torch.cat([torch.tensor([[5, 6, 7] * 6]), torch.cat([said, torch.tensor([[5, 6, 7]])], 1)])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_greedy_output_is_plain_generates_or_the_pair_is_refused(target, noisy, accepted, drafter, rule):
    prompts = prompts_for(target)
    arguments = {"max_new_tokens": 28, "do_sample": False, "pad_token_id": 0, "repetition_penalty": 1.05}
    mask = torch.ones_like(prompts)
    plain = target.generate(prompts, attention_mask=mask, **arguments)
    if is_refused(drafter, rule):
        with pytest.raises(HostError, match=f"{rule}"):
            accelplug.attach(target, drafter=choice(drafter, noisy), verifier=rule)
        return
    with accelplug.attach(target, drafter=choice(drafter, noisy), verifier=rule) as session:
        fast = target.generate(prompts, attention_mask=mask, **arguments)
    assert fast.tolist() == plain.tolist()
    counts = accepted.setdefault(drafter, [0, 0])
    counts[0] += session.stats.accepted
    counts[1] += session.stats.drafted - session.stats.accepted


def test_the_drafts_of_every_drafter_were_both_accepted_and_rejected(accepted):
    assert set(accepted) == set(DRAFTERS)
    assert {drafter: counts for drafter, counts in accepted.items() if 0 in counts} == {}


def test_every_built_in_is_here():
    entries = [entry for entry in accelplug.registry() if entry.owner.distribution == "accelplug"]
    drafters = {entry.name for entry in entries if entry.kind == "drafter"}
    assert drafters == {drafter.partition("(")[0].partition(":")[0] for drafter in DRAFTERS}
    rules = {entry.name for entry in entries if entry.kind == "verifier"}
    assert rules - {"typical", "fly"} == set(RULES)  # those two are lossy
