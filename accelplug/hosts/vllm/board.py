"""Counters on their way from the worker to the process that answers ``/metrics``: a small file in shared memory for each engine.

vLLM's own counters travel with the scheduler's output, which has no place for others. The front end makes a folder and names
it in the environment, which worker processes on the same machine inherit; each engine's first worker writes there in place.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from accelplug.hosts.vllm.log import LOG

FOLDER: Final = "ACCELPLUG_METRICS_DIR"
"""The environment variable that names the folder."""

LABELS: Final = ("kind", "technique", "distribution", "version", "engine")
FIELDS: Final = ("drafted", "accepted", "lossy", "seconds", "switched_off")
_SUFFIX: Final = ".board"
_HEADER: Final = 4096
_INTERVAL: Final = 1.0  # seconds between looks at a device that has to be waited for


class Counters(NamedTuple):
    """One technique's counters.

    :param who: kind, name, distribution and version.
    :param values: as `FIELDS` names them.
    """

    who: tuple[str, str, str, str]
    values: tuple[float, float, float, float, float]


class Board:
    """One engine's file.

    :param engine: tells the engines of one server apart: its data-parallel rank.
    :param waits: whether reading the counters waits for a device; it is then done once a second.
    """

    def __init__(self, folder: Path, engine: str, techniques: Sequence[Counters], *, waits: bool) -> None:
        header = json.dumps([[*technique.who, engine] for technique in techniques]).encode()
        file = folder / f"{engine}-{os.getpid()}-{time.monotonic_ns()}"
        file.write_bytes(header.ljust(_HEADER) + bytes(8 * len(FIELDS) * len(techniques)))
        with file.open("r+b") as opened:
            self._shared = mmap.mmap(opened.fileno(), 0)
        file.rename(file.with_suffix(_SUFFIX))  # whole: somebody may read the folder at any time
        self._layout = struct.Struct(f"{len(FIELDS) * len(techniques)}d")
        self._interval = _INTERVAL if waits else 0.0
        self._due = 0.0

    def write(self, attachment: Any) -> None:
        """Write down where an attachment's counters stand, if that is due."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + self._interval
        self._layout.pack_into(self._shared, _HEADER, *(value for technique in attachment.counters() for value in technique.values))


def board_of(attachment: Any, vllm_config: Any, device: Any) -> Board | None:
    """Return the file for a worker's counters; None where nobody asks for them or another worker of this engine writes them."""
    folder, techniques = os.environ.get(FOLDER), attachment.counters()
    if not folder or not techniques:
        return None
    from vllm.distributed import get_tensor_model_parallel_rank

    if get_tensor_model_parallel_rank():
        return None
    try:
        return Board(Path(folder), str(vllm_config.parallel_config.data_parallel_rank), techniques, waits=device.type != "cpu")
    except OSError as exc:
        LOG.warning("accelplug: no counters on /metrics, since %s cannot be written (%s)", folder, exc)
        return None


def read_boards(folder: Path) -> Iterator[tuple[list[str], tuple[float, ...]]]:
    """Return every technique's labels, as `LABELS` names them, and values, as `FIELDS` does; none where the folder is gone."""
    for file in sorted(folder.glob(f"*{_SUFFIX}")):
        content = file.read_bytes()
        labels = json.loads(content[:_HEADER])
        values = struct.unpack(f"{len(FIELDS) * len(labels)}d", content[_HEADER:])
        for i, label in enumerate(labels):
            yield label, values[i * len(FIELDS) : (i + 1) * len(FIELDS)]
