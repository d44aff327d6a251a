"""Counters on their way from the worker to the process that answers ``/metrics``, in prometheus_client's files for many processes.

vLLM's own counters travel with the scheduler's output, which has no place for others. So each engine's first worker writes a
counter and a gauge file into a folder that the environment names, which worker processes on the same machine inherit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from prometheus_client.mmap_dict import MmapedDict, mmap_key

from accelplug.hosts.vllm.log import LOG

FOLDER: Final = "ACCELPLUG_METRICS_DIR"
_REFUSALS: Final = "gauge_max_accelplug-refused-"
"""The environment variable that names the folder."""
SHARED: Final = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's own, which vLLM sets with several API servers: their registries show that folder and no other."""

LABELS: Final = ("kind", "technique", "distribution", "version", "engine")
FIELDS: Final[Sequence[tuple[Literal["counter", "gauge"], str, str]]] = (
    ("counter", "accelplug_drafts", "Drafts of at least one token that were verified."),
    ("counter", "accelplug_drafted_tokens", "Drafted tokens that were verified."),
    ("counter", "accelplug_accepted_tokens", "Drafted tokens that the verifier kept."),
    ("counter", "accelplug_lossy_accepts", "Kept tokens that the lossless rule would have rejected."),
    ("counter", "accelplug_plugin_seconds", "Seconds spent in the technique on the host."),
    ("gauge", "accelplug_switched_off", "1 where the technique failed while serving and is no longer asked."),
)
OF_GRAMMARS: Final[Sequence[tuple[Literal["counter", "gauge"], str, str]]] = (
    ("counter", "accelplug_answers", "Answers under a grammar that ended by themselves."),
    ("counter", "accelplug_violations", "Answers among them that the final check did not find right."),
    ("counter", "accelplug_cut_drafts", "Drafts that the grammar forbids, cut before they were verified."),
    ("counter", "accelplug_failed_requests", "Requests that ended in an error of the grammar's engine."),
)
REFUSED: Final = "accelplug_refused_info"
REFUSED_SAID: Final = "1 where accelplug refused to run, and the engine serves without it, as on_refused='serve' asks."
_INTERVAL: Final = 1.0  # seconds between looks at a device that has to be waited for, or at what is not news


class Counters(NamedTuple):
    """One technique's counters.

    :param who: kind, name, distribution and version.
    :param values: as `FIELDS` names them.
    :param of_grammars: as `OF_GRAMMARS` names them, for a grammar's engine.
    """

    who: tuple[str, str, str, str]
    values: tuple[float, float, float, float, float, float]
    of_grammars: tuple[float, ...] = ()

    def named(self) -> Iterator[tuple[Literal["counter", "gauge"], str, str, float]]:
        """Yield type, name, description and value of every counter."""
        for fields, values in ((FIELDS, self.values), (OF_GRAMMARS if self.of_grammars else (), self.of_grammars)):
            for (kind, metric, said), value in zip(fields, values, strict=True):
                yield kind, metric, said, value


class Board:
    """One engine's files.

    :param engine: tells the engines of one server apart: its data-parallel rank.
    :param waits: whether reading the counters waits for a device; it is then done once a second at most.
    """

    def __init__(self, folder: Path, engine: str, techniques: Sequence[Counters], *, waits: bool) -> None:
        name = f"accelplug-{engine}-{os.getpid()}-{time.monotonic_ns()}"
        files = {kind: folder / f"{prefix}_{name}.db" for kind, prefix in (("counter", "counter"), ("gauge", "gauge_max"))}
        hidden = {kind: file.with_suffix(".new") for kind, file in files.items()}
        opened = {kind: MmapedDict(str(file)) for kind, file in hidden.items()}  # type: ignore[no-untyped-call]
        self._places = [
            (opened[kind], _key(kind, metric, said, [*t.who, engine])) for t in techniques for kind, metric, said, _ in t.named()
        ]
        self._written: list[float | None] = [None] * len(self._places)
        self._waits = waits
        self._due = 0.0
        self._write(techniques)
        for kind, file in hidden.items():
            file.rename(files[kind])  # whole: somebody may read the folder at any time

    def write(self, attachment: Any, *, quiet: bool = False) -> None:
        """Write down where an attachment's counters stand, if that is due.

        :param quiet: since the last time only seconds went by in the technique, which can wait.
        """
        now = time.monotonic()
        if now < self._due and (quiet or self._waits):
            return
        self._due = now + _INTERVAL
        self._write(attachment.counters())

    def _write(self, techniques: Sequence[Counters]) -> None:
        values = [value for technique in techniques for value in (*technique.values, *technique.of_grammars)]
        for i, value in enumerate(values):
            if value != self._written[i]:  # a write costs as much as all of this, and most values rarely change
                file, key = self._places[i]
                file.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
        self._written[:] = values


def _key(kind: str, metric: str, said: str, labels: list[str]) -> str:
    name = f"{metric}_total" if kind == "counter" else metric
    key: str = mmap_key(metric, name, list(LABELS), labels, said)
    return key


def write_refusal(reason: str) -> None:
    """Write down why accelplug does not run in an engine that serves without it."""
    folder = folder_of()
    if not folder:
        return
    file = Path(folder) / f"{_REFUSALS}{os.getpid()}-{time.monotonic_ns()}.db"
    hidden = file.with_suffix(".new")
    try:
        MmapedDict(str(hidden)).write_value(mmap_key(REFUSED, REFUSED, ["reason"], [reason], REFUSED_SAID), 1.0, 0.0)  # type: ignore[no-untyped-call]
        hidden.rename(file)
    except OSError as exc:
        LOG.warning("accelplug: no refusal on /metrics, since %s cannot be written (%s)", folder, exc)


def was_refused() -> bool:
    """Whether an engine of this process serves without accelplug, as its worker has written down."""
    folder = folder_of()
    return bool(folder) and any(Path(str(folder)).glob(f"{_REFUSALS}*.db"))


def folder_of() -> str | None:
    """Return the folder that the process answering ``/metrics`` reads."""
    return os.environ.get(SHARED) or os.environ.get(FOLDER)


def board_of(attachment: Any, vllm_config: Any, device: Any) -> Board | None:
    """Return the files for a worker's counters; None where nobody asks for them or another worker of this engine writes them."""
    folder, techniques = folder_of(), attachment.counters()
    if not folder or not techniques:
        return None
    from vllm.distributed import get_tensor_model_parallel_rank

    if get_tensor_model_parallel_rank():
        return None
    try:
        return Board(Path(folder), str(vllm_config.parallel_config.data_parallel_index), techniques, waits=device.type != "cpu")
    except OSError as exc:
        LOG.warning("accelplug: no counters on /metrics, since %s cannot be written (%s)", folder, exc)
        return None
