"""Runs one engine on a GPU and writes down what it generated and how often a step waited for the device. Started as a subprocess.

    python integration/gpu/drive_vllm.py JOB.json RESULT.json

The job is ``{"kwargs": {...}, "prompts": [...], "params": {...}}``; the engine lives in this process, so that the profiler sees it.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from vllm import LLM, SamplingParams

WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")


def counting_steps(llm: LLM) -> Counter[str]:
    """Count the worker's steps from here on."""
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    steps: Counter[str] = Counter()
    original = worker.execute_model

    def execute_model(*args: Any, **kwargs: Any) -> Any:
        steps["steps"] += 1
        return original(*args, **kwargs)

    worker.execute_model = execute_model
    return steps


def main(job: dict[str, Any]) -> dict[str, Any]:
    llm = LLM(**job["kwargs"])
    params = SamplingParams(**job["params"])
    outputs = llm.generate(job["prompts"], params, use_tqdm=False)  # compiles and captures what is left to be
    steps = counting_steps(llm)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]) as trace:
        llm.generate(job["prompts"], params, use_tqdm=False)
    waits = Counter({event.key: event.count for event in trace.key_averages() if event.key in WAITS})
    config = llm.llm_engine.vllm_config
    configured = "accelplug" in (config.additional_config or {})
    return {
        "outputs": [list(output.outputs[0].token_ids) for output in outputs],
        "margins": [margins(output.outputs[0]) for output in outputs],
        "waits": dict(waits),
        "steps": steps["steps"],
        "v2": bool(config.use_v2_model_runner),
        "cudagraph_mode": str(config.compilation_config.cudagraph_mode),
        "status": llm.collective_rpc("accelplug_status") if configured else None,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def margins(output: Any) -> list[float]:
    """Return by how much each token was likelier than the next best, in nats."""
    found = []
    for row in output.logprobs or []:
        first, second = sorted((entry.logprob for entry in row.values()), reverse=True)[:2]
        found.append(first - second)
    return found


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
