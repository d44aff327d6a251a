"""Structured outputs compiled by accelplug, on every runner: masked alike with and without speculation, through every hard event of both."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import torch
from jobs import RUNNERS, Run, engine, shared
from jsonschema import Draft202012Validator
from test_vllm_sampling import NEVER, biased, p_value
from transformers import AutoTokenizer, LlamaForCausalLM

PROMPTS = [[5, 6, 7, 8, 5, 6, 7], [20, 21, 22], [9, 9, 9, 9, 10, 11, 9, 9]]
PATTERN = [[4, 0], [3, 1], [0, 4], [2, 2], [4, 0], [0, 0], [4, 0]]
RECORD = {
    "type": "object",
    "properties": {"subject": {"enum": ["one", "two"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}, "thing": {"type": "string", "maxLength": 4}},
    "required": ["subject", "count", "thing"],
    "additionalProperties": False,
}
UNIQUE = {"type": "array", "items": {"enum": list(range(9))}, "minItems": 3, "maxItems": 5, "uniqueItems": True}
WORDS = {"<a>": {"enum": ["one", "two"], "pattern": "^o"}, "<b>": {"enum": ["one", "two"], "pattern": "^t"}}
"""Begin of a tag -> a schema of which xgrammar enforces the enum alone."""
TAGGED = {"type": "structural_tag", "format": {"type": "sequence", "elements": [
    {"type": "tag", "begin": begin, "content": {"type": "json_schema", "json_schema": schema}, "end": "!"} for begin, schema in WORDS.items()]}}  # fmt: skip
COMPACT = {"accelplug": {"whitespace": "compact"}}


def asking(structured: dict[str, Any] | None, max_tokens: int = 60, **extra: Any) -> dict[str, Any]:
    """Return greedy parameters."""
    return {"temperature": 0, "max_tokens": max_tokens, "structured_outputs": structured, "extra_args": {"accelplug": extra} if extra else None}


RECORDS = {"prompts": PROMPTS, "params": asking({"json": RECORD}, whitespace="compact")}
REGEX = "(one|two) [0-9]{2}(red|green)"
ENGINES = ("auto", "llguidance", "xgrammar", "outlines", "vllm", None)
SIDE_BY_SIDE = {
    "prompts": [PROMPTS[0]] * (len(ENGINES) + 6),
    "params": [
        *(asking({"regex": REGEX}, **({"grammar": name} if name else {})) for name in ENGINES),
        asking({"choice": ["fish", "boat"]}),
        asking({"grammar": 'root ::= "red" [0-9] "x"'}),
        asking({"json": UNIQUE}, whitespace="compact"),
        asking({"structural_tag": json.dumps(TAGGED)}),
        asking({"regex": REGEX}, all_of=[{"choice": ["two 45green", "six"]}]),
        asking(None, max_tokens=8),
    ],
}
"""Every engine on one expression, vLLM's own among them, and a request without a grammar: in one batch as far as slots go."""


@pytest.fixture(scope="module")
def ends(model_dir: Path) -> set[int]:
    """The tokens that end a text: the tokenizer's own, and the one that the generation configuration names."""
    return {1, json.loads((model_dir / "generation_config.json").read_text())["eos_token_id"]}


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


def test_masks_without_speculation(reference: dict[str, Any], ends: set[int]) -> None:
    assert "error" not in reference, reference
    assert reference["status"] is None or reference["worker_cls"].startswith("vllm."), "a grammar alone needs no worker of accelplug's"
    records, mixed = reference["outputs"]
    for answer in records:
        assert answer["finish_reason"] == "stop"
        assert answer["token_ids"][-1] in ends
        assert Draft202012Validator(RECORD).is_valid(json.loads(answer["text"]))
        assert " " not in answer["text"].replace(json.loads(answer["text"])["thing"], "")
    assert len({answer["text"] for answer in mixed[: len(ENGINES)]}) == 1, "engines mask one expression alike"
    choice, ebnf, unique, tagged, several, free = mixed[len(ENGINES) :]
    assert (choice["text"] in {"fish", "boat"}, ebnf["text"][:3], ebnf["text"][4:]) == (True, "red", "x")
    assert several["text"] == "two 45green", "what both of a request's grammars allow"
    assert free["finish_reason"] == "length"
    assert check_violation(unique), "the random model repeats itself, which this grammar leaves to the final check"
    words = re.fullmatch('<a>"(one|two)"!<b>"(one|two)"!', tagged["text"])
    assert words, tagged
    assert words.groups() != ("one", "two"), "the random model writes one word twice, which xgrammar leaves to the final check"
    assert re.match("accelplug: in structural_tag/format/elements/[01]/content/json_schema, the value breaks pattern", tagged["stop_reason"] or ""), tagged
    tally = reference["grammars"]
    assert {name: counts["answers"] for name, counts in tally.items()} == {"auto": len(PROMPTS) + 7, "llguidance": 1, "xgrammar": 1, "outlines": 1}
    assert sum(counts["violations"] for counts in tally.values()) == 2
    assert "grammar 'auto' (accelplug 0.1.0) compiled a json_schema with llguidance" in reference["log"]
    assert "checked at the end: #/uniqueItems" in reference["log"]
    assert "structural_tag/format/elements/0/content/json_schema#/pattern" in reference["log"]


