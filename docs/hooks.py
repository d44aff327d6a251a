"""Write docs/hooks.md: the contract, read off the specifications: docstrings, the fields of views with their comments, signatures.

``python docs/hooks.py`` writes it, ``python docs/hooks.py --check`` fails where it is out of date.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from accelplug import hooks
from accelplug.hooks import capabilities, context, discovery, drafting, later, masking, models, options, specs, spelling, verifying

PAGE = Path(__file__).resolve().parent / "hooks.md"
HEAD = f"""# Hook reference

Contract version {hooks.API_VERSION}. Everything here is in `accelplug.hooks`; `accelplug.hookimpl` and `accelplug.option` are the same objects.
How the parts work together is in [contract.md](contract.md), a first technique in [tutorial.md](tutorial.md).

This page is written by `python docs/hooks.py` from the specifications in `accelplug/hooks`; a test fails where the two differ. A field's
meaning begins with its shape.
"""
PARTS = {
    "What a factory is given": (context, models),
    "Drafting": (drafting,),
    "Verifying": (verifying,),
    "Masking": (masking,),
    "Kinds that no host runs yet": (later,),
    "The registry, for hosts and tools": (options, spelling, importlib.import_module("accelplug.hooks.registry"), discovery),
}
RUN_BY = {"register_kv_compressors": "nobody yet", "register_vision_reducers": "nobody yet"}


class Said(NamedTuple):
    """A docstring: its text, what it says of parameters, what is returned, and what is raised."""

    text: str
    parameters: dict[str, str]
    returns: str
    raises: list[str]


def said(node: ast.AST) -> Said:
    """Read a docstring that has ``:param name:``, ``:return:`` and ``:raises Name:`` behind its text."""
    given = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) else ""
    first, *labelled = re.split(r"^:(?=param |return|raises )", given or "", flags=re.MULTILINE)
    parameters, returns, raises = {}, "", []
    for part in labelled:
        label, _, text = part.partition(":")
        line, kind = words(text), label.split()[0]
        if kind == "param":
            parameters[label.split()[1]] = line
        elif kind == "raises":
            raises.append(f"Raises `{label.split()[1]}`: {line}")
        else:
            returns = line
    return Said("\n\n".join(words(one) for one in re.split(r"\n\s*\n", first) if one.strip()), parameters, returns, raises)


def words(text: str) -> str:
    """Return a paragraph in one line, as Markdown."""
    line = " ".join(text.split())
    return re.sub(r"(?::\w+:)?``?([^`]+)``?", r"`\1`", line)


def cell(text: str) -> str:
    """Return text for a table."""
    return text.replace("|", "\\|")


def table(head: str, rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Yield the lines of a table."""
    if rows:
        yield head
        yield "| " + " | ".join("---" for _ in head.strip("|").split("|")) + " |"
        yield from ("| " + " | ".join(map(cell, row)) + " |" for row in rows)
        yield ""


def comments(module: ModuleType) -> dict[int, str]:
    """Return what stands behind each line of a module's source."""
    lines = inspect.getsource(module).splitlines()
    return {number: line.partition("  # ")[2] for number, line in enumerate(lines, 1) if "  # " in line}


