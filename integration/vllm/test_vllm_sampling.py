"""Sampled output has the target model's distribution: the joint distribution of three tokens against the exact softmax."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model
from jobs import Run, engine, other, shared
from machine import Machine
from scipy.stats import chisquare
from transformers import LlamaForCausalLM

PROMPT = [5, 6, 7, 8, 5, 6, 7]
TOP_K = 2  # 8 cells
LENGTH = 3
TEMPERATURE = 1.5
# How many samples, and a bias that so many must be able to see; V2 runs in Triton's interpreter on a CPU, where a sample is dear.
SAMPLES = {"v1": (3000, 0.2), "v2": (300, 0.4)}
DRAWN = {"v1": (1000, 0.3), "v2": (300, 0.4), "v2-async": (300, 0.4)}
NEVER = 1e-4  # a right sampler falls below this once in ten thousand seeds; ours is fixed


def exact(model_dir: Path) -> dict[tuple[int, ...], float]:
    """Return the probability of every continuation that top-k leaves possible."""
    import torch

    model = LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(LENGTH):
        longer: dict[tuple[int, ...], float] = {}
        for tokens, probability in found.items():
            scores, choices = (model(torch.tensor([PROMPT + list(tokens)])).logits[0, -1].double() / TEMPERATURE).topk(TOP_K)
            for choice, share in zip(choices.tolist(), scores.softmax(-1).tolist(), strict=True):
                longer[*tokens, choice] = probability * share
        found = longer
    return found


def p_value(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Return the chi-square test's p-value; cells that expect fewer than 5 samples are taken together."""
    total = sum(counts.values())
    cells = sorted(expected, key=expected.__getitem__)
    small = [cell for cell in cells if expected[cell] * total < 5]
    large = [cell for cell in cells if cell not in small]
    observed = [counts[cell] for cell in large] + ([sum(counts[cell] for cell in small)] if small else [])
    wanted = [expected[cell] * total for cell in large] + ([sum(expected[cell] for cell in small) * total] if small else [])
    return float(chisquare(observed, np.array(wanted) * sum(observed) / sum(wanted)).pvalue)


def biased(expected: dict[tuple[int, ...], float], draft: tuple[int, ...], by: float) -> dict[tuple[int, ...], float]:
    """Return the distribution of a verifier that accepts every draft with probability `by`, whatever the target says."""
    firsts = {first: sum(p for tokens, p in expected.items() if tokens[0] == first) for first in {tokens[0] for tokens in expected}}
    drafted = {(first, *draft[1:]): by * p for first, p in firsts.items()}
    return {tokens: (1 - by) * p + drafted.get(tokens, 0.0) for tokens, p in expected.items()}


def check_distribution(outputs: list[dict[str, Any]], expected: dict[tuple[int, ...], float], bias: float) -> None:
    """Check that outputs have the expected distribution, and are enough to see that they have not a biased one."""
    counts = Counter(tuple(output["token_ids"]) for output in outputs)
    assert set(counts) <= set(expected), "a token outside top-k was sampled"
    assert p_value(counts, expected) > NEVER
    assert p_value(counts, biased(expected, max(expected, key=expected.__getitem__), bias)) < NEVER, "too few samples to see such a bias"


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_joint_distribution_is_the_models(runner: str, run_shared: Run, model_dir: Path, machine: Machine, tmp_path: Path) -> None:
    samples, bias = SAMPLES[runner if machine.interprets else "v1"]
    expected = exact(model_dir)
    likely = max(expected, key=expected.__getitem__)
    sequences = tmp_path / "sequences.json"
    sequences.write_text(json.dumps([[PROMPT, list(likely)]]))
    oracle = {"name": "oracle", "sequences": str(sequences), "num_tokens": 2, "pattern": [[2, 0]]}
    params = {"temperature": TEMPERATURE, "top_k": TOP_K, "max_tokens": LENGTH, "ignore_eos": True}
    batch = {"prompts": list(itertools.repeat(PROMPT, samples)), "params": params}
    done = run_shared(runner, shared(model_dir, "sampled", batch, accelplug={"drafter": oracle}))["sampled"]
    assert "error" not in done, done
    stats = done["status"][0]["stats"]
    assert 0.2 < stats["acceptance"] < 0.9, "some drafts must be accepted and some rejected"
    check_distribution(done["outputs"][0], expected, bias)


