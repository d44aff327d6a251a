"""Run a job on vLLM: one subprocess per engine, so that no process ever holds two and a dead one is one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from accelplug._errors import HostError
from accelplug.cli.errors import debugging
from accelplug.cli.job import Job, Measurement, Output

WORKER: Final = "accelplug.cli.vllm_worker"
IN_PROCESS: Final = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Defaults of the subprocess's environment: it is already the engine's own process, and errors reach it whole."""


def measure(job: Job) -> Measurement:
    """Run the plain engine, if the job compares, then the accelerated one; each takes its rounds alone.

    :raises HostError: an engine refused or died.
    """
    plain = _engine(job, accelerated=False) if job.compare else None
    accelerated = _engine(job, accelerated=True)
    both = ", both under the grammar" if job.grammar else ""
    turns = f", each engine's rounds in its own process, one engine after the other{both}" if plain else ""
    return Measurement(
        _output(accelerated),
        None if plain is None else _output(plain),
        None if plain is None else plain["margins"],
        accelerated["stats"],
        accelerated["dtype"],
        f"medians of {job.rounds} rounds after one warm-up, without prefix caching{turns}; {accelerated['runner']} runner",
        accelerated["versions"],
        accelerated["grammar"],
    )


def _output(found: dict[str, Any]) -> Output:
    return Output(found["tokens"], found["text"], found["seconds"])


def _engine(job: Job, *, accelerated: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="accelplug-") as folder:
        asked, answered, log = (Path(folder) / name for name in ("job.json", "answer.json", "log"))
        asked.write_text(json.dumps({"job": job.as_dict(), "accelerated": accelerated}))
        with log.open("w") as stream:
            out = None if debugging() else stream
            done = subprocess.run(
                [sys.executable, "-m", WORKER, str(asked), str(answered)],
                stdout=out,
                stderr=out,
                env={**IN_PROCESS, **os.environ},
                check=False,
            )
        if not answered.is_file():
            raise HostError(f"vLLM's process ended with status {done.returncode} and no answer; its last words: {last_words(log)}")
        answer: dict[str, Any] = json.loads(answered.read_text())
    if "refused" in answer:
        raise HostError(answer["refused"])
    return answer


def last_words(log: Path) -> str:
    """Return the last line of a log, shortened, or that there is none."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "none (ACCELPLUG_DEBUG=1 shows the engine's log)"
