"""Turn an exception into the one sentence that a user reads, if it is of a kind that one sentence explains."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from accelplug._errors import AccelplugError

NOTE: Final = "accelplug: "
DEBUG: Final = "ACCELPLUG_DEBUG"


def debugging() -> bool:
    """Whether the user wants tracebacks and the engines' logs instead of one sentence."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


def sentence(exc: BaseException) -> str | None:
    """Return one line, or None for an exception that is a bug and wants its traceback.

    An error of accelplug says what it says. A foreign exception that was raised inside a plugin carries a note that
    names the plugin: its type and message come first, the note after.
    """
    for link in _chain(exc):
        if isinstance(link, AccelplugError):
            return _one_line(str(link))
        notes = [note.removeprefix(NOTE) for note in getattr(link, "__notes__", ()) if note.startswith(NOTE)]
        if notes:
            return _one_line(f"{type(link).__name__}: {link}; {'; '.join(notes)} ({DEBUG}=1 shows where)")
    return None


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """Yield the exception and what caused it, outermost first."""
    link: BaseException | None = exc
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _one_line(text: str) -> str:
    return " ".join(text.split())
