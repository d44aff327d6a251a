"""accelplug's counters on vLLM's ``/metrics``: by technique and distribution, under their own names."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from accelplug.hosts.vllm.board import FIELDS, FOLDER, LABELS, read_boards

FAMILIES: Final = (
    (CounterMetricFamily, "accelplug_drafted_tokens", "Drafted tokens that were verified."),
    (CounterMetricFamily, "accelplug_accepted_tokens", "Drafted tokens that the verifier kept."),
    (CounterMetricFamily, "accelplug_lossy_accepts", "Kept tokens that the lossless rule would have rejected."),
    (CounterMetricFamily, "accelplug_plugin_seconds", "Seconds spent in the technique on the host."),
    (GaugeMetricFamily, "accelplug_switched_off", "1 where the technique failed while serving and is no longer asked."),
)
"""One family for each of `FIELDS`."""
REFUSED: Final = ("accelplug_refused_requests", "Requests refused for what they set for a technique.")


class Boards:
    """What Prometheus' registry asks at every scrape."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refused = 0

    def describe(self) -> list[Any]:
        """Name nothing in advance: no engine has started yet."""
        return []

    def collect(self) -> Iterator[Any]:
        """Return every family; engines with the same labels, one after the other in one process, are added up."""
        sums: dict[tuple[str, ...], list[float]] = {}
        for labels, values in read_boards(self.folder):
            found = sums.setdefault(tuple(labels), [0.0] * len(FIELDS))
            found[:] = [old + new for old, new in zip(found, values, strict=True)]
        for i, (family, name, said) in enumerate(FAMILIES):
            metric = family(name, said, labels=LABELS)
            for key, summed in sums.items():
                metric.add_metric(key, summed[i])
            yield metric
        yield CounterMetricFamily(*REFUSED, value=self.refused)


_exposed: list[Boards] = []
"""What this process registered, once."""
_folders: list[tempfile.TemporaryDirectory[str]] = []
"""What it made for them, and removes when it ends."""


def expose() -> None:
    """Register the counters with the registry that vLLM's ``/metrics`` shows; calling it again does nothing."""
    if _exposed:
        return
    if FOLDER not in os.environ:
        _folders.append(tempfile.TemporaryDirectory(prefix="accelplug-"))
        os.environ[FOLDER] = _folders[0].name
    _exposed.append(Boards(Path(os.environ[FOLDER])))
    REGISTRY.register(_exposed[0])


def count_refusal() -> None:
    """Count a request that was refused."""
    for boards in _exposed:
        boards.refused += 1
