"""What somebody sees while measurements run, and what is left of them when they are interrupted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

T = TypeVar("T")

SAY_EVERY: Final = 20.0
"""Seconds between lines of progress where there is no terminal."""


@contextmanager
def progress(text: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr, endless for a total of 0, or a line now and then where that is no terminal; yields what advances it by one."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    said = time.monotonic()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(text, total=total or None)

        def tick() -> None:
            nonlocal said
            bar.advance(task)
            if not console.is_terminal and time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                console.print(f"{text}: {bar.tasks[0].completed:g} of {total or '?'}")

        yield tick


def until_interrupted(parts: Iterable[T]) -> tuple[list[T], bool]:
    """Return the parts of a measurement that were finished, and whether Ctrl-C ended it before the last one.

    :raises KeyboardInterrupt: it came before anything was finished.
    """
    finished: list[T] = []
    try:
        for part in parts:
            finished.append(part)  # noqa: PERF402  a comprehension would lose what is finished
    except KeyboardInterrupt:
        if not finished:
            raise
        return finished, True
    return finished, False
