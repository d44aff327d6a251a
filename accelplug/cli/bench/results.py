"""What was measured, as plain JSON values: one row per task, batch size and way."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Final

import accelplug
from accelplug.cli.bench.figures import copy_bin, copy_ratio, paired_ratio
from accelplug.cli.bench.measure import Taken, joined
from accelplug.cli.bench.tasks import EDITED, Prompt
from accelplug.cli.bench.ways import Way
from accelplug.cli.command import Document
from accelplug.cli.on_transformers import row_margins
from accelplug.cli.report import first_difference, near_tie_below

Alone = tuple[Prompt, Sequence[Taken], list[float] | None]
"""A prompt that was generated alone: what every way did with it, and the margins of plain's rows."""
PACKAGES: Final = ("accelplug", "transformers", "torch", "numpy")


def task_rows(
    ways: Sequence[Way], taken: Sequence[Taken], prompts: Sequence[Prompt], margins: Sequence[list[float] | None], tie: float
) -> list[Document]:
    """Describe what every way did on one task; the first way is plain generation, which all others are compared with.

    :param prompts: of all batches, [num_prompts].
    :param margins: for every prompt the margin of each of plain's rows, or None where the output is scripted.
    :param tie: the margin below which two logits count as tied.
    """
    plain = taken[0]
    rows = []
    for way, own in zip(ways, taken, strict=True):
        seconds = median(own.seconds)
        row = {
            "technique": way.name,
            "family": way.family,
            "ratio": paired_ratio(plain.seconds, own.seconds).as_dict(),
            "tokens_per_s": own.tokens / seconds,
            "tokens_per_forward": own.tokens / own.row_forwards,
            "ms_per_forward": 1000 * seconds / own.forwards,
            "forwards": own.forwards,
            "drafted": own.drafted,
            "accepted": own.accepted,
            "acceptance": own.accepted / own.drafted if own.drafted else None,
            "output": agreement(plain, own, margins, tie),
            "seconds": own.seconds,
            "cpu_seconds": own.cpu,
            "warm_up_seconds": own.warming_up,
            "graphs_in_warm_up": own.graphs[0],
            "graphs_while_timed": own.graphs[1],
            **cpu_ratios(plain, own),
        }
        rows.append({**row, "best_of_own": False})
    mark_best(rows)
    ratio = sum(copy_ratio(p.tokens, o[0]) for p, o in zip(prompts, plain.outputs, strict=True)) / len(prompts)
    return [{"task": prompts[0].task, "prompts": len(prompts), "copy_ratio": ratio, **row} for row in rows]


def bin_rows(ways: Sequence[Way], alone: Sequence[Alone], tie: float) -> list[Document]:
    """Describe what every way did with the prompts of each bin of copy ratios, whatever their task; of the scripted ones, edits alone.

    :param alone: all prompts; the first way is plain generation, whose output tells the copy ratio. A way that failed on one stands in no bin with it.
    """
    bins: dict[tuple[float, float], list[Alone]] = {}
    for one in alone:
        prompt, taken, _ = one
        if prompt.script is None or prompt.task in EDITED:
            bins.setdefault(copy_bin(copy_ratio(prompt.tokens, taken[0].outputs[0][0])), []).append(one)
    rows = []
    for bounds in sorted(bins):
        prompts, by_prompt, margins = zip(*bins[bounds], strict=True)
        ran = [(way, parts) for way, parts in zip(ways, zip(*by_prompt, strict=True), strict=True) if not any(part.failed for part in parts)]
        found = task_rows([way for way, _ in ran], [joined(parts) for _, parts in ran], prompts, margins, tie)
        rows += [{**row, "task": None, "copied": bounds, "batch_size": 1} for row in found]
    return rows


def cpu_ratios(plain: Taken, own: Taken) -> dict[str, Any]:
    """Return how much less of the process's CPU time than plain a way took: over all batches, and of the batch where it is least."""
    if not own.cpu or not plain.cpu:
        return {"cpu_ratio": None, "worst_cpu_ratio": None}
    whole = paired_ratio([sum(round_) for round_ in plain.cpu], [sum(round_) for round_ in own.cpu])
    batches = zip(zip(*plain.cpu, strict=True), zip(*own.cpu, strict=True), strict=True)
    return {"cpu_ratio": whole.as_dict(), "worst_cpu_ratio": min(paired_ratio(base, mine).median for base, mine in batches)}


