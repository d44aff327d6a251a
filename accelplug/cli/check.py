"""``accelplug check``: whether the installed engines are the tested ones, and every seam in them is where it should be."""

from __future__ import annotations

import platform
from argparse import Namespace
from importlib import import_module
from typing import TYPE_CHECKING, Final

from accelplug._version import __version__
from accelplug.cli.command import Command, Document, no_arguments, table
from accelplug.hosts.seams import Engine, Seam

if TYPE_CHECKING:
    from rich.console import Console

HOSTS: Final = {"transformers": "accelplug.hosts.hf.compat", "vllm": "accelplug.hosts.vllm.compat"}
"""Where each host describes its engine; imported here by name, so that one host's absence hides no other."""


def engine_of(host: str) -> Engine:
    """Return a host's description of its engine, without importing the engine."""
    engine: Engine = import_module(HOSTS[host]).ENGINE
    return engine


def _problem(seam: Seam) -> str | None:
    try:
        return seam.problem()
    except Exception as exc:  # noqa: BLE001  importing an engine runs anything, and fails with anything
        return f"seam {seam.path} cannot be looked at ({type(exc).__name__}: {exc}); {seam.used_for} needs it"


def look(host: str, engine: Engine) -> Document:
    """Describe one host: its release, whether that was tested, and each seam with what is wrong with it."""
    version = engine.version()
    rows = [{"path": seam.path, "used_for": seam.used_for, "problem": _problem(seam)} for seam in engine.seams_here()]
    tested = version is not None and engine.is_tested()
    ok = version is None or (tested and not any(row["problem"] for row in rows))
    described = {"tested": tested, "tested_range": engine.tested_range, "only": engine.restriction(), "releases": dict(engine.releases)}
    return {"host": host, "version": version, **described, "seams": rows, "ok": ok}


def collect(_: Namespace) -> Document:
    """Look at every host."""
    hosts = [look(host, engine_of(host)) for host in HOSTS]
    return {"accelplug": __version__, "python": platform.python_version(), "hosts": hosts, "ok": all(host["ok"] for host in hosts)}


def verdict(host: Document) -> str:
    """Write a host's state in a few words."""
    if host["version"] is None:
        return "not installed"
    dead = sum(row["problem"] is not None for row in host["seams"])
    only = "" if host["only"] is None else f": {host['only']}"
    release = f"tested{only}" if host["tested"] else f"NOT tested: install one in {host['tested_range']}"
    return f"{release}; {len(host['seams']) - dead} of {len(host['seams'])} seams alive"


def show(document: Document, console: Console) -> None:
    """Print a line per host and a table of its seams."""
    from rich.markup import escape

    console.print(f"accelplug {document['accelplug']}, Python {document['python']}")
    for host in document["hosts"]:
        console.print(f"\n{host['host']} {host['version'] or ''} (tested range {host['tested_range']}): {verdict(host)}", soft_wrap=True)
        for releases, known in host["releases"].items():
            console.print(f"  {releases}: {known}", soft_wrap=True)
        seams = table("seam", "state", "used for")
        for row in host["seams"]:
            seams.add_row(escape(row["path"]), escape(row["problem"] or "alive"), escape(row["used_for"]))
        if host["seams"]:
            console.print(seams)


COMMAND: Final = Command("check", "check the installed engines and their seams", no_arguments, collect, show, lambda d: 0 if d["ok"] else 1)
