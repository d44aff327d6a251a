"""A plugin that fails stops the start with one sentence, or is switched off while the engine goes on serving right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from batches import FAILING
from jobs import Run, engine, shared

SERVING = {
    "raises": "propose raised RuntimeError: the oracle has fallen silent",
    "overdrawn": "propose raised PluginError: drafter 'overdrawn' (adversaries 1.5) drafted",
    "out_of_vocabulary": "propose_on_device raised PluginError: drafter 'out_of_vocabulary' (adversaries 1.5) drafted token ids",
}


@pytest.mark.parametrize("runner", ["v1", "v2-async"])
def test_failures(runner: str, run_shared: Run, model_dir: Path, tmp_path: Path, plain: dict[str, list[dict[str, Any]]]) -> None:
    outputs = plain["failing"]
    sequences = tmp_path / "sequences.json"
    sequences.write_text(json.dumps([[prompt, output["token_ids"]] for prompt, output in zip(FAILING["prompts"], outputs, strict=True)]))
    drafters: dict[str, Any] = {name: name for name in ("overdrawn", "reader", "out_of_vocabulary", "unbuildable", "hidden")}
    drafters["raises"] = {"name": "oracle", "sequences": str(sequences), "num_tokens": 2, "pattern": [[1, 1]], "raise_at": 3}
    done = run_shared(runner, *(shared(model_dir, name, FAILING, accelplug={"drafter": drafter}) for name, drafter in drafters.items()))
    check_refused(done["hidden"], "HostError", "drafter 'hidden' (adversaries 1.5) needs 'hidden.last'")
    check_refused(done["unbuildable"], "PluginError", "drafter 'unbuildable' (adversaries 1.5) failed to build", "no weights for this drafter")
    assert "switched_off" not in done["reader"]["status"][0]["drafter"]
    switched_off = dict(SERVING)
    if runner == "v1":
        check_refused(done["out_of_vocabulary"], "HostError", "drafts on the device only", "use runner 'v2'")
        del switched_off["out_of_vocabulary"]
    for name, reason in switched_off.items():
        assert done[name]["status"][0]["drafter"]["switched_off"].startswith(reason)
        assert sum("is switched off" in line for line in done["log"].splitlines() if f"{reason[:40]}" in line) == 1, "one error is logged"
    for name in {*switched_off, "reader"}:
        assert done[name]["outputs"][0] == outputs
    assert done["raises"]["status"][0]["stats"]["accepted"] > 0, "it drafted before it failed"


def check_refused(done: dict[str, Any], error: str, *parts: str) -> None:
    assert done.get("error") == error, done
    assert "\n" not in done["message"], "one sentence"
    for part in parts:
        assert part in done["message"]


@pytest.mark.by_hand
def test_a_refusal_of_the_worker_stops_the_start(run: Run, model_dir: Path) -> None:
    done = run("v1", engine(model_dir, "hidden", FAILING, accelplug={"drafter": "hidden"}))
    check_refused(done["hidden"], "HostError", "drafter 'hidden' (adversaries 1.5) needs 'hidden.last'")
