"""What vLLM provides to techniques, by runner."""

from __future__ import annotations

from typing import Final

from accelplug.hooks.capabilities import Host
from accelplug.hosts.vllm.compat import RunnerName

COMMON: Final = frozenset({"sampling", "embed"})

HOST: Final = Host("vllm", COMMON | {"tokens.device"})
"""What one of the runners provides: the front end refuses whatever none of them does."""


def host_of(runner: RunnerName) -> Host:
    """Return what one runner provides; only V2 keeps committed tokens on the device."""
    return Host(f"vllm's {runner} runner", HOST.provides if runner == "V2" else COMMON)
