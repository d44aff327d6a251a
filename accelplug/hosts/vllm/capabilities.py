"""What vLLM provides to techniques, by runner."""

from __future__ import annotations

from accelplug.hooks.capabilities import Host
from accelplug.hosts.vllm.compat import RunnerName


def host_of(runner: RunnerName, tensor_parallel_size: int) -> Host:
    """Return what one runner provides: V2 keeps committed tokens on the device; shards of a matrix are no matrix, and ranks that draw may
    draw apart.
    """
    provides = {"sampling", "verify.rule", "verify.path"}
    if runner == "V2":
        provides.add("tokens.device")
    if tensor_parallel_size > 1:
        return Host(f"vllm's {runner} runner with {tensor_parallel_size} tensor-parallel ranks", frozenset(provides))
    return Host(f"vllm's {runner} runner", frozenset(provides | {"embed", "draft.rows"}))
