"""accelplug's counters on vLLM's ``/metrics``: by technique and distribution, under their own names."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from prometheus_client import REGISTRY, Counter
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


class Boards:
    """What Prometheus' registry asks at every scrape."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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


_exposed: list[Any] = []
"""What this process registered; a folder in it is removed when the process ends."""


def expose() -> None:
    """Register the counters with the registry that vLLM's ``/metrics`` shows; calling it again does nothing."""
    if _exposed:
        return
    if FOLDER not in os.environ:
        _exposed.append(made := tempfile.TemporaryDirectory(prefix="accelplug-"))
        os.environ[FOLDER] = made.name
    boards = Boards(Path(os.environ[FOLDER]))
    refusals = Counter("accelplug_refused_requests", "Requests refused for what they set for a technique.")
    REGISTRY.register(boards)
    _exposed.extend((boards, refusals))


def count_refusal() -> None:
    """Count a request that was refused."""
    for registered in _exposed:
        if isinstance(registered, Counter):
            registered.inc()
