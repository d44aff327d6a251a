"""Environments for subprocesses that run vLLM on a machine without a GPU: on either runner, offline and online."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from accelplug._errors import HostError
from accelplug.hosts.vllm.compat import ENGINE

Runner = Literal["v1", "v2", "v2-async"]

HERE: Final = Path(__file__).resolve().parent
METADATA: Final = "accelplug-vllm-metadata-"
SETTINGS: Final[Mapping[str, str]] = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_CI_ENV": "1",  # skips compilation
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def vllm_environment(runner: Runner, *, serve: bool = False) -> dict[str, str]:
    """Return environment variables for a Python subprocess that runs vLLM's CPU build.

    :param runner: the model runner. V2 runs in Triton's interpreter: right, and slow; ``"v2-async"`` adds asynchronous
        scheduling, which vLLM turns off on CPUs.
    :param serve: the subprocess is ``vllm serve``, which asks for the metadata of a distribution named vllm that the
        wheel for CPUs does not have.
    :raises HostError: there is no such runner.
    """
    if runner not in ("v1", "v2", "v2-async"):
        raise HostError(f"vLLM has no runner {runner!r} on a CPU; use 'v1', 'v2' or 'v2-async'")
    ours = [str(HERE / "v2_on_cpu")] if runner != "v1" else []
    ours += [_metadata_of_vllm().name] if serve else []
    inherited_path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    theirs = [entry for entry in inherited_path if entry and Path(entry).parent != HERE and not Path(entry).name.startswith(METADATA)]
    # Which runner it becomes is vLLM's own choice: without Triton there is only V1, with it V2 is the default.
    inherited = {name: value for name, value in os.environ.items() if name != "VLLM_USE_V2_MODEL_RUNNER"}
    asynchronous = {"ACCELPLUG_V2_ASYNC": "1" if runner == "v2-async" else "0"}
    return {**inherited, **SETTINGS, **asynchronous, "PYTHONPATH": os.pathsep.join([*ours, *theirs])}


@functools.cache
def _metadata_of_vllm() -> tempfile.TemporaryDirectory[str]:
    """Return a folder, as long as this process lives, with the metadata of a distribution named vllm: of the release that is installed."""
    release = (ENGINE.version() or "0").partition("+")[0]
    folder = tempfile.TemporaryDirectory(prefix=METADATA)
    info = Path(folder.name) / f"vllm-{release}+cpu.dist-info"
    info.mkdir()
    summary = "Stand-in for the metadata of vllm, whose code the vllm-cpu distribution installs. For tests."
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {release}+cpu\nSummary: {summary}\n")
    return folder
