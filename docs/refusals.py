"""Write docs/refusals.md: every sentence with which accelplug refuses something, read off the source.

``python docs/refusals.py`` writes it, ``python docs/refusals.py --check`` fails where it is out of date.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "refusals.md"
ERRORS = {"PluginError", "UnknownTechniqueError", "OptionError", "HostError", "ConstraintError"}
HEAD = """# Refusals

Every sentence with which accelplug refuses something, and the class it is raised as. All of them are
`accelplug.AccelplugError`. A refusal says what is wrong, who is concerned, and what to use instead; "…" stands for what
is filled in. The command line prints the sentence and leaves with status 2.

This page is written by `python docs/refusals.py` from the source; a test fails where the two differ.
"""


def text_of(node: ast.expr) -> str | None:
    """Return a message with its fillings as "…", or None if the expression is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return "".join(text_of(side) or "…" for side in (node.left, node.right))
    return None


def refusals(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield (error class, sentence) of everything the module raises, or lists as a problem for one error."""
    for node in ast.walk(tree):
        found: list[tuple[str, ast.expr]] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS and node.args:
            found = [(node.func.id, node.args[0])]
        elif isinstance(node, ast.Yield) and node.value is not None:
            found = [("HostError", node.value)]
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and ast.unparse(node.targets[0]) == "refusals":
            found = [("HostError", key) for key in node.value.keys if key is not None]
        for error, message in found:
            if (text := text_of(message)) and text.strip("… "):
                yield error, text


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for path in sorted((ROOT / "accelplug").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        rows = sorted(set(refusals(ast.parse(source)))) if any(error in source for error in ERRORS) else []
        if rows:
            parts.append(f"\n## `{path.relative_to(ROOT)}`\n")
            parts += [f"- `{error}`: {' '.join(text.split())}" for error, text in rows]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else "docs/refusals.md is out of date; run python docs/refusals.py")
    PAGE.write_text(page(), encoding="utf-8")
