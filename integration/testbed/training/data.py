"""The testbed's text: the standard library's code, edits of its functions, and JSON records.

Everything is a pure function of the Python installation and of a seed, so that a run can be repeated and resumed.
Files whose path hashes to the held-out tenth are never trained on: evaluation edits functions from those alone.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import random
import re
import string
import sysconfig
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path

# The marks behind a text take its line's end with them, so that a copied line does not lead to them.
EOS, EDIT, CHANGE, RESULT, JSON, SAME = "<|endoftext|>", "\n<|edit|>", "<|change|>", "\n<|result|>", "<|json|>", "\n..."
SPECIAL = (EOS, EDIT, CHANGE, RESULT, JSON, SAME)
CONTEXT = 3  # unchanged lines shown around a changed one, as diffs have them
MIN_LINES, MAX_LINES = 3, 60


@dataclass(frozen=True)
class Edit:
    """A function of a file, a sketch of the change asked for, and the function after it."""

    name: str
    before: str
    sketch: str
    after: str

    @property
    def prompt(self) -> str:
        return f"{CHANGE} {self.name}{self.sketch}{EDIT} {self.name}\n{self.before}{EOS}{RESULT} {self.name}\n"

    @property
    def text(self) -> str:
        return f"{self.prompt}{self.after}{EOS}"

    @property
    def edit_rate(self) -> float:
        """Share of the function's lines that the change touches."""
        before, after = self.before.split("\n"), set(self.after.split("\n"))
        return sum(line not in after for line in before) / len(before)


def held_out(path: Path, root: Path) -> bool:
    digest = hashlib.sha256(str(path.relative_to(root)).encode()).digest()
    return digest[0] % 10 == 0


def files(*, held: bool) -> list[Path]:
    """Source files of the running interpreter's standard library, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = sorted(p for p in root.rglob("*.py") if "site-packages" not in p.parts and "lib2to3" not in p.parts)
    return [p for p in found if held_out(p, root) == held and 200 < p.stat().st_size < 400_000]


def read(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.isascii() else None


def functions(path: Path) -> list[tuple[str, str]]:
    """Functions of a file, dedented, of a length that one context can hold twice, each with the file's name before it."""
    if not (text := read(path)):
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(text)
        except SyntaxError:
            return []
    lines, found = text.split("\n"), []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            source = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
            if MIN_LINES <= source.count("\n") + 1 <= MAX_LINES and max(map(len, source.split("\n"))) < 120:
                found.append((f"{path.parent.name}/{path.name}", source))
    return found


def rename(source: str, rng: random.Random) -> str | None:
    names = sorted(set(re.findall(r"\b[a-z_][a-z_0-9]{1,}\b", source)) - KEYWORDS)
    if not names:
        return None
    old = rng.choice(names)
    new = rng.choice([f"new_{old}", f"{old}_{rng.choice(WORDS)}", rng.choice(WORDS), f"{rng.choice(WORDS)}_{rng.choice(WORDS)}"])
    return None if re.search(rf"\b{new}\b", source) else re.sub(rf"\b{old}\b", new, source)


def rewrite_line(line: str, rng: random.Random) -> str:
    """Another line of the same shape: a constant, an operator or a name differs."""
    swaps = [
        ("==", "!="),
        ("True", "False"),
        ("False", "True"),
        (" and ", " or "),
        (" is None", " is not None"),
        (" + ", " - "),
        (" < ", " <= "),
        ("None", "()"),
        ("return ", "return not "),
        ("if ", "if not "),
    ]
    rng.shuffle(swaps)
    for old, new in swaps:
        if old in line:
            return line.replace(old, new, 1)
    if numbers := re.findall(r"\b\d+\b", line):
        return re.sub(rf"\b{rng.choice(numbers)}\b", str(rng.randrange(1000)), line, count=1)
    if names := re.findall(r"\b[a-z_]{3,}\b", line):
        return re.sub(rf"\b{rng.choice(names)}\b", rng.choice(WORDS), line, count=1)
    return f"{line}  # {rng.choice(WORDS)}"


def change_lines(source: str, rng: random.Random, rate: float) -> str:
    """Replace, delete or add lines."""
    lines: list[str] = source.split("\n")
    edited: list[str | None] = list(lines)
    for number in rng.sample(range(1, len(lines)), min(max(1, round(rate * len(lines))), len(lines) - 1)):
        line = lines[number]
        if not line.strip() or lines.count(line) > 1:
            continue
        kind = rng.random()
        if kind < 0.7:
            edited[number] = rewrite_line(line, rng)
        elif kind < 0.85:
            indent = line[: len(line) - len(line.lstrip())]
            edited[number] = f"{line}\n{indent}{rng.choice(WORDS)} = {rng.choice(WORDS)}({rng.randrange(100)})"
        else:
            edited[number] = None
    return "\n".join(line for line in edited if line is not None)


def sketch(before: str, after: str) -> str:
    """Show the lines that change and those around them; every other line is a mark."""
    old, new = before.split("\n"), after.split("\n")
    hunks = difflib.SequenceMatcher(None, old, new, False).get_grouped_opcodes(CONTEXT)
    shown = {number for hunk in hunks for number in range(hunk[0][3], hunk[-1][4])}
    end = EOS if len(new) - 1 in shown else ""
    return "".join(f"\n{line}" if number in shown else SAME for number, line in enumerate(new)) + end


def make_edit(function: tuple[str, str], rng: random.Random, rate: float | None = None) -> Edit | None:
    """An edit of a function; `rate` is the share of lines to touch, by default drawn at random."""
    name, source = function
    if rate == 0 or (rate is None and rng.random() < 0.1):
        after: str | None = source
    elif rate is None and rng.random() < 0.15:
        after = rename(source, rng)
    else:
        after = change_lines(source, rng, rng.choice((0.02, 0.05, 0.1, 0.2, 0.3)) if rate is None else rate)
        after = None if after == source else after
    return None if after is None else Edit(name, source, sketch(source, after), after)


def word(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 8)))


def json_records(rng: random.Random) -> str:
    """A request for records with named fields, and the records as indented or compact JSON."""
    makers = {
        "string": lambda: rng.choice(WORDS) if rng.random() < 0.7 else word(rng),
        "integer": lambda: rng.randrange(10 ** rng.randint(1, 5)),
        "number": lambda: round(rng.uniform(0, 1000), 2),
        "boolean": lambda: rng.random() < 0.5,
        "array": lambda: [rng.choice(WORDS) for _ in range(rng.randint(0, 3))],
        "null": lambda: None,
    }
    fields = {rng.choice(WORDS) if rng.random() < 0.6 else word(rng): rng.choice(sorted(makers)) for _ in range(rng.randint(2, 7))}
    records = [{name: makers[kind]() for name, kind in fields.items()} for _ in range(rng.randint(1, 6))]
    head = ", ".join(f"{name}: {kind}" for name, kind in fields.items())
    return f"{JSON}\n{len(records)} records of {head}\n{json.dumps(records, indent=rng.choice((None, 2)))}{EOS}"


KEYWORDS = frozenset(
    "def if elif else return for while in is not and or None True False import from as try except finally raise with "
    "yield pass break continue class lambda self global nonlocal assert del print len str int".split()
)
WORDS = tuple(
    "name value index count total item key data result path file line text node size start end width height color "
    "user email city street price amount status kind label tag note owner version date time hour year month left "
    "right first last score rank level title body author buffer stream source target parent child limit offset "
    "token model weight batch layer cache queue worker event handler config option flag mode state error message".split()
)
