"""When vLLM's engine core works masks out: how much of that time lies inside a forward pass, by executor.

    python integration/speed/mask_overlap.py [--model DIR] [--concurrency 4]

Both ends note when they begin and end, on the clock that all processes of a machine share: the engine core its
`StructuredOutputManager.grammar_bitmask`, the worker its `execute_model`. With the executor `mp`, which vLLM takes on CPUs for every server, core and
worker are processes of their own; with `uni`, which it allows there in a script's own process alone, they share one, and on a CPU one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from grammar_speed import schema_of
from measure import record

from accelplug.cli.bench.tasks import JSON

NEW_TOKENS: Final = 128
FOLDER: Final = "MASK_OVERLAP_FOLDER"
MASKS, FORWARDS = "masks", "forwards"
Intervals = list[tuple[float, float]]


def noted(method: Callable[..., Any], name: str, folder: Path) -> Callable[..., Any]:
    """Return a method that notes when it is called and when it returns, one line for each step."""

    def noting(*args: Any, **kwargs: Any) -> Any:
        if name == FORWARDS and not args[1].total_num_scheduled_tokens:
            return method(*args, **kwargs)  # a step in which requests end, and nothing runs
        began = time.monotonic()
        try:
            return method(*args, **kwargs)
        finally:
            with (folder / name).open("a") as file:
                file.write(f"{began} {time.monotonic()}\n")

    return noting


def take_notes(folder: Path) -> None:
    """Note both in this process."""
    from vllm.v1.structured_output import StructuredOutputManager
    from vllm.v1.worker.gpu_worker import Worker

    StructuredOutputManager.grammar_bitmask = noted(StructuredOutputManager.grammar_bitmask, MASKS, folder)
    Worker.execute_model = noted(Worker.execute_model, FORWARDS, folder)


if FOLDER in os.environ:  # also where vLLM's processes import this file, being spawned from it
    take_notes(Path(os.environ[FOLDER]))


def serve(model: str, executor: str, concurrency: int) -> None:
    """Write records under their schemas, twice, and keep the notes of the second time."""
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    settings = {"additional_config": {"accelplug": {"grammar": "auto"}}, "distributed_executor_backend": executor}
    llm = LLM(model, dtype="float32", max_model_len=1024, enforce_eager=True, max_num_seqs=concurrency, **settings)
    texts = [JSON[i % len(JSON)] for i in range(concurrency)]
    params = [
        SamplingParams(temperature=0, max_tokens=NEW_TOKENS, structured_outputs=StructuredOutputsParams(json=schema_of(text)))
        for text in texts
    ]
    llm.generate(texts, params, use_tqdm=False)  # compiles
    for name in (MASKS, FORWARDS):
        (Path(os.environ[FOLDER]) / name).unlink()
    llm.generate(texts, params, use_tqdm=False)


def intervals(file: Path) -> Intervals:
    return sorted((float(began), float(ended)) for began, ended in map(str.split, file.read_text().splitlines()))


def inside(masks: Intervals, forwards: Intervals) -> float:
    """Return how many seconds of the masks lie inside forward passes."""
    return sum(max(0.0, min(ended, end) - max(began, begin)) for began, ended in masks for begin, end in forwards)


def waited_for(masks: Intervals, forwards: Intervals) -> float:
    """Return how many seconds of the masks lie behind the end of their own step's forward pass, where sampling waits for them."""
    return sum(max(0.0, ended - max(began, end)) for (began, ended), (_, end) in zip(masks, forwards, strict=True))


def row(executor: str, concurrency: int, masks: Intervals, forwards: Intervals) -> dict[str, Any]:
    spent, within = sum(end - begin for begin, end in masks), inside(masks, forwards)
    pace = sum(end - begin for begin, end in forwards) / len(forwards)
    return {
        "executor": executor, "requests": concurrency, "steps with masks": len(masks), "mask ms a step": 1000 * spent / len(masks),
        "forward ms a step": 1000 * pace, "share inside a forward pass": within / spent,
        "share that sampling waits for": waited_for(masks, forwards) / spent,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.model is None:
        import accelplug_testbed

        given.model = str(accelplug_testbed.path())
    if given.serve:
        serve(given.model, given.serve, given.concurrency)
        return
    rows = []
    for executor in ("uni", "mp"):
        with tempfile.TemporaryDirectory() as folder:
            asked = [sys.executable, __file__, "--model", given.model, "--concurrency", str(given.concurrency), "--serve", executor]
            environment = {**os.environ, FOLDER: folder, "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if executor == "mp" else "0"}
            subprocess.run(asked, env=environment, check=True)
            rows.append(row(executor, given.concurrency, *(intervals(Path(folder) / name) for name in (MASKS, FORWARDS))))
    record("mask_overlap", rows, {"new_tokens": NEW_TOKENS, "runner": "V1", "argv": json.dumps(sys.argv[1:])})


if __name__ == "__main__":
    main()
