"""The trained model in vLLM on CUDA, its graphs on: same text in half precision, and no more waiting in a step than promised.

What was counted is kept in ``results/vllm_waits_*.json``, vLLM's own drafters and plain vLLM beside accelplug's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
import accelplug_testbed
from jobs import Run, engine, other
from machine import Machine
from measure import record
from place import RESULTS, circumstances
from transformers import AutoTokenizer

NEAR_TIE = 0.05
"""Nats; half-precision passes over several positions round unlike those over one."""
DRAFTERS = {
    "prompt_lookup(num_tokens=4)": "device", "suffix(num_tokens=4)": "device", "input_copy(num_tokens=4)": "device",
    "suffix(num_tokens=4, scope='process')": "host",
}  # fmt: skip
"""Where each drafts on V2 under asynchronous scheduling; on V1 all do in host memory."""
FIRST = next(iter(DRAFTERS))
RULES: dict[str, dict[str, Any]] = {
    name: {"verifier": name, "allow_lossy": name in {"typical", "fly"}} for name in ("block", "traversal", "k_seq", "typical", "fly", "halved")
}
"""Behind `FIRST`; the last is a third party's. All judge on the device."""
CURIOUS = "curious(num_tokens=4)"
"""Drafts as `FIRST` does, and waits for the device once a step: what the count must show."""
NGRAM = {"num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
VLLMS_OWN = {"v1": {"method": "ngram", **NGRAM}, "v2": {"method": "ngram_gpu", **NGRAM}, "v2-async": {"method": "ngram_gpu", **NGRAM}}
SIZES = {"dtype": "auto", "max_model_len": 2048, "max_num_seqs": 8}


@pytest.fixture(scope="module")
def testbed() -> Path:
    return Path(accelplug_testbed.path())


@pytest.fixture(scope="module")
def batch(testbed: Path, machine: Machine) -> dict[str, Any]:
    """Greedy requests; few and short ones where kernels are interpreted."""
    count, length = (2, 6) if machine.interprets else (6, 96)
    tokenizer = AutoTokenizer.from_pretrained(testbed)
    prompts = [tokenizer(entry["prompt"]).input_ids for entry in accelplug_testbed.prompts()[:count]]
    return {"prompts": prompts, "params": {"temperature": 0, "max_tokens": length, "logprobs": 2}}


@pytest.fixture(scope="module")
def plain_texts(run: Run, testbed: Path, batch: dict[str, Any]) -> Any:
    """What vLLM generates without a drafter, by runner."""
    found: dict[str, list[dict[str, Any]]] = {}

    def plain(runner: str) -> list[dict[str, Any]]:
        if runner not in found:
            (found[runner],) = run(runner, engine(testbed, "plain", batch, **SIZES))["plain"]["outputs"]
        return found[runner]

    return plain


def parted(mine: dict[str, Any], plain: dict[str, Any]) -> str | None:
    """Return how two texts part, None where they are equal or part at a near-tie."""
    tokens, others = mine["token_ids"], plain["token_ids"]
    for i, (a, b) in enumerate(zip(tokens, others, strict=False)):
        if a != b:
            margin = plain["margins"][i]
            return None if margin < NEAR_TIE else f"token {i}: {a} for {b}, which led by {margin:.3f} nats"
    return None if len(tokens) == len(others) else f"{len(tokens)} tokens for {len(others)}"


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("runner", ["v1", "v2-async"])
def test_output_equals_plain_in_half_precision(runner: str, drafter: str, run: Run, testbed: Path, batch: dict[str, Any], plain_texts: Any) -> None:
    """An engine started for each drafter, as people start it: nothing is put into one that runs."""
    plain = plain_texts(runner)
    fast = run(runner, engine(testbed, "fast", batch, accelplug={"drafter": drafter}, **SIZES))["fast"]
    assert "error" not in fast, fast
    assert fast["v2"] == (runner != "v1")
    (outputs,) = fast["outputs"]
    assert [parted(*pair) for pair in zip(outputs, plain, strict=True)] == [None] * len(plain)
    assert sum(a["token_ids"] == b["token_ids"] for a, b in zip(outputs, plain, strict=True)) > len(plain) // 2
    stats = fast["status"][0]["stats"]
    print(runner, drafter, stats["drafted"], stats["accepted"])
    assert 0 < stats["accepted"] <= stats["drafted"]


def asked(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the requests in whose steps waits are counted: every other one samples."""
    own = {"max_tokens": batch["params"]["max_tokens"], "ignore_eos": True}
    return {**batch, "params": [{**own, "temperature": 0.8 * (i % 2), "seed": i} for i in range(len(batch["prompts"]))]}


@pytest.fixture(scope="module", params=["v1", "v2-async"])
def profiles(request: pytest.FixtureRequest, run: Run, testbed: Path, batch: dict[str, Any], machine: Machine, tmp_path_factory: Any) -> Any:
    """Profile plain vLLM, vLLM's own drafter, and accelplug's drafters and rules; return the runner and what each did."""
    runner, counted = request.param, asked(batch)
    profiled = {"profiled": [counted]}
    settings = {**{name: {"drafter": name} for name in DRAFTERS}, **{name: {"drafter": FIRST, **rule} for name, rule in RULES.items()}}
    if runner != "v1":
        settings[CURIOUS] = {"drafter": CURIOUS}
    others = [{**other(name, given, counted), **profiled} for name, given in list(settings.items())[1:]]
    # In processes of their own: vLLM's own drafter on V1 loads numba, over whose functions vLLM stumbles when it starts another engine.
    started = (
        engine(testbed, "plain", counted, **SIZES),
        engine(testbed, "vLLM's own", counted, speculative_config=VLLMS_OWN[runner], **SIZES),
        engine(testbed, FIRST, counted, accelplug=settings[FIRST], others=others, **SIZES),
    )
    done = {name: what for one in started for name, what in run(runner, {**one, **profiled}).items() if name != "log"}
    failed = {name: what for name, what in done.items() if "error" in what}
    assert not failed, failed
    rows = [{"engine": name, **what["profile"], "waits a step": waits(what)} for name, what in done.items()]
    rows = [{**row, "waits": json.dumps(row["waits"])} for row in rows]
    folder = RESULTS if machine.name == "cuda" else tmp_path_factory.mktemp("results")
    record(f"vllm_waits_{runner}", rows, circumstances(runner), folder)
    return runner, done


def waits(done: dict[str, Any]) -> float:
    """Return how often a step waited for the device."""
    return float(sum(done["profile"]["waits"].values()) / done["profile"]["steps"])


def test_graphs_are_launched_in_the_profiles(profiles: tuple[str, dict[str, Any]], machine: Machine) -> None:
    _, done = profiles
    for name, what in done.items():
        assert what["profile"]["steps"] > 0, name
        assert (what["profile"]["launched"] > 0) == (machine.name == "cuda"), name
        for status in what["status"] or ():
            assert "switched_off" not in {**status["drafter"], **(status["verifier"] or {})}, name


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_drafter_makes_steps_wait_no_more_than_promised(drafter: str, profiles: tuple[str, dict[str, Any]]) -> None:
    """On the device not once more than vLLM's own drafter there; in host memory once a step more than plain vLLM, which waits for tokens alone."""
    runner, done = profiles
    on_device = runner != "v1" and DRAFTERS[drafter] == "device"
    assert runner == "v1" or done[drafter]["status"][0]["drafts_in"] == DRAFTERS[drafter]
    beside = done["vLLM's own" if on_device else "plain"]
    print(runner, drafter, {name: waits(done[name]) for name in (drafter, "vLLM's own", "plain")})
    assert waits(done[drafter]) - waits(beside) < (0.1 if on_device else 1.1)


def test_a_wait_is_counted(profiles: tuple[str, dict[str, Any]], machine: Machine) -> None:
    runner, done = profiles
    if runner != "v1":
        assert done[CURIOUS]["status"][0]["drafts_in"] == "device"
        assert (waits(done[CURIOUS]) - waits(done[FIRST]) > 0.9) == (machine.name == "cuda")


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_makes_no_step_wait(rule: str, profiles: tuple[str, dict[str, Any]]) -> None:
    _, done = profiles
    assert done[rule]["status"][0]["verifier"]["name"] == rule
    assert waits(done[rule]) - waits(done[FIRST]) < 0.1, (done[rule]["profile"], done[FIRST]["profile"])
