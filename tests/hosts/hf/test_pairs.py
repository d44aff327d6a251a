"""Every built-in drafter, tree policy and length policy beside every lossless rule and every setting, pair by pair: plain generate()'s greedy
output, or exactly these refusals.
"""

from __future__ import annotations

import copy
import random
from collections import Counter

import pytest
import torch

import accelplug
from accelplug import HostError
from accelplug.spec import lengths, trees
from tests.hosts.hf.covering import covering, pairs

TREES = {
    "token_recycling", "suffix(shape='tree')", "fusion", "adaptive(source='fusion')", "draft_model: top_k", "draft_model: best_first",
    "draft_model: sequoia",
}  # fmt: skip
DRAWN = {"draft_model: gumbel_top_k", "draft_model: stochastic_beam", "adaptive: gumbel_top_k"}  # without replacement under sampling
MODELLED = (
    "chain", "chain with confidence(threshold=0.6)", "chain with confidence(threshold=0.3, joint=True)", "top_k", "best_first",
    "sequoia(acceptance=[0.5, 0.3])", "gumbel_top_k", "stochastic_beam",
)  # fmt: skip
DRAFTERS = (
    "prompt_lookup", "suffix", "suffix(shape='tree')", "input_copy", "token_recycling", "token_recycling(shape='chain')", "fusion",
    "adaptive", "adaptive(source='suffix')", "adaptive(source='fusion')", "transformers_candidates", "adaptive: chain", "adaptive: gumbel_top_k",
    *(f"draft_model: {policies}" for policies in MODELLED),
)  # fmt: skip
RULES = ("token_wise", "greedy", "block", "traversal", "k_seq")
NEEDS_INDEPENDENT_SIBLINGS = {"draft_model: best_first", "draft_model: sequoia", *DRAWN}  # which k_seq cannot do without
SETTINGS = {
    "drafter": DRAFTERS,
    "rule": RULES,
    "rows": ("one", "two", "three, padded", "three, in lockstep"),
    "cache": ("dynamic", "static"),
    "model": ("llama", "gemma3", "eager qwen3"),
    "processors": ("none", "repetition penalty", "no repeated n-grams, no early end"),
    "ends": ("length", "EOS", "stop string"),
}
CASES = covering(SETTINGS)
NEW = 28


@pytest.fixture(scope="module")
def models(random_models):
    """Each target, with a noisy copy that is often right, often wrong."""
    torch.manual_seed(1)
    found = {}
    for name in SETTINGS["model"]:
        target = random_models[name.split()[-1]]
        if name.startswith("eager"):
            target = copy.deepcopy(target)
            target.set_attn_implementation("eager")
        noisy = copy.deepcopy(target)
        with torch.no_grad():
            for weights in noisy.parameters():
                if weights.ndim > 1:
                    weights.add_(0.12 * weights.std() * torch.randn_like(weights))
        found[name] = target, noisy
    return found


@pytest.fixture(scope="module")
def seen():
    """What happened over all cases: accepted and rejected drafts by the value of each setting, and the hard events."""
    return Counter()


def choice(drafter, noisy):
    name, _, policies = drafter.partition(": ")
    if not policies:
        return drafter
    tree, _, length = policies.partition(" with ")
    second = {"name": "draft_model", "model": noisy, "tree": tree, **({"length": length} if length else {})}
    return {"name": "adaptive", "source": second} if name == "adaptive" else second


def refusal(case):
    """Which cases are refused: a rule for chains beside trees, one for independent siblings beside others."""
    drafter = case["drafter"].partition("(acceptance")[0]
    if case["rule"] == "block" and drafter in TREES | DRAWN:
        return "verifier 'block'"
    if case["rule"] == "k_seq" and drafter in NEEDS_INDEPENDENT_SIBLINGS:
        return "verifier 'k_seq'"
    return None


