"""accelplug's counters on vLLM's ``/metrics``: by technique and distribution, under their own names."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, Counter
from prometheus_client.multiprocess import MultiProcessCollector

from accelplug.hosts.vllm.board import FOLDER, SHARED, write_refusal

_counters: dict[str, Counter] = {}
"""What this process counts itself, by name."""
_folders: list[tuple[tempfile.TemporaryDirectory[str], str | None]] = []
"""What it made for its workers' counters, and removes when it ends; and the folder that somebody named for it."""
_read: list[MultiProcessCollector] = []
"""What shows them, once."""

PREFIX = "accelplug-run-"
"""Of the names of those."""

OF_REQUESTS = {
    "accelplug_refused_requests": ("Requests refused for what they set for a technique.", ("kind", "technique", "reason")),
    "accelplug_audited_requests": ("Greedy requests that were run again without drafts.", ()),
    "accelplug_audit_mismatches": ("Audited requests whose tokens differ from those without drafts.", ()),
}
"""What each counts, and the names of its labels."""


def expose() -> None:
    """Let the registry that vLLM's ``/metrics`` shows have the counters; calling it again does nothing."""
    _counters.update({name: Counter(name, *told) for name, told in OF_REQUESTS.items() if name not in _counters})
    _expose_folder()


def _expose_folder() -> None:
    """Let it show what workers write. With several API servers vLLM shows every file of `SHARED`, where they write then."""
    if SHARED in os.environ or _read:
        return
    named = os.environ.get(FOLDER)
    if named is None or not Path(named).name.startswith(PREFIX):  # else it was made by the process that started this one
        if named is not None:
            os.makedirs(named, exist_ok=True)
        # Its own, for an earlier server may have left files in a folder that somebody named.
        _folders.append((tempfile.TemporaryDirectory(prefix=PREFIX, dir=named), named))
        os.environ[FOLDER] = _folders[0][0].name
    _read.append(shown_in(REGISTRY, os.environ[FOLDER]))


def hide() -> None:
    """Take the counters off the registry and remove this process's folder, as before `expose`. Calling it again does nothing."""
    for metric in (*_counters.values(), *_read):
        REGISTRY.unregister(metric)
    if _folders:
        folder, named = _folders.pop()
        os.environ.pop(FOLDER, None)
        if named is not None:
            os.environ[FOLDER] = named
        folder.cleanup()
    _counters.clear()
    _read.clear()


def shown_in(registry: CollectorRegistry, folder: str) -> MultiProcessCollector:
    """Let a registry show what workers write into a folder."""
    os.makedirs(folder, exist_ok=True)
    return MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]


def count(name: str, *labels: str) -> None:
    """Add one to a counter of `OF_REQUESTS`.

    :param labels: the values of its labels.
    """
    if (counter := _counters.get(name)) is not None:  # they are hidden while somebody still holds a method that was wrapped
        (counter.labels(*labels) if labels else counter).inc()


def tell_refused(reason: str) -> None:
    """Show why accelplug does not run in this engine, which serves without it."""
    _expose_folder()
    write_refusal(reason)
