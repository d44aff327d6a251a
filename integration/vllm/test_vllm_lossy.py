"""`fly` in engines: the text and the count of lossy tokens are those that the rule's definition gives with the model in Transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import GREEDY, PROMPTS
from jobs import DRAFTS, RUNNERS, Run, shared
from transformers import LlamaForCausalLM

WINDOW = 2
LENGTH = 22
ASKED = PROMPTS[:3]
UNLIKELY = ((2, 5), (3, 5), (2, 7))
"""For each prompt which of its tokens are only the second likeliest: one in so many, from that on. Steps of five tokens overlook the first's, all of them."""


@pytest.fixture(scope="module")
def model(model_dir: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32)


def likeliest(model: LlamaForCausalLM, tokens: list[int]) -> list[list[int]]:
    """Return the two likeliest tokens behind each."""
    with torch.no_grad():
        found: list[list[int]] = model(torch.tensor([tokens])).logits[0].topk(2).indices.tolist()
    return found


def loose_text(model: LlamaForCausalLM, prompt: list[int], first: int, every: int) -> list[int]:
    """Return a text behind a prompt, some of whose tokens are the second likeliest."""
    tokens = list(prompt)
    for i in range(LENGTH + DRAFTS):
        tokens.append(likeliest(model, tokens)[-1][i % every == first])
    return tokens[len(prompt) :]


def told(model: LlamaForCausalLM, prompt: list[int], text: list[int]) -> tuple[list[int], int]:
    """Return what the rule keeps of drafts out of a text, at a least entropy of 0, and how many of the kept tokens are not the likeliest."""
    kept, lossy = [likeliest(model, prompt)[-1][0]], 0
    while len(kept) < LENGTH:
        draft = text[len(kept) : len(kept) + min(DRAFTS, LENGTH - 1 - len(kept))]
        best = [row[0] for row in likeliest(model, prompt + kept + draft)[len(prompt) + len(kept) - 1 :]]
        right = [a == b for a, b in zip(draft, best, strict=False)]
        overlooked = [not own and right[i + 1 : i + 1 + WINDOW] == [True] * WINDOW for i, own in enumerate(right)]
        until = next((i for i in range(len(draft)) if not right[i] and not overlooked[i]), len(draft))
        kept += [*draft[:until], best[until]]
        lossy += sum(overlooked[:until])
    return kept, lossy


@pytest.mark.parametrize("runner", RUNNERS)
def test_fly_overlooks_what_its_definition_says(runner: str, run_shared: Run, model_dir: Path, model: LlamaForCausalLM, tmp_path: Path) -> None:
    texts = {"own": [loose_text(model, prompt, -1, 2) for prompt in ASKED]}
    texts["loose"] = [loose_text(model, prompt, *unlikely) for prompt, unlikely in zip(ASKED, UNLIKELY, strict=True)]
    drafters: dict[str, Any] = {}
    for name, known in texts.items():
        (tmp_path / name).write_text(json.dumps(list(zip(ASKED, known, strict=True))))
        drafters[name] = {"name": "oracle", "sequences": str(tmp_path / name), "pattern": [[DRAFTS, 0]]}
    cases = {"right drafts": ("own", 0.0), "loose": ("loose", 0.0), "sure": ("loose", 9.0)}
    batch = {"prompts": ASKED, "params": {**GREEDY, "max_tokens": LENGTH}}
    settings = {name: {"drafter": drafters[text], "verifier": f"fly(window={WINDOW}, entropy={least})"} for name, (text, least) in cases.items()}
    done = run_shared(runner, *(shared(model_dir, name, batch, accelplug={**given, "allow_lossy": True}) for name, given in settings.items()))
    expected = {name: [(text[:LENGTH], 0) for text in texts["own"]] for name in cases}
    expected["loose"] = [told(model, *both) for both in zip(ASKED, texts["loose"], strict=True)]
    lossy = [count for _, count in expected["loose"]]
    print(runner, lossy)
    assert lossy[0] > 3, "every step of the first prompt overlooks a token"
    assert any(tokens != text[:LENGTH] for (tokens, _), text in zip(expected["loose"], texts["loose"], strict=True)), "and some others are rejected"
    for name, per_prompt in expected.items():
        assert "error" not in done[name], done[name]
        assert "switched_off" not in done[name]["status"][0]["verifier"], done[name]["status"]
        assert [output["token_ids"] for output in done[name]["outputs"][0]] == [tokens for tokens, _ in per_prompt], name
        assert done[name]["status"][0]["stats"]["lossy_accepts"] == sum(count for _, count in per_prompt), name
