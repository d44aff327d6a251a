"""Jobs for the driver: which engines to run, in which environment, and what they did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from installed import listed
from machine import Cpu, Machine
from packaging.version import Version

from accelplug.hosts.vllm.compat import ENGINE

HERE = Path(__file__).resolve().parent
DRAFTS = 4
"""How many tokens the drafters in a shared engine draft, some of them fewer."""
SHARED = {"max_num_batched_tokens": 40, "block_size": 32, "num_gpu_blocks_override": 8, "enable_prefix_caching": True}
"""A shared engine's sizes: longer prompts are read in parts, and three long requests do not fit its cache."""
STARTED = {"drafter": f"prompt_lookup(num_tokens={DRAFTS}, min_ngram=1)"} | ({} if Version(ENGINE.version() or "0") < Version("0.32") else {"grammar": "auto"})
"""With what a shared engine is started, before anybody's settings are put into it."""
RUNNERS = ("v1", "v2", "v2-async")
CPU = Cpu()

LOGS: list[Path] = []
"""Logs in which vLLM says so when it starts an engine; those that other machines than `CPU` start are not counted."""


def engines_started() -> int:
    """Return how many engines were started since the tests began."""
    return sum(log.read_text(errors="replace").count("Initializing a V1 LLM engine") for log in LOGS if log.exists())


Engine = dict[str, Any]
Run = Callable[..., dict[str, Any]]
Plain = Callable[..., list[list[dict[str, Any]]]]


def engine(
    model_dir: Path, name: str, *batches: dict[str, Any],
    accelplug: dict[str, Any] | None = None, log: Path | None = None, others: Sequence[Engine] = (), **kwargs: Any,
) -> Engine:  # fmt: skip
    """Describe an engine for the driver; small and in full precision, so that greedy text is the same in every batch.

    :param log: a file in which the driver marks where each batch begins.
    :param others: what `other` describes, run in the same engine afterwards.
    """
    small = {"dtype": "float32", "max_model_len": 96, "max_num_seqs": 3, "disable_log_stats": False, "seed": 0}
    configured = {} if accelplug is None else {"additional_config": {"accelplug": accelplug}}
    told = {"model": str(model_dir), **small, **configured, **kwargs}
    return {"name": name, "batches": batches, "log": log and str(log), "others": others, "kwargs": told}


def shared(
    model_dir: Path, name: str, *batches: dict[str, Any], accelplug: dict[str, Any], log: Path | None = None, reasoning: str | None = None
) -> Engine:
    """Describe what may be asked of the engine that others use too; drafters in it draft at most `DRAFTS` tokens.

    Settings with a verifier alone judge what vLLM's own n-gram drafter drafts, where the runner is V2.

    :param reasoning: the name of vLLM's parser for models that reason.
    """
    started = engine(model_dir, name, *batches, accelplug=STARTED, log=log, **SHARED)
    return {**started, "accelplug": accelplug, "reasoning": reasoning, "shared": True}


def other(name: str, accelplug: dict[str, Any], *batches: dict[str, Any]) -> Engine:
    """Describe other settings for an engine that runs already; the draft length is the engine's."""
    return {"name": name, "accelplug": accelplug, "batches": batches}


def environment(runner: str, *folders: Path, serve: bool = False, machine: Machine = CPU, **more: str) -> dict[str, str]:
    """Return a subprocess's environment with more folders on its path, whose plugins are loaded and no others."""
    env = machine.environment(runner, serve=serve)
    env["PYTHONPATH"] = os.pathsep.join([*map(str, folders), *filter(None, [env["PYTHONPATH"]])])
    return {**env, "ACCELPLUG_PLUGINS": listed(*folders), **more}


def run_engines(folder: Path, site: Path, runner: str, *engines: Engine, machine: Machine = CPU, **more: str) -> dict[str, Any]:
    """Run engines in one subprocess; return what each did, by name, and the log under "log"."""
    kept = Kept(folder, site, runner, machine, **more)
    try:
        return kept.run(*engines)
    finally:
        kept.stop()


class Kept:
    """A subprocess for one runner. Engines that jobs may share are started once in it."""

    def __init__(self, folder: Path, site: Path, runner: str, machine: Machine = CPU, **more: str) -> None:
        self.folder, self.log, self.jobs, self.machine, self.runner = folder, folder / "log.txt", 0, machine, runner
        env = environment(runner, site, machine=machine, VLLM_ENABLE_V1_MULTIPROCESSING="0", **more)
        if machine is CPU:
            LOGS.append(self.log)
        with self.log.open("w") as log:
            self.process = subprocess.Popen([sys.executable, HERE / "drive_engines.py"], env=env, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True)

    def run(self, *engines: Engine) -> dict[str, Any]:
        """Run a job; return what each engine did, by name, and what it logged under "log"."""
        self.jobs += 1
        job, result, begin = self.folder / f"job{self.jobs}.json", self.folder / f"result{self.jobs}.json", self.log.stat().st_size
        on_machine = self.machine.arguments(self.runner)
        job.write_text(json.dumps({"engines": [{**one, "kwargs": {**one["kwargs"], **on_machine}} for one in engines]}))
        assert self.process.stdin is not None
        self.process.stdin.write(f"{job}\t{result}\n")
        self.process.stdin.flush()
        end = time.monotonic() + 900
        while not result.exists():
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < end, self.log.read_text()[-4000:]
            time.sleep(0.05)
        found = json.loads(result.read_text())
        for done in found.values():
            if "error" not in done:
                self.machine.check(done)
        return {**found, "log": self.log.read_bytes()[begin:].decode(errors="replace")}

    def stop(self) -> None:
        """End the process, and wait for it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(200)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
