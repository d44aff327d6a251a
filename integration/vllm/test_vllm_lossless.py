"""Greedy output equals plain vLLM's token for token, on every runner, through every hard event of speculation."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jobs import RUNNERS, Run, engine, other
from transformers import AutoTokenizer, LlamaForCausalLM

# Ragged, more than run at once, so that slots are recycled and rows move.
PROMPTS = [[5, 6, 7, 8, 5, 6, 7], [20, 21, 22], [9, 9, 9, 9, 10, 11, 9, 9], [100, 200, 30, 100, 200], [77] * 17]
GREEDY = {"temperature": 0, "ignore_eos": True}
LENGTH = 26
MAX_LENGTH = 96
# The oracle drafts (4 right), (4 wrong), (2 right, 2 wrong), (none), (1 right, 1 wrong), (3 right), and again. These are
# the output positions that are accepted drafts with another accepted draft behind them.
INSIDE = (13, 14, 17, 18, 19, 23)
# The other built-in drafters, in host memory on either runner.
BUILT_IN = {"v1": "input_copy(num_tokens=4)", "v2": "suffix(num_tokens=4, min_match=1)", "v2-async": "suffix(num_tokens=4, min_match=1)"}
CLIPPED = 14  # tokens: positions 13 to 15 are one draft


@dataclass(frozen=True)
class Reference:
    """What vLLM does without a drafter, and what the oracle reads."""

    model_dir: Path
    eos: int
    batches: list[dict[str, Any]]
    outputs: list[list[dict[str, Any]]]
    sequences: Path


def continue_greedily(model_dir: Path) -> list[list[int]]:
    import torch

    model = LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return [
        model.generate(torch.tensor([prompt]), do_sample=False, max_length=MAX_LENGTH, pad_token_id=0)[0, len(prompt) :].tolist() for prompt in PROMPTS
    ]


def token_inside(continuations: list[list[int]]) -> int:
    """Return a token that first appears inside a draft of the oracle."""
    return next(tokens[i] for i in INSIDE for tokens in continuations if tokens[i] not in tokens[:i])


def text_inside(model_dir: Path, continuations: list[list[int]]) -> str:
    """Return a text that first appears inside a draft of the oracle."""
    decode = AutoTokenizer.from_pretrained(model_dir).decode
    for tokens in continuations:
        for i in INSIDE:
            before, after = decode(tokens[:i]), decode(tokens[: i + 1])
            new = after[len(before) :]
            if after.startswith(before) and new.strip().isascii() and new.strip() and new not in before:
                return new
    raise AssertionError("no readable token stands inside a draft; change INSIDE or the prompts")


def with_eos(model_dir: Path, folder: Path, eos: int) -> Path:
    """Copy the model and let another token end its text."""
    shutil.copytree(model_dir, folder)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": eos}))
    return folder


@pytest.fixture(scope="module")
def reference(run: Run, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("reference")
    continuations = continue_greedily(model_dir)
    (folder / "sequences.json").write_text(json.dumps(list(zip(PROMPTS, continuations, strict=True))))
    eos = token_inside(continuations)
    batches = [
        {"prompts": PROMPTS, "params": [{**GREEDY, "max_tokens": LENGTH - 3 * i} for i in range(len(PROMPTS))]},
        {"prompts": PROMPTS, "params": {"temperature": 0, "max_tokens": LENGTH}},
        {"prompts": PROMPTS, "params": {**GREEDY, "max_tokens": LENGTH, "stop": [text_inside(model_dir, continuations)]}},
        {"prompts": PROMPTS, "params": {**GREEDY, "max_tokens": CLIPPED}},
        {"prompts": PROMPTS[-1:], "params": {**GREEDY, "max_tokens": 200}},
    ]
    eos_model = with_eos(model_dir, folder / "model", eos)
    plain = run("v1", engine(eos_model, "plain", *batches))["plain"]
    assert plain["status"] is None
    return Reference(eos_model, eos, batches, plain["outputs"], folder / "sequences.json")


def events(log: Path, reference: Reference) -> Counter[str]:
    """Count what happened, from what the oracle observed."""
    seen: Counter[str] = Counter()
    batch = -1
    for line in log.read_text().splitlines():
        record = json.loads(line)
        if record == "next batch":
            batch += 1
            continue
        accepted, drafted = record["accepted"], record["drafted"]
        seen["nothing drafted" if not drafted else "none" if not accepted else "all" if accepted == drafted else "some"] += 1
        seen["clipped"] += record["clipped"]
        if ending := last_output_inside_draft(record, batch, reference):
            seen[ending] += 1
    return seen


def last_output_inside_draft(record: dict[str, Any], batch: int, reference: Reference) -> str | None:
    """Return how a request ended if its last token was an accepted draft with more accepted tokens behind it."""
    request = next(i for i, prompt in enumerate(PROMPTS) if record["prompt"] == prompt[:3])
    if batch == 4:
        return None
    output = reference.outputs[batch][request]
    last = len(PROMPTS[request]) + len(output["token_ids"]) - 1 - (record["length"] - len(record["fresh"]))
    if not 0 <= last < record["accepted"]:
        return None
    if output["finish_reason"] == "length":
        return "thrown away at max_tokens"
    return "eos" if batch == 1 else "stop string"


@pytest.mark.parametrize("runner", RUNNERS)
def test_output_equals_plain_vllm(runner: str, run: Run, reference: Reference, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    oracle = {"drafter": {"name": "oracle", "sequences": str(reference.sequences), "log": str(log)}}
    device = {"drafter": {"name": "device_oracle", "sequences": str(reference.sequences)}, "verifier": "greedy"}
    lookup = {"drafter": "prompt_lookup(num_tokens=4, min_ngram=1)"}
    first = reference.batches[0]
    others = [
        other("lookup", lookup, first),
        other("built-in", {"drafter": BUILT_IN[runner]}, first),
        *([other("device", device, *reference.batches[:2])] if runner != "v1" else []),
    ]
    done = run(runner, engine(reference.model_dir, "oracle", *reference.batches, accelplug=oracle, log=log, others=others))
    for name in {"oracle", "lookup", "built-in", "device"} & set(done):
        check_engine(done[name], runner, reference)
    check_oracle(done["oracle"], log, reference)
    assert done["built-in"]["status"][0]["stats"]["accepted"] > 0 or runner == "v1", "random text never copies its prompt, but repeats itself"
    if runner != "v1":
        stats = done["device"]["status"][0]["stats"]
        assert 0 < stats["accepted"] < stats["drafted"]


def check_engine(done: dict[str, Any], runner: str, reference: Reference) -> None:
    assert "error" not in done, done
    (status,) = done["status"]
    assert "switched_off" not in status["drafter"], status["drafter"]
    assert (status["runner"], status["async"]) == ("V1" if runner == "v1" else "V2", runner == "v2-async")
    stats, metrics = status["stats"], done["metrics"]
    assert stats["propose_seconds"] > 0
    assert stats["drafted"] > 0
    if runner != "v2-async":  # where vLLM counts padding too
        assert (stats["drafted"], stats["accepted"]) == (metrics["vllm:spec_decode_num_draft_tokens"], metrics["vllm:spec_decode_num_accepted_tokens"])
    for mine, plain in zip(done["outputs"], reference.outputs, strict=False):
        assert mine == plain


def check_oracle(done: dict[str, Any], log: Path, reference: Reference) -> None:
    seen = events(log, reference)
    expected = {"nothing drafted", "none", "some", "all", "eos", "stop string", "clipped"}
    missing = {event for event in expected if not seen[event]}
    assert not missing, f"events that never happened: {missing}; seen: {dict(seen)}"
    assert not seen["thrown away at max_tokens"], "drafts past max_tokens were verified for nothing"
    stats = done["status"][0]["stats"]
    observed = [json.loads(line) for line in log.read_text().splitlines()]
    assert stats["accepted"] == sum(record["accepted"] for record in observed if record != "next batch")
    assert stats["requests"] == sum(len(batch["prompts"]) for batch in reference.batches)
    assert 0 < stats["accepted"] < stats["drafted"]
    assert stats["tokens_per_forward"] > 1.3, "the oracle's right drafts make steps longer than one token"
