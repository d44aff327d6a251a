"""Structured outputs compiled by accelplug, on every runner: masked alike with and without speculation, through every hard event of both."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from jobs import RUNNERS, Run, engine, other
from jsonschema import Draft202012Validator

PROMPTS = [[5, 6, 7, 8, 5, 6, 7], [20, 21, 22], [9, 9, 9, 9, 10, 11, 9, 9]]
EOS = 1
PATTERN = [[4, 0], [3, 1], [0, 4], [2, 2], [4, 0], [0, 0], [4, 0]]
RECORD = {
    "type": "object",
    "properties": {"subject": {"enum": ["one", "two"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}, "thing": {"type": "string", "maxLength": 4}},
    "required": ["subject", "count", "thing"],
    "additionalProperties": False,
}
UNIQUE = {"type": "array", "items": {"enum": list(range(9))}, "minItems": 3, "maxItems": 5, "uniqueItems": True}
COMPACT = {"accelplug": {"whitespace": "compact"}}


def asking(structured: dict[str, Any] | None, max_tokens: int = 60, **extra: Any) -> dict[str, Any]:
    """Return greedy parameters."""
    return {"temperature": 0, "max_tokens": max_tokens, "structured_outputs": structured, "extra_args": {"accelplug": extra} if extra else None}


RECORDS = {"prompts": PROMPTS, "params": asking({"json": RECORD}, whitespace="compact")}
REGEX = "(one|two) [0-9]{2}(red|green)"
ENGINES = ("auto", "llguidance", "xgrammar", "outlines", "vllm", None)
SIDE_BY_SIDE = {
    "prompts": [PROMPTS[0]] * (len(ENGINES) + 4),
    "params": [
        *(asking({"regex": REGEX}, **({"grammar": name} if name else {})) for name in ENGINES),
        asking({"choice": ["fish", "boat"]}),
        asking({"grammar": 'root ::= "red" [0-9] "x"'}),
        asking({"json": UNIQUE}, whitespace="compact"),
        asking(None, max_tokens=8),
    ],
}
"""Every engine on one expression, vLLM's own among them, and a request without a grammar: in one batch as far as slots go."""


@pytest.fixture(scope="module")
def reference(run: Run, model_dir: Path) -> dict[str, Any]:
    """What V1 generates under the same masks without speculation."""
    done = run("v1", engine(model_dir, "plain", RECORDS, SIDE_BY_SIDE, accelplug={"grammar": "auto"}))
    return {**done["plain"], "log": done["log"]}