def check_violation(answer: dict[str, Any]) -> bool:
    """Return whether an answer violates its schema; that the client is told so exactly then."""
    valid = Draft202012Validator(UNIQUE).is_valid(json.loads(answer["text"]))
    assert (answer["stop_reason"] or "").startswith("accelplug: the value breaks uniqueItems") is not valid
    return not valid


def events(log: Path, ends: set[int]) -> Counter[str]:
    """Count what became of the oracle's drafts, from what it observed."""
    seen: Counter[str] = Counter()
    for record in (json.loads(line) for line in log.read_text().splitlines()):
        accepted, drafted = record["accepted"], record["drafted"]
        seen["nothing drafted" if not drafted else "none" if not accepted else "all" if accepted == drafted else "some"] += 1
        seen["an end inside a draft"] += not ends.isdisjoint(record["fresh"][:accepted])
    return seen


@pytest.mark.parametrize("runner", RUNNERS)
def test_speculation_changes_nothing(
    runner: str, run_shared: Run, model_dir: Path, reference: dict[str, Any], ends: set[int], sequences: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    oracle = {"name": "oracle", "sequences": str(sequences), "log": str(log), "pattern": PATTERN}
    both = RECORDS, SIDE_BY_SIDE
    alone = both if runner == "v1" else (RECORDS,)  # V2 runs in Triton's interpreter
    asked: dict[str, tuple[Any, ...]] = {
        "oracle": ({"drafter": oracle}, *both),
        "lookup": ({"drafter": "prompt_lookup(num_tokens=4, min_ngram=1)"}, *alone),
        "rule": ({"drafter": {**oracle, "log": ""}, "verifier": "block"}, RECORDS),
    }
    if runner != "v2-async":
        asked["forced alone"] = {"num_tokens": 4}, *alone
    if runner != "v1":
        asked["device"] = {"drafter": {"name": "device_oracle", "sequences": str(sequences)}}, RECORDS
        asked["vLLM's drafter"] = {}, RECORDS
    done = run_shared(runner, *(shared(model_dir, name, *batches, accelplug={"grammar": "auto", **given}) for name, (given, *batches) in asked.items()))
    for name in asked:
        one = done[name]
        assert "error" not in one, one
        assert (one["v2"], one["async"]) == (runner != "v1", runner == "v2-async")
        assert one["outputs"] == reference["outputs"][: len(one["outputs"])], name
        check_tokens(name, one, runner)
    seen = events(log, ends)
    missing = {event for event in ("nothing drafted", "none", "some", "all", "an end inside a draft") if not seen[event]}
    assert not missing, f"events that never happened: {missing}; seen: {dict(seen)}"


@pytest.mark.by_hand
@pytest.mark.parametrize("runner", ["v2", "v2-async"])
def test_a_grammar_alone_on_v2(runner: str, run: Run, model_dir: Path, reference: dict[str, Any]) -> None:
    """Nothing drafts and no worker of accelplug's is there, as on V1 in `reference`."""
    done = run(runner, engine(model_dir, "alone", RECORDS, SIDE_BY_SIDE, accelplug={"grammar": "auto"}))["alone"]
    assert "error" not in done, done
    assert (done["v2"], done["async"], done["status"]) == (True, runner == "v2-async", None)
    assert done["outputs"] == reference["outputs"]
    assert sum(tally["drafted"] + tally["failures"] for tally in done["grammars"].values()) == 0


def check_tokens(name: str, done: dict[str, Any], runner: str) -> None:
    """Check that no token is unaccounted for, and that grammars did their part."""
    tallies = done["grammars"].values()
    forced, cut = sum(tally["accepted"] for tally in tallies), sum(tally["cut"] for tally in tallies)
    drafting = name != "vLLM's drafter" and runner != "v2-async"  # the scheduler adds nothing to those
    assert (forced > 0) is drafting
    assert sum(tally["drafted"] for tally in tallies) >= forced
    assert sum(tally["failures"] for tally in tallies) == 0
    if name in {"oracle", "lookup"}:
        assert cut > 0, "no draft was illegal"
    if name != "vLLM's drafter":
        stats = done["status"][0]["stats"]
        left = stats["tokens"] - stats["forwards"] - stats["accepted"] - forced
        assert left == 0 or (left > 0 and runner == "v2-async"), "a token that nobody is said to have drafted, and that cannot be padding"


PARTS = ("0123", "45", "7", "89")
DRAWN = [30, 31, 32]
SAMPLES, TEMPERATURE = 1500, 2.0
FAILING = {"prompts": [PROMPTS[1]] * 6, "params": [*(asking({"regex": "[ab]{9}"}, grammar=name) for name in ("faulty", "faulty_forced", "faulty_accept")),
                                                   asking({"regex": "[ab]{9}c"}, all_of=[{"regex": "[ab]{9}d"}]),
                                                   {**asking({"choice": ["fish"]}), "min_tokens": 20}, RECORDS["params"]]}  # fmt: skip
BRANCHES = {"allOf": [{"type": "object", "properties": {"x": {"type": "integer", "minimum": 10, "maximum": 99}}, "required": ["x"]},
                      {"properties": {"y": {"enum": ["one", "two"]}}, "required": ["y"], "maxProperties": 2}]}  # fmt: skip


def masked(model_dir: Path) -> dict[tuple[int, ...], float]:
    """Return the probability of every answer that the expression of `PARTS` allows, from the model itself."""
    model, tokenizer = LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32), AutoTokenizer.from_pretrained(model_dir)
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for part in PARTS:
        allowed = [tokenizer.convert_tokens_to_ids(digit) for digit in part]
        longer: dict[tuple[int, ...], float] = {}
        for tokens, probability in found.items():
            with torch.no_grad():
                scores = model(torch.tensor([DRAWN + list(tokens)])).logits[0, -1, allowed].double() / TEMPERATURE
            for token, share in zip(allowed, scores.softmax(-1).tolist(), strict=True):
                longer[*tokens, token] = probability * share
        found = longer
    return found


