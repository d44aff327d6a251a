"""Write docs/techniques.md: what every built-in technique says of itself, read off the source.

``python docs/techniques.py`` writes it, ``python docs/techniques.py --check`` fails where it is out of date.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from accelplug.cli.plugins import option_text, options_of
from accelplug.hooks import load_registry
from accelplug.hooks.factories import load_factory
from accelplug.spec import trees

PAGE = Path(__file__).resolve().parent / "techniques.md"
LABELS = ("Paper", "Output", "Needs", "Hosts", "Devices", "Cost", "Good for", "Poor for")
HEAD = """# Techniques

What every built-in technique is, needs and costs, and the options it takes. `accelplug plugins` lists these beside whatever else is installed.

This page is written by `python docs/techniques.py` from the first lines of each technique's file; a test fails where the two differ.
"""
SECTIONS = {
    "drafter": "Drafters guess the next tokens: `drafter=\"suffix(shape='tree')\"`.",
    "verifier": 'Verifiers decide which guesses stay: `verifier="block"`.',
    "tree policy": "Tree policies are the shapes in which `draft_model` drafts: `drafter=\"draft_model(model='DIR', tree='top_k(width=8)')\"`.",
}


def techniques() -> Iterator[tuple[str, str, str]]:
    """Yield (kind, name, ``"package.module:Name"``) of each."""
    for entry in sorted(load_registry(entry_points=False), key=lambda entry: (entry.kind, entry.name)):
        yield entry.kind, entry.name, str(entry.factory)
    for name, path in sorted(trees.POLICIES.items()):
        yield "tree policy", name, path


def said(path: str) -> tuple[str, dict[str, str]]:
    """Return a module's first sentence, and what its docstring says behind each label.

    :raises ValueError: a label is missing.
    """
    module = importlib.import_module(path.partition(":")[0])
    text = module.__doc__ or ""
    found = dict(re.findall(rf"^({'|'.join(LABELS)}) +(\S.*)$", text, re.MULTILINE))
    if list(found) != list(LABELS):
        raise ValueError(f"{path} says {list(found)} of itself; it has to say {list(LABELS)}")
    return text.partition("\n")[0], found


def section(name: str, path: str) -> list[str]:
    """Return one technique's part of the page."""
    first, found = said(path)
    lines = [f"\n### `{name}`\n", f"{first}\n", *(f"- {label}: {found[label]}" for label in LABELS)]
    options = options_of(load_factory(name, path))
    if options:
        lines += ["\n| option | |", "| --- | --- |", *(f"| `{option_text(option)}` | {option['help']} |" for option in options)]
    return lines


def page() -> str:
    """Return the whole page."""
    every = list(techniques())
    parts = [HEAD.rstrip()]
    for kind, about in SECTIONS.items():
        own = [(name, path) for each, name, path in every if each == kind]
        plural = kind.capitalize().removesuffix("y") + ("ies" if kind.endswith("y") else "s")
        parts += [f"\n## {plural}\n", about, "", f"| {kind} | hosts | good for |", "| --- | --- | --- |"]
        rows = [(name, said(path)[1]) for name, path in own]
        parts += [f"| [`{name}`](#{name}) | {found['Hosts']} | {found['Good for']} |" for name, found in rows]
        parts += [line for name, path in own for line in section(name, path)]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else "docs/techniques.md is out of date; run python docs/techniques.py")
    PAGE.write_text(page(), encoding="utf-8")
