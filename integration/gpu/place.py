"""Where these checks run: on a GPU, or by hand on a CPU, so that their code is run before anybody has one.

``ACCELPLUG_GPU_CHECKS_ON=cpu`` makes vLLM's build for CPUs answer them: no graphs are captured there and nothing waits, so that such a run shows
that the checks themselves work, and nothing of a GPU.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
FOLDERS = [str(HERE.parent / name) for name in ("vllm", "speed")]
"""Of the tests and measurements that run here too."""
sys.path += [folder for folder in FOLDERS if folder not in sys.path]

from machine import Cpu, Cuda, Machine  # noqa: E402

from accelplug._errors import HostError  # noqa: E402
from accelplug.hosts.vllm.compat import ENGINE, require_front_end  # noqa: E402

ON_CPU = os.environ.get("ACCELPLUG_GPU_CHECKS_ON") == "cpu"
MACHINE: Machine = Cpu() if ON_CPU else Cuda()
RESULTS = HERE / "results"


def missing() -> str | None:
    """Return why engines cannot be asked here; None where they can."""
    if ON_CPU:
        return None
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    try:
        require_front_end()
    except HostError as exc:
        return str(exc)
    return None


def circumstances(runner: str) -> dict[str, object]:
    """Return what a result of a GPU is worth nothing without."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "cuda": torch.version.cuda, "vllm": ENGINE.version(), "arguments": MACHINE.arguments(runner), "runner": runner}