@pytest.fixture(scope="module")
def thinking(model_dir: Path, ends: set[int]) -> tuple[int, list[list[int]]]:
    """The token with which the model ends its reasoning, and prompts upon which it soon does."""
    end = AutoTokenizer.from_pretrained(model_dir).convert_tokens_to_ids(tiny_model.THOUGHT)
    model = LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    prompts = torch.randint(2, 300, (1500, 5), generator=torch.Generator().manual_seed(1))
    texts = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=14, do_sample=False, pad_token_id=0)[:, 5:].tolist()
    found = [prompt for prompt, text in zip(prompts.tolist(), texts, strict=True) if end in text[3:] and ends.isdisjoint(text[: text.index(end)])]
    assert len(found) > 1, "the random model never ends its reasoning; take another seed"
    return end, found[:3]


def test_grammar_alone_drafts_failures_end_one_request_and_samples_are_the_models(
    run_shared: Run, model_dir: Path, reference: dict[str, Any], tmp_path: Path
) -> None:
    expected = masked(model_dir)
    likely = max(expected, key=expected.__getitem__)
    file = tmp_path / "sequences.json"
    file.write_text(json.dumps([[DRAWN, list(likely)]]))
    drawn = {"temperature": TEMPERATURE, "max_tokens": 6, "structured_outputs": {"regex": "".join(f"[{part}]" for part in PARTS)}}
    batch = {"prompts": list(itertools.repeat(DRAWN, SAMPLES)), "params": drawn}
    branches = {"prompts": PROMPTS[:2], "params": asking({"json": BRANCHES}, whitespace="compact")}
    oracle = {"name": "oracle", "sequences": str(file), "pattern": [[1, 0], [2, 0]]}
    tables = tmp_path / "tables.json"
    tables.write_text(json.dumps([DRAWN, {" ".join(map(str, tokens[:place])): {tokens[place]: 1.0} for tokens in sorted(expected, key=expected.__getitem__)
                                          for place in range(len(PARTS))}]))  # fmt: skip
    drawer = {"name": "drawer", "tables": str(tables), "num_tokens": 2, "other": 0.5}
    done = run_shared(
        "v1",
        shared(model_dir, "alone", RECORDS, FAILING, branches, batch, accelplug={"grammar": "auto", "num_tokens": 4}),
        shared(model_dir, "drafted", batch, accelplug={"grammar": "auto", "drafter": oracle}),
        shared(model_dir, "drawn", batch, accelplug={"grammar": "auto", "drafter": drawer}),
    )
    assert "error" not in done["alone"], done["alone"]
    records, failing, branched, samples = done["alone"]["outputs"]
    assert records == reference["outputs"][0]
    assert [answer["finish_reason"] for answer in failing] == ["error"] * 4 + ["stop"] * 2
    assert re.search("no token is left after '[ab]{9}' that the grammars of a request all allow", done["log"])
    assert failing[-2]["text"] == "fish", "min_tokens beyond the only legal text"
    assert failing[-1]["text"] == json.dumps(json.loads(failing[-1]["text"]), separators=(",", ":"))
    assert done["log"].count("RuntimeError: the grammar has fallen silent; its request ends in an error") >= 3
    assert all(Draft202012Validator(BRANCHES).is_valid(json.loads(answer["text"])) for answer in branched), "several branches of allOf are all enforced"
    for name, outputs in (("alone", samples), ("drafted", done["drafted"]["outputs"][0]), ("drawn", done["drawn"]["outputs"][0])):
        counts = Counter(tuple(answer["token_ids"][:-1]) for answer in outputs)
        assert set(counts) <= set(expected), name
        assert p_value(counts, expected) > NEVER, name
        assert p_value(counts, biased(expected, likely, 0.2)) < NEVER, "too few samples to see such a bias"
    assert done["alone"]["grammars"]["auto"]["accepted"] > SAMPLES / 2, "the third digit is forced"
    assert done["drawn"]["grammars"]["auto"]["cut"] > SAMPLES / 4, "many drafts were drawn that the grammar cuts"
    for name in ("drafted", "drawn"):
        (status,) = done[name]["status"]
        assert status["grammar"] == "auto"
        assert "switched_off" not in status["drafter"], status
        assert 0.1 < status["stats"]["acceptance"] < 0.9, "some drafts must be accepted and some rejected"