def pair_rows(rows: Sequence[Document], pairs: Sequence[tuple[str, str]]) -> list[Document]:
    """Compare ways with each other, task by task: the median of the rounds' own ratios with its interval, and tokens per forward pass.

    :param rows: of all tasks and batch sizes.
    """
    known = {(row["task"], row["batch_size"], row["technique"]): row for row in rows}
    found = []
    for (task, size, name), own in known.items():
        for one, other in pairs:
            if name == one and (base := known.get((task, size, other))) is not None:
                ratio = paired_ratio(base["seconds"], own["seconds"]).as_dict()
                forwards = own["tokens_per_forward"] / base["tokens_per_forward"]
                found.append({"task": task, "batch_size": size, "technique": one, "over": other, "ratio": ratio, "tokens_per_forward": forwards})
    return found


def agreement(plain: Taken, own: Taken, margins: Sequence[list[float] | None], tie: float) -> dict[str, int]:
    """Count the prompts whose output is plain's in every round, parts from it at a near-tie, or is another."""
    counts = {"identical": 0, "near_tie": 0, "different": 0}
    for expected, found, margin in zip(plain.outputs, own.outputs, margins, strict=True):
        partings = [parting for output in found if (parting := first_difference(expected[0], output, margin)) is not None]
        excused = all(parting["margin"] is not None and parting["margin"] < tie for parting in partings)
        counts["identical" if not partings else "near_tie" if excused else "different"] += 1
    return counts


def mark_best(rows: list[Document]) -> None:
    """Mark the fastest of Transformers' own settings on this task: the one that counts."""
    theirs = [row for row in rows if row["family"] == "transformers"]
    if theirs:
        max(theirs, key=lambda row: float(row["ratio"]["median"]))["best_of_own"] = True


def margins_of(model: Any, prompts: Sequence[Prompt], plain: Taken) -> list[list[float] | None]:
    """Return the margins of each of plain's rows, by one forward pass a prompt; None where the output is scripted."""
    import torch

    found: list[list[float] | None] = []
    for prompt, outputs in zip(prompts, plain.outputs, strict=True):
        if prompt.script is not None:
            found.append(None)
            continue
        found.append(row_margins(model, torch.tensor([prompt.tokens], device=model.device), outputs[0]))
    return found


def prompt_rows(prompts: Sequence[Prompt], plain: Taken, margins: Sequence[list[float] | None], tie: float) -> list[Document]:
    """Describe every prompt: its length, plain's output, how much of that is copied, and how many of its rows are near-ties."""
    return [
        {
            "task": prompt.task,
            "prompt_tokens": len(prompt.tokens),
            "new_tokens": len(outputs[0]),
            "copy_ratio": copy_ratio(prompt.tokens, outputs[0]),
            "near_ties": None if margin is None else sum(value < tie for value in margin),
            "scripted": prompt.script is not None,
        }
        for prompt, outputs, margin in zip(prompts, plain.outputs, margins, strict=True)
    ]


def near_tie(model: Any) -> float:
    """Return the margin below which two logits count as tied in the model's dtype."""
    return near_tie_below(str(model.dtype).removeprefix("torch."))


def circumstances(owners: Mapping[str, str | None]) -> Document:
    """Return what is needed to repeat a measurement: the command, versions, commit, and machine.

    :param owners: distribution -> version of the techniques that ran.
    """
    return {
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {**{name: version_of(name) for name in PACKAGES}, **owners},
        "commit": commit(Path(accelplug.__file__).parent),
        "python": platform.python_version(),
        "machine": _processor(),
    }


def version_of(distribution: str) -> str | None:
    """Return an installed distribution's version, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def commit(folder: Path) -> str | None:
    """Return the commit that the folder is checked out from; None where it is no part of a checkout, or git is not there."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    return git("rev-parse", "--short", "HEAD") if git("ls-files", "--error-unmatch", "__init__.py") else None


def _processor() -> str:
    if find_spec("torch") is not None:  # measuring a server needs none
        import torch

        if torch.cuda.is_available():
            return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def interruption(document: Document) -> int:
    """Return 130, as a shell says it, where the measurement was interrupted and the document holds its finished part."""
    return 130 if document["interrupted"] else 0


def status(document: Document) -> int:
    """Return 1 where a technique that must be exact was not, else 130 where the measurement was interrupted."""
    parted = any(row["family"] == "accelplug" and row["output"]["different"] for row in document["rows"])
    return 1 if parted and not document["allow_lossy"] else interruption(document)
