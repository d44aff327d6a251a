"""``accelplug new``: write a plugin package that works, with its test, for an author to change."""

from __future__ import annotations

import ast
import keyword
import re
import shlex
from argparse import ArgumentParser, Namespace
from importlib.metadata import Distribution
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final

from packaging.utils import canonicalize_name
from packaging.version import Version

from accelplug._errors import OptionError
from accelplug._version import __version__
from accelplug.cli.command import Command, Document
from accelplug.cli.new.templates import EXAMPLES, KITS, RUN, USES, WHERE, files
from accelplug.cli.plugins import offered_here
from accelplug.hooks.registry import HOOKS

if TYPE_CHECKING:
    from rich.console import Console

NAME: Final = re.compile(r"[A-Za-z]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="of the distribution, such as accelplug-bigram; the technique is then 'bigram'")
    parser.add_argument("--kind", required=True, metavar="KIND", help="drafter, verifier or grammar")
    parser.add_argument("--directory", metavar="DIR", default=".", help="where the package's folder is made (default: here)")


def collect(arguments: Namespace) -> Document:
    """Check the names, then write the files."""
    kind, name = arguments.kind, arguments.name
    check_kind(kind)
    module, technique = names_of(name)
    check_names(kind, name, module, technique)
    folder = Path(arguments.directory).expanduser() / name
    low = Version(__version__)
    filling = {
        "name": name, "module": module, "technique": technique, "title": technique.title().replace("_", ""), "kind": kind,
        "kit": KITS[kind], "where": WHERE[kind], "examples": EXAMPLES.get(kind, ""), "low": f"{low.major}.{low.minor}", "below": f"{low.major}.{low.minor + 1}",
    }  # fmt: skip
    filling["use"] = Template(USES.get(kind, RUN)).substitute(filling)
    written = {Template(path).substitute(filling): Template(text).substitute(filling) for path, text in files(kind).items()}
    check_class(name, filling["title"], written)
    write(folder, written)
    return {"folder": str(folder), "files": list(written), "kind": kind, "technique": technique, "module": module}


def check_kind(kind: str) -> None:
    """Refuse a kind that there is no kit for.

    :raises OptionError: naming the kinds that have one.
    """
    if kind in KITS:
        return
    if kind in HOOKS:
        raise OptionError(f"no host runs a {kind!r} yet, so there is no package to begin with; make a {_kinds()}")
    raise OptionError(f"there is no kind {kind!r}; make a {_kinds()}")


def _kinds() -> str:
    *others, last = KITS
    return f"{', '.join(others)} or {last}"


def names_of(name: str) -> tuple[str, str]:
    """Return the module and the technique that a distribution's name gives: accelplug-bigram -> accelplug_bigram, bigram."""
    module = canonicalize_name(name).replace("-", "_")
    return module, module.removeprefix("accelplug_")


def check_names(kind: str, name: str, module: str, technique: str) -> None:
    """Refuse names that Python, packaging or the registry would not take, or that somebody else has.

    :raises OptionError: naming what is wrong with which.
    """
    if not NAME.fullmatch(name) or not technique.isidentifier() or keyword.iskeyword(technique) or keyword.iskeyword(module):
        raise OptionError(f"{name!r} gives no name for a package and a technique; write one like accelplug-bigram")
    spec = find_spec(module)
    if spec is not None and spec.origin is not None:  # a mere folder of the name has no origin
        raise OptionError(f"a module {module!r} is installed already, from {spec.origin}; choose another name")
    if any(True for _ in Distribution.discover(name=name)):  # pip would replace it, whatever its modules are called
        raise OptionError(f"a distribution {name!r} is installed already; choose another name")
    if offered := offered_here().entries.get((kind, technique)):
        raise OptionError(f"{offered[0]} is installed already; choose another name, such as {name}-2")


def check_class(name: str, title: str, written: dict[str, str]) -> None:
    """Refuse a name whose class would be a word of Python's, of what the package imports, or of its other classes.

    :raises OptionError: saying which.
    """
    statements = [] if keyword.iskeyword(title) else [node for text in _modules(written) for node in ast.walk(ast.parse(text))]
    imported = {alias.name for node in statements if isinstance(node, ast.ImportFrom) for alias in node.names}
    classes = [node.name for node in statements if isinstance(node, ast.ClassDef)]
    if keyword.iskeyword(title) or title in imported or classes.count(title) > 1:
        raise OptionError(f"{name!r} would name its class {title}, which stands for something else there; choose another name")


def _modules(written: dict[str, str]) -> list[str]:
    return [text for path, text in written.items() if path.endswith(".py")]


def write(folder: Path, written: dict[str, str]) -> None:
    """Write the files into a new folder.

    :raises OptionError: it is there already, or cannot be made.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OptionError(f"{folder} is there already; remove it, or choose another name or --directory")
        for path, text in written.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError as exc:
        raise OptionError(f"cannot write {folder} ({type(exc).__name__}); pass --directory with a folder that is yours") from exc


def show(document: Document, console: Console) -> None:
    """Print what was written and what to do next."""
    lines = [
        f"{document['folder']}: the {document['kind']} {document['technique']}",
        *(f"  {path}" for path in document["files"]),
        f"next: cd {shlex.quote(document['folder'])} && pip install -e '.[dev]' && pytest",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


COMMAND: Final = Command("new", "write a plugin package that works, for you to change", configure, collect, show, lambda _: 0)
