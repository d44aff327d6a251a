"""Jobs for the driver: which engines to run, in which environment, and what they did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelplug.testing.vllm_processes import vllm_environment

HERE = Path(__file__).resolve().parent
RUNNERS = ("v1", "v2", "v2-async")

Engine = dict[str, Any]
Run = Callable[..., dict[str, Any]]


def engine(
    model_dir: Path, name: str, *batches: dict[str, Any],
    accelplug: dict[str, Any] | None = None, log: Path | None = None, others: Sequence[Engine] = (), **kwargs: Any,
) -> Engine:  # fmt: skip
    """Describe an engine for the driver; small and in full precision, so that greedy text is the same in every batch.

    :param log: a file in which the driver marks where each batch begins.
    :param others: what `other` describes, run in the same engine afterwards.
    """
    small = {"dtype": "float32", "max_model_len": 96, "max_num_seqs": 3, "enforce_eager": True, "disable_log_stats": False, "seed": 0}
    configured = {} if accelplug is None else {"additional_config": {"accelplug": accelplug}}
    told = {"model": str(model_dir), **small, **configured, **kwargs}
    return {"name": name, "batches": batches, "log": log and str(log), "others": others, "kwargs": told}


def other(name: str, accelplug: dict[str, Any], *batches: dict[str, Any]) -> Engine:
    """Describe other settings for an engine that runs already; the draft length is the engine's."""
    return {"name": name, "accelplug": accelplug, "batches": batches}


def environment(runner: str, *folders: Path, serve: bool = False, **more: str) -> dict[str, str]:
    """Return a subprocess's environment with more folders on its path."""
    env = vllm_environment(runner, serve=serve)
    env["PYTHONPATH"] = os.pathsep.join([*map(str, folders), *filter(None, [env["PYTHONPATH"]])])
    return {**env, **more}


def run_engines(folder: Path, site: Path, runner: str, *engines: Engine, **more: str) -> dict[str, Any]:
    """Run engines in one subprocess; return what each did, by name, and the log under "log"."""
    job, result = folder / "job.json", folder / "result.json"
    job.write_text(json.dumps({"engines": engines}))
    env = environment(runner, site, VLLM_ENABLE_V1_MULTIPROCESSING="0", **more)
    done = subprocess.run([sys.executable, HERE / "drive_engines.py", job, result], env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:] or done.stdout[-4000:]
    return {**json.loads(result.read_text()), "log": done.stdout + done.stderr}