def fields(node: ast.ClassDef, behind: dict[int, str], told: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield a class's fields: name, default, meaning."""
    for one in node.body:
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and not one.target.id.startswith("_"):
            name = one.target.id
            meaning = "; ".join(filter(None, (words(behind.get(one.lineno, "")), told.get(name, "").rstrip("."))))
            yield f"`{name}`", default_of(one.value), meaning


def default_of(value: ast.expr | None) -> str:
    """Write a field's default, nothing where it has none."""
    if value is None:
        return ""
    text = f'"{value.value}"' if isinstance(value, ast.Constant) and isinstance(value.value, str) else ast.unparse(value)
    found = re.search(r"default=([^,)]+)|default_factory=([^,)]+)", text)
    text = (found[1] or {"dict": "{}", "list": "[]"}.get(found[2], found[2])) if found else text
    return "" if text.startswith("_") else f"`{text}`"


def methods(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Yield a class's public methods and properties: how they are called, and what they do."""
    for one in node.body:
        if isinstance(one, ast.FunctionDef) and (not one.name.startswith("_") or one.name == "__call__"):
            about = said(one)
            what = " ".join([about.text.replace("\n\n", " "), *(f"`{name}`: {meaning}" for name, meaning in about.parameters.items())])
            yield f"`{called(one)}`", " ".join(filter(None, (what, about.returns and f"Returns {about.returns}", *about.raises)))


def called(node: ast.FunctionDef) -> str:
    """Write how a function is called."""
    if any(isinstance(one, ast.Name) and one.id in {"property", "cached_property"} for one in node.decorator_list):
        return node.name
    arguments = [one for one in ast.unparse(without_annotations(node.args)).split(", ") if one not in {"self", "cls", "/", "*"}]
    return f"{'' if node.name == '__call__' else node.name}({', '.join(arguments)})"


def without_annotations(given: ast.arguments) -> ast.arguments:
    """Return a signature that names its parameters alone, with defaults."""
    copy: ast.arguments = ast.parse(f"def f({ast.unparse(given)}): ...").body[0].args  # type: ignore[attr-defined]
    for one in (*copy.posonlyargs, *copy.args, *copy.kwonlyargs):
        one.annotation = None
    return copy


def members(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Yield the members of an enumeration, each with the text below it."""
    for one, below in zip(node.body, node.body[1:], strict=False):
        if isinstance(one, ast.Assign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            yield f"`{ast.unparse(one.targets[0])}`", words(str(below.value.value))


def class_part(node: ast.ClassDef, behind: dict[int, str]) -> Iterator[str]:
    """Yield the lines about one class."""
    about = said(node)
    yield f"\n### `{node.name}`\n"
    yield f"{about.text}\n"
    yield from table("| member | meaning |", list(members(node)))
    yield from table("| field | default | meaning |", list(fields(node, behind, about.parameters)))
    yield from table("| method | meaning |", list(methods(node)))


def other_part(node: ast.stmt, below: ast.stmt | None) -> Iterator[str]:
    """Yield the lines about a function or a constant."""
    if isinstance(node, ast.FunctionDef):
        (_, what) = next(methods(ast.ClassDef(name="", bases=[], keywords=[], body=[node], decorator_list=[])))
        yield f"\n### `{called(node)}`\n"
        yield f"{what}\n"
    elif isinstance(node, ast.Assign):
        text = words(str(below.value.value)) if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
        yield f"\n### `{ast.unparse(node.targets[0])}`\n"
        yield f"`{ast.unparse(node.value)}`. {text}\n"


def module_part(module: ModuleType) -> Iterator[str]:
    """Yield the lines about everything public in a module, in the order of its source."""
    tree, behind = ast.parse(inspect.getsource(module)), comments(module)
    for at, node in enumerate(tree.body):
        name = ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else getattr(node, "name", "")
        if name in hooks.__all__:
            below = tree.body[at + 1] if at + 1 < len(tree.body) else None
            yield from class_part(node, behind) if isinstance(node, ast.ClassDef) else other_part(node, below)


def hook_rows() -> Iterator[tuple[str, str, str, str]]:
    """Yield each hook, what it registers, the types, and who runs those."""
    for node in ast.parse(inspect.getsource(specs)).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("register_"):
            annotation = ast.unparse(node.args.args[0].annotation or ast.Constant(None))
            kinds = ", ".join(f"`{one.strip()}`" for one in annotation.removeprefix("Register[").removesuffix("]").split("|"))
            text = said(node).text.split("\n\n")
            yield f"`{node.name}(register)`", text[0].removeprefix("Offer ").partition(". ")[0].rstrip("."), kinds, RUN_BY.get(node.name, "Transformers, vLLM")


def page() -> str:
    """Return the page."""
    lines = [HEAD, "## Hooks\n", "Each is called once per process, in every process that a host starts; touch no device there.\n"]
    lines += table("| hook | offers | objects of | run by |", list(hook_rows()))
    lines += module_part(specs)
    for title, modules in PARTS.items():
        lines.append(f"\n## {title}\n")
        lines += [line for module in modules for line in (*filter(None, [head_of(module)]), *module_part(module))]
    lines.append("\n## Capability words\n")
    lines += table("| word | what a host provides |", [(f"`{word}`", meaning) for word, meaning in capabilities.WORDS.items()])
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def head_of(module: ModuleType) -> str:
    """Return what a module says of its subject, behind its first line; the registry's say how they are made."""
    if module in PARTS["The registry, for hosts and tools"]:
        return ""
    return "\n\n".join(said(ast.parse(inspect.getsource(module))).text.split("\n\n")[1:])


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else "docs/hooks.md is out of date; run python docs/hooks.py")
    PAGE.write_text(page(), encoding="utf-8")
