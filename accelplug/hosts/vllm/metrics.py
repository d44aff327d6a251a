"""accelplug's counters on vLLM's ``/metrics``: by technique and distribution, under their own names."""

from __future__ import annotations

import os
import tempfile

from prometheus_client import REGISTRY, CollectorRegistry, Counter
from prometheus_client.multiprocess import MultiProcessCollector

from accelplug.hosts.vllm.board import FOLDER, SHARED

_counters: dict[str, Counter] = {}
"""What this process counts itself, by name."""
_folders: list[tempfile.TemporaryDirectory[str]] = []
"""What it made for its workers' counters, and removes when it ends."""
_read: list[MultiProcessCollector] = []
"""What shows them, once."""

OF_REQUESTS = {
    "accelplug_refused_requests": "Requests refused for what they set for a technique.",
    "accelplug_audited_requests": "Greedy requests that were run again without drafts.",
    "accelplug_audit_mismatches": "Audited requests whose tokens differ from those without drafts.",
}


def expose() -> None:
    """Let the registry that vLLM's ``/metrics`` shows have the counters; calling it again does nothing.

    With several API servers vLLM shows every file of `SHARED`, where the workers write then.
    """
    _counters.update({name: Counter(name, said) for name, said in OF_REQUESTS.items() if name not in _counters})
    if SHARED in os.environ or _read:
        return
    if FOLDER not in os.environ:
        _folders.append(tempfile.TemporaryDirectory(prefix="accelplug-"))
        os.environ[FOLDER] = _folders[0].name
    _read.append(shown_in(REGISTRY, os.environ[FOLDER]))


def shown_in(registry: CollectorRegistry, folder: str) -> MultiProcessCollector:
    """Let a registry show what workers write into a folder."""
    os.makedirs(folder, exist_ok=True)
    return MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]


def count(name: str) -> None:
    """Add one to a counter of `OF_REQUESTS`."""
    _counters[name].inc()
