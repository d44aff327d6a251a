"""The vLLM host on CUDA, its graphs on: same text, and no more waiting than promised. Skipped without a GPU.

    PYTHONPATH=. pytest integration/gpu -rs
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")
import accelplug_testbed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
HERE = Path(__file__).resolve().parent
PROMPTS = [entry["prompt"] for entry in accelplug_testbed.prompts()[:6]]
LENGTH = 96
NEAR_TIE = 0.05
"""Nats; half-precision passes over several positions round unlike those over one."""
DRAFTERS = {
    "prompt_lookup(num_tokens=4)": "device", "suffix(num_tokens=4)": "device", "input_copy(num_tokens=4)": "device",
    "suffix(num_tokens=4, scope='process')": "host",
}  # fmt: skip
"""Where each drafts on V2 under asynchronous scheduling."""
VLLMS_OWN = {"method": "ngram_gpu", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2}


@cache
def generated(folder: Path, runner: str, settings: str) -> dict[str, Any]:
    """Run one engine; `settings` is what is added to its arguments, as JSON."""
    job, result = folder / "job.json", folder / f"result-{abs(hash((runner, settings)))}.json"
    kwargs = {"model": str(accelplug_testbed.path()), "max_model_len": 2048, "max_num_seqs": 8, "seed": 0, **json.loads(settings)}
    job.write_text(json.dumps({"kwargs": kwargs, "prompts": PROMPTS, "params": {"temperature": 0, "max_tokens": LENGTH, "logprobs": 2}}))
    env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    env |= {"VLLM_USE_V2_MODEL_RUNNER": "1" if runner == "v2" else "0"}
    done = subprocess.run([sys.executable, HERE / "drive_vllm.py", job, result], env=env, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(result.read_text()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda")


def parted(mine: list[int], plain: list[int], margins: list[float]) -> str | None:
    """Return how two texts part, None where they are equal or part at a near-tie."""
    for i, (a, b) in enumerate(zip(mine, plain, strict=False)):
        if a != b:
            return None if margins[i] < NEAR_TIE else f"token {i}: {a} for {b}, which led by {margins[i]:.3f} nats"
    return None if len(mine) == len(plain) else f"{len(mine)} tokens for {len(plain)}"


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_output_equals_plain_with_graphs(folder: Path, runner: str, drafter: str) -> None:
    plain = generated(folder, runner, "{}")
    fast = generated(folder, runner, json.dumps({"additional_config": {"accelplug": {"drafter": drafter, "runner": runner}}}))
    assert fast["v2"] == (runner == "v2")
    assert "NONE" not in fast["cudagraph_mode"]
    pairs = zip(fast["outputs"], plain["outputs"], plain["margins"], strict=True)
    assert [parted(*pair) for pair in pairs] == [None] * len(PROMPTS)
    assert sum(a == b for a, b in zip(fast["outputs"], plain["outputs"], strict=True)) > len(PROMPTS) // 2
    stats = fast["status"][0]["stats"]
    assert 0 < stats["accepted"] < stats["drafted"]


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_steps_wait_no_more_than_promised(folder: Path, drafter: str) -> None:
    """On V2, beside vLLM's own drafter: not once more for a drafter on the device, once a step for one in host memory."""
    own = generated(folder, "v2", json.dumps({"async_scheduling": True, "speculative_config": VLLMS_OWN}))
    mine = generated(folder, "v2", json.dumps({"async_scheduling": True, "additional_config": {"accelplug": {"drafter": drafter}}}))
    assert mine["status"][0]["drafts_in"] == DRAFTERS[drafter]
    extra = sum(mine["waits"].values()) / mine["steps"] - sum(own["waits"].values()) / own["steps"]
    assert extra < (0.1 if DRAFTERS[drafter] == "device" else 1.1), (mine["waits"], mine["steps"], own["waits"], own["steps"])
