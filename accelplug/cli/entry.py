"""The border of the process: arguments, exit statuses, and who may write to stdout."""

from __future__ import annotations

import argparse
import difflib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Final

from accelplug._version import __version__
from accelplug.cli import check, plugins, run, schema
from accelplug.cli.bench import command as bench
from accelplug.cli.command import Command, Document
from accelplug.cli.errors import debugging, sentence
from accelplug.cli.new import command as new
from accelplug.cli.tune import command as tune

COMMANDS: Final = (plugins.COMMAND, check.COMMAND, run.COMMAND, bench.COMMAND, tune.COMMAND, new.COMMAND, schema.COMMAND)
USAGE_ERROR: Final = 2
INTERRUPTED: Final = 130
READER_LEFT: Final = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0: done. 1: done, and the answer is bad news (a dead seam, output that differs). 2: refused, with one sentence on
    stderr. 130: interrupted, after what was finished was printed. 141: nobody reads stdout any more.
    """
    given = _parsed(arguments)
    command: Command = given.command
    try:
        with _stdout_on_stderr():
            document = command.collect(given)
        _write(command, document, as_json=given.json)
        return command.status(document)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has left; the interpreter's last flush must not complain
        return READER_LEFT
    except KeyboardInterrupt:
        print("accelplug: interrupted before there was anything to show", file=sys.stderr)
        return INTERRUPTED
    except Exception as exc:
        said = sentence(exc)
        if said is None or debugging():
            raise
        print(f"accelplug: error: {said}", file=sys.stderr)
        return USAGE_ERROR


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments; what a command does not know is complained of with that command's usage and the option it resembles."""
    given, unknown = _parser().parse_known_args(arguments)
    if unknown:
        parser: argparse.ArgumentParser = given.parser
        near = difflib.get_close_matches(unknown[0].partition("=")[0], parser._option_string_actions, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="accelplug", description="Plugins for inference acceleration in Transformers and vLLM.")
    parser.add_argument("--version", action="version", version=f"accelplug {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="command", title="commands, each with its own --help")
    for command in COMMANDS:
        sub = subparsers.add_parser(command.name, help=command.summary, description=command.summary, allow_abbrev=False)
        sub.add_argument("--json", action="store_true", help="print one JSON document on stdout and nothing else there")
        sub.set_defaults(command=command, parser=sub)
        command.configure(sub)
    return parser


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Send what engines and plugins print, from Python or native code, to stderr: stdout is for the document."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _write(command: Command, document: Document, *, as_json: bool) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter is no reason to fail
    is_ascii = "utf" not in (sys.stdout.encoding or "").lower()
    if as_json and (lines := command.lines(document)) is not None:
        for line in lines:
            print(json.dumps(line, ensure_ascii=is_ascii), flush=True)
        return
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=is_ascii), flush=True)
        return
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = max(console.width, 140)
    command.show(document, console)
