"""What a command is: arguments in, one JSON-ready document out, and a way to show that document to people."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Document = dict[str, Any]


def table(*names: str) -> Table:
    """Return a table with these columns, which wraps what is too wide for the terminal: rich by itself leaves it out."""
    from rich.table import Column, Table

    return Table(*(Column(name, overflow="fold") for name in names), header_style="bold")


def no_arguments(_: ArgumentParser) -> None:
    """Declare nothing: for commands that take only ``--json``."""


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand.

    :param configure: declares its arguments.
    :param collect: does the work; whatever it prints to stdout goes to stderr.
    :param show: prints the document for people; ``--json`` prints the same document instead.
    :param status: the exit status that the document means.
    :param lines: the documents that ``--json`` prints, one a line, in place of the one; None where that one is meant.
    """

    name: str
    summary: str
    configure: Callable[[ArgumentParser], None]
    collect: Callable[[Namespace], Document]
    show: Callable[[Document, Console], None]
    status: Callable[[Document], int]
    lines: Callable[[Document], list[Document] | None] = lambda _: None
