"""The benchmark as a picture: speed over plain generation by task, with matplotlib."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from accelplug._errors import OptionError
from accelplug.cli.bench.table import shown
from accelplug.cli.command import Document

SUFFIXES: Final = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """Refuse before anything is measured what could not be drawn afterwards.

    :raises OptionError: matplotlib is missing, the format is none it draws, or the file cannot be written.
    """
    if find_spec("matplotlib") is None:
        raise OptionError("--plot draws with matplotlib, which is not installed; pip install 'accelplug[plot]', or leave it out")
    if path.suffix not in SUFFIXES:
        raise OptionError(f"--plot {path} does not say in which format; end the name in {', '.join(SUFFIXES)}")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be written, without changing one that is there.

    :raises OptionError: naming the file.
    """
    is_there = path.exists()
    try:
        with path.open("ab"):
            pass
    except OSError as exc:
        raise OptionError(f"cannot write {path} ({type(exc).__name__}); name a file in a folder that exists and is yours") from exc
    if not is_there:
        path.unlink()


def draw(document: Document, path: Path) -> None:
    """Write grouped bars, a group per task and batch size, a bar per technique, with the intervals as whiskers."""
    from matplotlib.figure import Figure

    rows = [row for row in shown(document["rows"]) if row["family"] != "plain"]
    groups = list(dict.fromkeys((row["task"], row["batch_size"]) for row in rows))
    names = list(dict.fromkeys(_label(row) for row in rows))
    figure = Figure(figsize=(2 + 0.35 * len(groups) * (len(names) + 1), 4), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / max(len(names), 1)
    for i, name in enumerate(names):
        own = {(row["task"], row["batch_size"]): row["ratio"] for row in rows if _label(row) == name}
        at = [x + (i - (len(names) - 1) / 2) * width for x, group in enumerate(groups) if group in own]
        ratios = [own[group] for group in groups if group in own]
        # A percentile interval of few rounds may leave the median on its edge, never outside by more than rounding.
        below = [max(0.0, ratio["median"] - ratio["low"]) for ratio in ratios]
        above = [max(0.0, ratio["high"] - ratio["median"]) for ratio in ratios]
        axes.bar(at, [ratio["median"] for ratio in ratios], width, yerr=[below, above], capsize=2, label=name)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(groups)), [f"{task}\nbatch {size}" if size > 1 else task for task, size in groups], fontsize="small")
    axes.set_ylabel("x plain generation")
    axes.legend(fontsize="small")
    figure.savefig(path)


def _label(row: Document) -> str:
    return "Transformers' own, best" if row["family"] == "transformers" else str(row["technique"])
