"""The benchmark for people: one table, and what stands below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from accelplug.cli.command import Document, table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


ROOM: Final = 120
"""Columns of a terminal that a table takes to be read."""


def show(document: Document, console: Console) -> None:
    """Print a row for plain generation, every drafter, and the best of Transformers' own settings: by task, then by copy ratio."""
    tasks, bins = shown(document["rows"]), shown(document["by_copy_ratio"])
    _print(console, ("task", "copied", "batch"), tasks, lambda row: (row["task"], f"{row['copy_ratio']:.0%}", str(row["batch_size"])))
    if bins and (len({row["task"] for row in tasks}) > 1 or len({row["copied"] for row in bins}) > 1):
        _print(console, ("copied", "mean", "prompts"), bins, lambda row: (bounds(row), f"{row['copy_ratio']:.0%}", str(row["prompts"])))
    for line in lines(document):
        console.print(line, markup=False, soft_wrap=True)


def _print(console: Console, names: tuple[str, ...], rows: list[Document], group_of: Callable[[Document], tuple[str, ...]]) -> None:
    """Print rows as a table, or as a list where that is too wide."""
    if console.width >= ROOM:
        console.print(table_of(names, rows, group_of))
        return
    for line in list_of(names, rows, group_of):
        console.print(line, markup=False, soft_wrap=True)


def list_of(names: tuple[str, ...], rows: list[Document], group_of: Callable[[Document], tuple[str, ...]]) -> Iterator[str]:
    """Yield a line for each group, and four for each of its rows."""
    before = None
    for row in rows:
        group = group_of(row)
        if group != before:
            yield ", ".join(f"{name} {value}" for name, value in zip(names, group, strict=True))
        speed, cpu, tokens, milliseconds, accepted, said = figures(row)
        yield f"  {row['technique']}: {speed} x plain"
        yield f"    CPU, worst {cpu}; accepted {accepted}"
        yield f"    {tokens} tokens/forward, {milliseconds} ms/forward"
        yield f"    output {said}"
        before = group


def table_of(names: tuple[str, ...], rows: list[Document], group_of: Callable[[Document], tuple[str, ...]]) -> Table:
    """Return a table of rows, a section for each group, whose own columns are `names`."""
    from rich.markup import escape

    every = (*names, "technique", "x plain (95 %)", "CPU, worst", "tokens/forward", "ms/forward", "accepted", "output")
    found = table(*every)
    before = None
    for row in rows:
        group = group_of(row)
        if before is not None and group != before:
            found.add_section()
        first = group if group != before else ("",) * len(names)
        found.add_row(*map(escape, (*first, row["technique"], *figures(row))))
        before = group
    return found


def shown(rows: list[Document]) -> list[Document]:
    """Return the rows that people see."""
    return [row for row in rows if row["family"] != "transformers" or row["best_of_own"]]


def bounds(row: Document) -> str:
    """Write a bin of copy ratios."""
    low, high = row["copied"]
    return f"{low:.0%} to {high:.0%}"


def figures(row: Document) -> tuple[str, ...]:
    """Write one row's figures."""
    ratio = row["ratio"]
    speed = "1" if row["family"] == "plain" else f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"
    cpu = "-" if row["family"] == "plain" or row["cpu_ratio"] is None else f"{row['cpu_ratio']['median']:.2f}, {row['worst_cpu_ratio']:.2f}"
    accepted = "-" if row["acceptance"] is None else f"{row['acceptance']:.0%} of {row['drafted']}"
    return speed, cpu, f"{row['tokens_per_forward']:.2f}", f"{row['ms_per_forward']:.2f}", accepted, verdict(row)


def verdict(row: Document) -> str:
    """Say whether the outputs are plain generation's."""
    counts = row["output"]
    if counts["different"]:
        return f"{counts['different']} of {row['prompts']} DIFFERENT"
    if row["family"] == "plain":
        return "-"
    return f"identical, {counts['near_tie']} up to a near-tie" if counts["near_tie"] else "identical"


def lines(document: Document) -> list[str]:
    """Write what belongs below the table."""
    near = sum(prompt["near_ties"] or 0 for prompt in document["prompts"])
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return [
        *(
            f"{pair['task']}, batch {pair['batch_size']}: {pair['technique']} over {pair['over']}: {pair['ratio']['median']:.2f} "
            f"({pair['ratio']['low']:.2f}-{pair['ratio']['high']:.2f}), tokens/forward {pair['tokens_per_forward']:.2f}"
            for pair in document["pairs"]
        ),
        *(f"left out: {what}: {why}" for what, why in document["left_out"].items()),
        *compiling(document),
        f"plain outputs: {near} near-ties (margin under {document['near_tie_below']:.2g})",
        f"on: {document['model']}, {document['dtype']}, {document['machine']}; {versions}",
        f"method: {document['method']}",
    ]


def compiling(document: Document) -> list[str]:
    """Say what was compiled, and when, where anything was."""
    rows = document["rows"]
    before, later = (sum(row[key] for row in rows) for key in ("graphs_in_warm_up", "graphs_while_timed"))
    took = sum(row["warm_up_seconds"] for row in rows if row["graphs_in_warm_up"])
    return [f"compiled: {before} graphs in warm-ups, which took {took:.0f} s; {later} while timed"] if before or later else []
