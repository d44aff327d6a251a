"""``accelplug plugins``: what is installed, who offers it, how exact it is, and what could not be loaded."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from accelplug._errors import PluginError
from accelplug.cli.command import Command, Document, no_arguments, table
from accelplug.hooks import Entry, Owner, Registry, VerifierTraits, registry
from accelplug.hooks.options import fields_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

UNKNOWN: Final = "unknown"
EXACTNESS: Final = {"sampling": "lossless for sampling and greedy", "greedy": "lossless for greedy only", None: "lossy"}
RUN_KINDS: Final = ("drafter", "verifier")
ROOM: Final = 120
"""Columns of a terminal that the table takes to be read."""


def offered_here() -> Registry:
    """Return the registry; what could not be loaded is in its listing, so its warnings are not repeated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return registry()


def exactness(kind: str, factory: Callable[..., object]) -> str:
    """Return what a technique's output is exact for, in words."""
    if kind == "drafter":
        return "decided by the verifier"
    if kind == "grammar":
        return "constrains: see docs/grammars.md"
    if kind not in RUN_KINDS:
        return "no host runs this kind yet"
    traits = getattr(factory, "traits", None)
    return EXACTNESS[traits.lossless] if isinstance(traits, VerifierTraits) else UNKNOWN


def said_about(factory: Callable[..., object], label: str) -> str:
    """Return what the technique's module docstring says behind a label such as ``Hosts``."""
    module = sys.modules.get(getattr(factory, "__module__", ""))
    found = re.search(rf"^{label}[ \t]+(\S.*)$", getattr(module, "__doc__", None) or "", re.MULTILINE)
    return found[1].strip() if found else UNKNOWN


def options_of(factory: Callable[..., object]) -> list[Document]:
    """Return every option of a technique, with its bounds and what it is for."""
    declared = {name: field.metadata.get("accelplug", {}) for name, field in getattr(factory, "__dataclass_fields__", {}).items()}
    return [_option(name, parameter, declared.get(name, {})) for name, parameter in fields_of(factory).items()]


def _option(name: str, parameter: inspect.Parameter, metadata: Any) -> Document:
    required = parameter.default is parameter.empty
    return {
        "name": name,
        "required": required,
        "default": None if required else repr(parameter.default),
        "at_least": metadata.get("ge"),
        "at_most": metadata.get("le"),
        "per_request": bool(metadata.get("per_request")),
        "help": metadata.get("help") or "",
    }


def _owner(owner: Owner) -> Document:
    return {"plugin": owner.plugin, "distribution": owner.distribution, "version": owner.version}


def _technique(entry: Entry) -> Document:
    row = {"kind": entry.kind, "name": entry.name, **_owner(entry.owner)}
    try:
        factory = entry.resolve()
        options = options_of(factory)
    except (PluginError, TypeError, ValueError) as exc:  # no such path, not callable, no signature
        return {**row, "exactness": UNKNOWN, "output": UNKNOWN, "hosts": UNKNOWN, "options": [], "problem": str(exc)}
    said = {label.lower(): said_about(factory, label) for label in ("Output", "Hosts")}
    return {**row, "exactness": exactness(entry.kind, factory), **said, "options": options, "problem": None}


def collect(_: Namespace) -> Document:
    """List every technique, and every plugin that offers none because it broke or was left out."""
    offered = offered_here()
    conflicts = [(key, entries) for key, entries in offered.entries.items() if len(entries) > 1]
    return {
        "plugins": [_technique(entry) for entry in sorted(offered, key=lambda entry: (entry.kind, entry.name, str(entry.owner)))],
        "broken": [{**_owner(owner), "reason": " ".join(f"{type(exc).__name__}: {exc}".split())} for owner, exc in offered.broken.items()],
        "left_out": [_owner(owner) for owner in offered.ignored],
        "conflicts": [{"kind": kind, "name": name, "owners": [_owner(e.owner) for e in entries]} for (kind, name), entries in conflicts],
    }


def option_text(option: Document) -> str:
    """Write one option for people, e.g. ``num_tokens=8 (1..128, per request)``."""
    low, high = option["at_least"], option["at_most"]
    bounds = "" if low is None and high is None else f"{'' if low is None else low}..{'' if high is None else high}"
    notes = ", ".join(note for note in (bounds, "per request" if option["per_request"] else "") if note)
    value = "..." if option["required"] else option["default"]
    return f"{option['name']}={value}" + (f" ({notes})" if notes else "")


def show(document: Document, console: Console) -> None:
    """Print the techniques as a table, or as a list where that is too wide, and below it one line for everything that went wrong."""
    if console.width < ROOM:
        for row in document["plugins"]:
            console.print(f"{row['kind']} {row['name']} ({row['distribution']} {row['version']})", markup=False)
            said = (row["exactness"], row["hosts"], *(_options(row) or "no options").split("\n"))
            for line in said:
                console.print(f"    {line}", markup=False)
    else:
        console.print(_table(document))
    for line in _complaints(document):
        console.print(line, markup=False, soft_wrap=True)


def _table(document: Document) -> Table:
    from rich.markup import escape

    found = table("kind", "name", "distribution", "version", "exactness", "hosts", "options")
    for row in document["plugins"]:
        found.add_row(*(escape(row[key]) for key in ("kind", "name", "distribution", "version", "exactness", "hosts")), escape(_options(row)))
    return found


def _options(row: Document) -> str:
    return f"broken: {row['problem']}" if row["problem"] else "\n".join(option_text(option) for option in row["options"])


def _complaints(document: Document) -> list[str]:
    def who(owner: Document) -> str:
        return f"{owner['distribution']} {owner['version']}"

    broken = [f"broken: plugin {row['plugin']!r} ({who(row)}): {row['reason']}" for row in document["broken"]]
    left_out = [f"left out by ACCELPLUG_PLUGINS: plugin {row['plugin']!r} ({who(row)})" for row in document["left_out"]]
    return [*broken, *left_out, *(_conflict(row, [who(owner) for owner in row["owners"]]) for row in document["conflicts"])]


def _conflict(row: Document, owners: list[str]) -> str:
    example = f"{row['owners'][-1]['distribution']}:{row['name']}"
    return f"conflict: {row['kind']} {row['name']!r} is offered by {' and '.join(owners)}; write '{example}' to choose"


COMMAND: Final = Command("plugins", "list the installed techniques and plugins", no_arguments, collect, show, lambda _: 0)
