"""vLLM 0.30's CPU build cannot verify drafts, whoever drafts: who launches its kernels does not have them.

That release launches each kernel of its rejection sampler by a launcher that holds it, and its CPU runner lays what stands in for
Triton beside the launchers, where the releases before had looked. vLLM 0.31 hands it over by itself.
"""

from __future__ import annotations

import importlib
from typing import Any

from packaging.version import Version

from accelplug.hosts.vllm.compat import ENGINE, LAUNCHERS, MISLAID
from accelplug.hosts.vllm.cpu_expand import MODULE
from accelplug.hosts.vllm.plugin import replace


def hand_over() -> list[str]:
    """Give the launchers the kernels that lie beside them; return their names, none in releases that need no help."""
    first, behind = map(Version, MISLAID)
    if not first <= Version(ENGINE.version() or "0") < behind:
        return []
    module: Any = importlib.import_module(MODULE)
    for name in LAUNCHERS:
        launcher, kernel = getattr(module, f"_{name}"), getattr(module, f"{name}_kernel")
        if launcher.kernel is not kernel:
            replace(launcher, "kernel", kernel)
    return [f"_{name}" for name in LAUNCHERS]