def call(case, target, number):
    """Return the arguments of a call: prompts by the number of the case, of which some repeat and some hold what the model says."""
    rng = random.Random(number)
    count = {"one": 1, "two": 2}.get(case["rows"], 3)
    rows = []
    for row in range(count):
        begins = [rng.randrange(2, 90) for _ in range(3)]
        said = target.generate(torch.tensor([begins]), attention_mask=torch.ones(1, 3), max_new_tokens=12, do_sample=False, pad_token_id=0)[0].tolist()
        rows.append([*said, *begins] if (row + number) % 3 else begins * 6)
    ids = torch.tensor(rows)  # [count, 18]
    if case["rows"] == "three, padded":
        ids[1, :3] = 0
    arguments = {"input_ids": ids, "attention_mask": (ids != 0).long(), "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    if case["cache"] == "static":
        arguments["cache_implementation"] = "static"
    if case["processors"] == "repetition penalty":
        arguments["repetition_penalty"] = 1.05
    elif case["processors"] != "none":
        arguments |= {"no_repeat_ngram_size": 7, "min_new_tokens": 9}
    return arguments


def until(case, target, arguments, tokenizer):
    """Return how the call ends: at what plain decoding says in its first row about the middle, so that drafts reach over it."""
    if case["ends"] == "length":
        return {}
    said = target.generate(**arguments)[0, arguments["input_ids"].shape[1] :].tolist()
    middle = said[NEW // 2 : NEW // 2 + 2]
    if case["ends"] == "EOS":
        return {"eos_token_id": middle[0]}
    return {"stop_strings": [tokenizer.decode(middle)], "tokenizer": tokenizer}


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: "-".join(CASES[number].values()).replace(" ", "_"))
def test_greedy_output_is_plain_generates_or_the_case_is_refused(models, tokenizer, seen, number):
    case = CASES[number]
    target, noisy = models[case["model"]]
    selection = {"drafter": choice(case["drafter"], noisy), "verifier": case["rule"], "tokenizer": tokenizer}
    selection["batches"] = "lockstep" if case["rows"].endswith("lockstep") else "auto"
    arguments = call(case, target, number)
    if sentence := refusal(case):
        with pytest.raises(HostError, match=sentence):
            accelplug.generate(target, **selection, **arguments)
        return
    arguments |= until(case, target, arguments, tokenizer)
    plain = target.generate(**arguments)
    arguments.pop("tokenizer", None)
    with accelplug.attach(target, **selection) as session:
        fast = target.generate(**arguments)
    assert fast.tolist() == plain.tolist()
    rejected = session.stats.drafted - session.stats.accepted
    for value in case.values():
        seen[value, "accepted"] += session.stats.accepted
        seen[value, "rejected"] += rejected
    seen[session.stats.batches if len(plain) > 1 else "alone"] += 1
    seen["ended early"] += bool(plain.shape[1] < arguments["input_ids"].shape[1] + NEW and session.stats.accepted)


def test_drafts_were_accepted_and_rejected_beside_every_value_of_every_setting(seen):
    values = [value for values in SETTINGS.values() for value in values]
    assert [(value, what) for value in values for what in ("accepted", "rejected") if not seen[value, what]] == []
    assert all(seen[event] >= 8 for event in ("ragged", "lockstep", "alone", "ended early")), seen


def test_every_pair_of_values_is_in_a_case():
    covered = set().union(*map(pairs, CASES))
    names = sorted(SETTINGS)
    assert len(covered) == sum(len(SETTINGS[one]) * len(SETTINGS[other]) for i, one in enumerate(names) for other in names[i + 1 :])


def test_every_built_in_is_here():
    entries = [entry for entry in accelplug.registry() if entry.owner.distribution == "accelplug"]
    drafters = {entry.name for entry in entries if entry.kind == "drafter"}
    assert drafters == {drafter.partition("(")[0].partition(":")[0] for drafter in DRAFTERS}
    rules = {entry.name for entry in entries if entry.kind == "verifier"}
    assert rules - {"typical", "fly"} == set(RULES)  # those two are lossy
    policies = [policy for drafter in MODELLED for policy in drafter.split(" with ")]
    assert {policy.partition("(")[0] for policy in policies} | {"fixed"} == {*trees.POLICIES, *lengths.POLICIES}
