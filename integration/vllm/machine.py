"""What engines are started with on a CPU, and on a GPU: the same tests run on either, and what differs between them is here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from accelplug.testing.vllm_processes import vllm_environment

CUDA_SETTINGS: Mapping[str, str] = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Triton multiplies float32 as TF32 unless told; a draft's pass over several positions would then round unlike plain vLLM's over one.
    "TRITON_F32_DEFAULT": "ieee",
}
SHARE = 0.1
"""Of the GPU's memory for each engine: up to six live at once."""
FURTHER = "ACCELPLUG_GPU_ENGINE"
"""An environment variable with further arguments for every engine on a GPU, as JSON."""


class Machine(Protocol):
    """Where engines run.

    :ivar name: "cpu" or "cuda".
    :ivar worker: vLLM's worker there, as the log names it.
    :ivar host_wait: how the log says what a step waits for on V2 where drafts come from host memory, up to where schedulers differ.
    :ivar interprets: V2's kernels run in Triton's interpreter, where a token is dear.
    """

    name: str
    worker: str
    host_wait: str
    interprets: bool

    def environment(self, runner: str, *, serve: bool = False) -> dict[str, str]:
        """Return a subprocess's environment; `serve`: it is ``vllm serve``."""

    def arguments(self, runner: str) -> dict[str, Any]:
        """Return what an engine on this runner is told beside its test's own arguments, over which these win."""

    def check(self, done: Mapping[str, Any]) -> None:
        """Look at what `drive_engines` noted of an engine: it must have run as this machine's engines run."""

    def check_log(self, log: str) -> None:
        """Look at a server's log for the same."""


@dataclass(frozen=True)
class Cpu:
    """vLLM's build for CPUs, without compilation; V2 in Triton's interpreter."""

    name: str = "cpu"
    worker: str = "vllm:v1:worker:cpu_worker:CPUWorker"
    host_wait: str = "no wait on a CPU"
    interprets: bool = True

    def environment(self, runner: str, *, serve: bool = False) -> dict[str, str]:
        return vllm_environment(runner, serve=serve)  # type: ignore[arg-type]

    def arguments(self, runner: str) -> dict[str, Any]:  # noqa: ARG002
        return {"enforce_eager": True}

    def check(self, done: Mapping[str, Any]) -> None:
        """Nothing is captured here."""
        assert done["graphs"]["captured"] == 0

    def check_log(self, log: str) -> None:
        """Nothing to look for."""


@dataclass(frozen=True)
class Cuda:
    """vLLM as it is installed, its CUDA graphs on."""

    name: str = "cuda"
    worker: str = "vllm:v1:worker:gpu_worker:Worker"
    host_wait: str = "one wait for the device a step"
    interprets: bool = False

    def environment(self, runner: str, *, serve: bool = False) -> dict[str, str]:  # noqa: ARG002
        chosen = {"VLLM_USE_V2_MODEL_RUNNER": "0" if runner == "v1" else "1"}
        return {**os.environ, **CUDA_SETTINGS, **chosen, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}

    def arguments(self, runner: str) -> dict[str, Any]:
        told = {"enforce_eager": False, "gpu_memory_utilization": SHARE, **json.loads(os.environ.get(FURTHER, "{}"))}
        return told if runner == "v1" else {"async_scheduling": runner == "v2-async", **told}

    def check(self, done: Mapping[str, Any]) -> None:
        """Graphs were captured, and what was generated came out of them."""
        assert done["graphs"]["captured"] > 0, done["graphs"]
        assert done["graphs"]["replayed"] > 0 or not any(done["outputs"]), done["graphs"]

    def check_log(self, log: str) -> None:
        assert "Graph capturing finished" in log, log[-3000:]


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Return an engine's arguments as ``vllm serve`` takes them."""
    told = []
    for name, value in arguments.items():
        dashed = name.replace("_", "-")
        if isinstance(value, bool):
            told.append(f"--{dashed}" if value else f"--no-{dashed}")
        else:
            told += [f"--{dashed}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
    return told
