"""Counts what an engine in this process does: CUDA graphs that are captured and replayed, steps, and waits for the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "cudaMemcpy")
"""Calls that return once the device is done; a copy to or from memory that is not pinned ends in the first."""
LAUNCHES = ("cudaGraphLaunch",)


def count_graphs() -> Counter[str]:
    """Count graphs from here on, whichever part of vLLM captures and replays them."""
    seen: Counter[str] = Counter(captured=0, replayed=0)
    for method, counted in (("capture_begin", "captured"), ("replay", "replayed")):
        setattr(torch.cuda.CUDAGraph, method, _counting(getattr(torch.cuda.CUDAGraph, method, None), seen, counted))
    return seen


def _counting(original: Any, seen: Counter[str], counted: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        seen[counted] += 1
        return original(*args, **kwargs)

    return call


def profiled(llm: Any, generate: Callable[[], Any]) -> dict[str, Any]:
    """Return how many steps the worker took while something was generated, and which waits and graphs a profile shows of them."""
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    steps: Counter[str] = Counter()
    had, original = vars(worker).get("execute_model"), worker.execute_model
    worker.execute_model = _counting(original, steps, "steps")
    try:
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]) as trace:
            generate()
    finally:
        if had is None:
            del worker.execute_model
        else:
            worker.execute_model = had
    seen = {event.key: event.count for event in trace.key_averages()}
    return {
        "steps": steps["steps"],
        "waits": {name: seen[name] for name in WAITS if name in seen},
        "launched": sum(seen.get(name, 0) for name in LAUNCHES),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