def test_a_grammar_begins_where_reasoning_ends(
    run_shared: Run, model_dir: Path, ends: set[int], thinking: tuple[int, list[list[int]]], tmp_path: Path
) -> None:
    end, prompts = thinking
    undrafted = {"prompts": prompts, "params": asking({"json": RECORD}, whitespace="compact", max_tokens=70, num_tokens=0)}
    drafted = {"prompts": prompts, "params": asking({"json": RECORD}, whitespace="compact", max_tokens=70)}

    def generate(name: str, batch: dict[str, Any], drafter: Any) -> dict[str, Any]:
        done = run_shared("v1", shared(model_dir, name, batch, accelplug={"grammar": "auto", "drafter": drafter}, reasoning="deepseek_r1"))[name]
        assert "error" not in done, done
        return done

    plain = generate("plain", undrafted, "prompt_lookup(num_tokens=4, min_ngram=1)")
    assert (plain["status"][0]["stats"]["drafted"], plain["grammars"]["auto"]["drafted"]) == (0, 0)
    sequences, log = tmp_path / "sequences.json", tmp_path / "log.jsonl"
    sequences.write_text(json.dumps([[prompt, answer["token_ids"]] for prompt, answer in zip(prompts, plain["outputs"][0], strict=True)]))
    done = generate("oracle", drafted, {"name": "oracle", "sequences": str(sequences), "log": str(log), "pattern": [[4, 0], [2, 2], [3, 1]]})
    assert done["outputs"] == plain["outputs"]
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    for answer in plain["outputs"][0]:
        tokens = answer["token_ids"]
        assert answer["finish_reason"] == "stop"
        assert tokens[-1] in ends
        assert Draft202012Validator(RECORD).is_valid(json.loads(tokenizer.decode(tokens[tokens.index(end) + 1 : -1])))
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert any(end in record["fresh"][: record["accepted"] - 1] for record in records), "reasoning never ended inside accepted drafts"
    assert done["grammars"]["auto"]["accepted"] > 0, "nothing was forced behind the reasoning"
