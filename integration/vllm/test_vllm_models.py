"""Greedy output equals Transformers' on other architectures, and on the trained model's held-out edits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import torch
from jobs import Run, engine

testbed = pytest.importorskip("accelplug_testbed", reason="pip install ./integration/testbed")

NEAR_TIE = 1e-4


@pytest.mark.parametrize("architecture", [pytest.param("qwen3", marks=pytest.mark.by_hand), "gemma3"])
def test_other_architectures(architecture: str, run: Run, tmp_path: Path) -> None:
    """Prompts longer than the window, so that it wraps while drafts, right and wrong ones, are verified."""
    model = tiny_model.make(tmp_path / "model", architecture=architecture)
    prompts = [[5, 6, 7, 8, 5, 6, 7], [20, 21, 22] * 14, [9] * 40]
    batch = {"prompts": prompts, "params": {"temperature": 0, "ignore_eos": True, "max_tokens": 40}}
    plain = [tokens[:40] for tokens in tiny_model.continue_greedily(model, prompts, 96)]
    sequences = tmp_path / "sequences.json"
    sequences.write_text(json.dumps(list(zip(prompts, plain, strict=True))))
    done = run("v1", engine(model, "oracle", batch, accelplug={"drafter": {"name": "oracle", "sequences": str(sequences)}}))["oracle"]
    assert [output["token_ids"] for output in done["outputs"][0]] == plain
    stats = done["status"][0]["stats"]
    assert 0.2 < stats["acceptance"] < 0.8


def margin(sequence: list[int], at: int) -> float:
    """Return how far the trained model's best two scores are apart at a position."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(testbed.path(), dtype=torch.float32)
    with torch.no_grad():
        best = model(torch.tensor([sequence[:at]])).logits[0, -1].topk(2).values
    return float(best[0] - best[1])


@pytest.mark.by_hand
def test_held_out_edits_on_the_trained_model(run: Run) -> None:
    """Token for token; where the top two scores are closer than 1e-4 a difference is counted and printed.

    One of them is in `integration/cli/test_cli_vllm.py`.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(testbed.path())
    prompts = [tokenizer(edit["prompt"]).input_ids for edit in testbed.prompts()[::20]]
    batch = {"prompts": prompts, "params": {"temperature": 0, "max_tokens": 160}}
    sized: dict[str, Any] = {"max_model_len": 2048, "max_num_seqs": 3}
    lookup = {"drafter": "prompt_lookup(num_tokens=8)"}
    done = run("v1", engine(testbed.path(), "lookup", batch, accelplug=lookup, **sized))
    model = AutoModelForCausalLM.from_pretrained(testbed.path(), dtype=torch.float32)
    near_ties = []
    for prompt, fast in zip(prompts, done["lookup"]["outputs"][0], strict=True):
        a = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=160)[0, len(prompt) :].tolist()
        b = fast["token_ids"]
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            near_ties.append(margin([*prompt, *a], len(prompt) + at))
    stats = done["lookup"]["status"][0]["stats"]
    print(f"near-ties {near_ties}; {stats['accepted']} of {stats['drafted']} accepted, {stats['tokens_per_forward']:.2f} tokens per forward")
    assert all(gap < NEAR_TIE for gap in near_ties)
    assert stats["tokens_per_forward"] > 1.5