@pytest.fixture(scope="module")
def sequences(reference: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the oracle reads: the answers, and behind their end tokens that cannot be."""
    file = tmp_path_factory.mktemp("grammars") / "sequences.json"
    file.write_text(json.dumps([[prompt, [*answer["token_ids"], 60, 61, 62]] for prompt, answer in zip(PROMPTS, reference["outputs"][0], strict=True)]))
    return file


def test_masks_without_speculation(reference: dict[str, Any]) -> None:
    assert "error" not in reference, reference
    assert reference["status"] is None or reference["worker_cls"].startswith("vllm."), "a grammar alone needs no worker of accelplug's"
    records, mixed = reference["outputs"]
    for answer in records:
        assert answer["finish_reason"] == "stop"
        assert answer["token_ids"][-1] == EOS
        assert Draft202012Validator(RECORD).is_valid(json.loads(answer["text"]))
        assert " " not in answer["text"].replace(json.loads(answer["text"])["thing"], "")
    assert len({answer["text"] for answer in mixed[: len(ENGINES)]}) == 1, "engines mask one expression alike"
    choice, ebnf, unique, free = mixed[len(ENGINES) :]
    assert (choice["text"] in {"fish", "boat"}, ebnf["text"][:3], ebnf["text"][4:]) == (True, "red", "x")
    assert free["finish_reason"] == "length"
    assert check_violation(unique), "the random model repeats itself, which this grammar leaves to the final check"
    tally = reference["grammars"]
    assert {name: counts["answers"] for name, counts in tally.items()} == {"auto": len(PROMPTS) + 5, "llguidance": 1, "xgrammar": 1, "outlines": 1}
    assert sum(counts["violations"] for counts in tally.values()) == 1
    assert "grammar 'auto' (accelplug 0.1.0) compiled a json_schema with llguidance" in reference["log"]
    assert "checked at the end: #/uniqueItems" in reference["log"]


def check_violation(answer: dict[str, Any]) -> bool:
    """Return whether an answer violates its schema; that the client is told so exactly then."""
    valid = Draft202012Validator(UNIQUE).is_valid(json.loads(answer["text"]))
    assert (answer["stop_reason"] or "").startswith("accelplug: the value breaks uniqueItems") is not valid
    return not valid


def events(log: Path) -> Counter[str]:
    """Count what became of the oracle's drafts, from what it observed."""
    seen: Counter[str] = Counter()
    for record in (json.loads(line) for line in log.read_text().splitlines()):
        accepted, drafted = record["accepted"], record["drafted"]
        seen["nothing drafted" if not drafted else "none" if not accepted else "all" if accepted == drafted else "some"] += 1
        seen["EOS inside a draft"] += EOS in record["fresh"][:accepted]
    return seen


@pytest.mark.parametrize("runner", RUNNERS)
def test_speculation_changes_nothing(runner: str, run: Run, model_dir: Path, reference: dict[str, Any], sequences: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    oracle = {"name": "oracle", "sequences": str(sequences), "log": str(log), "pattern": PATTERN}
    both = RECORDS, SIDE_BY_SIDE
    others = [
        other("lookup", {"grammar": "auto", "drafter": "prompt_lookup(num_tokens=4, min_ngram=1)"}, *both),
        other("rule", {"grammar": "auto", "drafter": {**oracle, "log": ""}, "verifier": "block"}, RECORDS),
        *([] if runner == "v2-async" else [other("forced alone", {"grammar": "auto", "num_tokens": 4}, *both)]),
        *([] if runner == "v1" else [other("device", {"grammar": "auto", "drafter": {"name": "device_oracle", "sequences": str(sequences)}}, RECORDS)]),
    ]
    engines = [engine(model_dir, "oracle", *both, accelplug={"grammar": "auto", "drafter": oracle}, others=others)]
    if runner != "v1":  # there the reference is one
        engines.append(engine(model_dir, "alone", *both, accelplug={"grammar": "auto"}))
    done = run(runner, *engines)
    for name, one in done.items():
        if name != "log":
            assert "error" not in one, one
            assert (one["v2"], one["async"]) == (runner != "v1", runner == "v2-async")
            assert one["outputs"] == reference["outputs"][: len(one["outputs"])], name
            check_tokens(name, one, runner)
    seen = events(log)
    missing = {event for event in ("nothing drafted", "none", "some", "all", "EOS inside a draft") if not seen[event]}
    assert not missing, f"events that never happened: {missing}; seen: {dict(seen)}"


def check_tokens(name: str, done: dict[str, Any], runner: str) -> None:
    """Check that no token is unaccounted for, and that grammars did their part."""
    tallies = done["grammars"].values()
    forced, cut = sum(tally["accepted"] for tally in tallies), sum(tally["cut"] for tally in tallies)
    drafting = name != "alone" and runner != "v2-async"
    print(runner, name, done["grammars"]["auto"], done["status"] and done["status"][0]["stats"])
    assert (forced > 0) is drafting
    assert sum(tally["drafted"] for tally in tallies) >= forced
    assert sum(tally["failures"] for tally in tallies) == 0
    if name in {"oracle", "lookup"}:
        assert cut > 0, "no draft was illegal"
    if done["status"]:
        stats = done["status"][0]["stats"]
        assert stats["tokens"] == stats["forwards"] + stats["accepted"] + forced, "a token that nobody is said to have drafted"