@pytest.mark.parametrize(
    ("runner", "verifier", "chosen"), [("v1", "token_wise", True), ("v1", "block", False), ("v2", "token_wise", True), ("v2-async", "block", False)]
)
def test_a_plugins_drafts_that_were_drawn(
    runner: str, chosen: bool, verifier: str, run_shared: Run, model_dir: Path, machine: Machine, tmp_path: Path
) -> None:
    """Drawn from nearly the target's own distribution, which only a rule that is given the probabilities accepts nearly always."""
    samples, bias = DRAWN[runner if machine.interprets else "v1"]
    expected = exact(model_dir)
    tables: dict[str, dict[int, float]] = {}
    for tokens, probability in expected.items():
        for place in range(LENGTH):
            row = tables.setdefault(" ".join(map(str, tokens[:place])), {})
            row[tokens[place]] = row.get(tokens[place], 0.0) + probability
    shares = {behind: {token: share / sum(row.values()) for token, share in row.items()} for behind, row in tables.items()}
    (file := tmp_path / "tables.json").write_text(json.dumps([PROMPT, shares]))
    params = {"temperature": TEMPERATURE, "top_k": TOP_K, "max_tokens": LENGTH, "ignore_eos": True}
    batch = {"prompts": list(itertools.repeat(PROMPT, samples)), "params": params}
    settings = {"drafter": {"name": "drawer", "tables": str(file), "num_tokens": 2, "chosen": chosen}, "verifier": verifier}
    done = run_shared(runner, shared(model_dir, "drawer", batch, accelplug=settings))["drawer"]
    assert "error" not in done, done
    (status,) = done["status"]
    assert "switched_off" not in status["drafter"], status
    assert "switched_off" not in status["verifier"], status
    acceptance = status["stats"]["acceptance"]
    assert 0.8 < acceptance < 0.98, "nearly all must be accepted, which takes the probabilities, and some rejected"
    check_distribution(done["outputs"][0], expected, bias)


def test_drafts_that_were_drawn(run: Run, model_dir: Path, tmp_path: Path) -> None:
    """vLLM's own draft model, whose probabilities its rules need: for single candidates and for whole drafts."""
    samples, bias = SAMPLES["v1"]
    expected = exact(model_dir)
    drawn = {**tiny_model.draft_model(model_dir, tmp_path / "draft"), "draft_sample_method": "probabilistic"}
    params = {"temperature": TEMPERATURE, "top_k": TOP_K, "max_tokens": LENGTH, "ignore_eos": True}
    batch = {"prompts": list(itertools.repeat(PROMPT, samples)), "params": params}
    greedy = {"prompts": [PROMPT], "params": {"temperature": 0, "max_tokens": 24, "ignore_eos": True}}
    others = [other("block", {"verifier": "block"}, batch, greedy)]
    done = run("v1", engine(model_dir, "drawn", batch, accelplug={"verifier": "drawn"}, others=others, speculative_config=drawn, max_num_seqs=64))
    for name in ("drawn", "block"):
        assert "error" not in done[name], done[name]
        (status,) = done[name]["status"]
        assert status["drafter"]["name"] == "draft_model"
        assert "switched_off" not in status["verifier"], status
        assert 0 < status["stats"]["accepted"] < status["stats"]["drafted"]
        check_distribution(done[name]["outputs"][0], expected, bias)
    (tokens,) = tiny_model.continue_greedily(model_dir, [PROMPT], len(PROMPT) + 24)
    assert done["block"]["outputs"][1][0]["token_ids"] == tokens
