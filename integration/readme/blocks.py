"""The fenced blocks of the documentation that are marked for running: ``python blocks.py NAME`` prints one of the README's, for a shell to run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = (README, ROOT / "docs" / "testing.md", ROOT / "docs" / "tutorial.md")
BLOCK = re.compile(r"^<!-- (?P<mark>name|run)(?:: (?P<label>\w+))? -->\n```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block. `mark` is ``name`` for the two commands, ``run`` for examples; an example's label is its engine, or pytest."""

    page: str
    mark: str
    label: str
    language: str
    code: str
    line: int


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in BLOCK.finditer(text):
            line = text[: found.start("code")].count("\n") + 1
            yield Block(page.name, found["mark"], found["label"] or "", found["language"], found["code"], line)


def named(name: str) -> str:
    (block,) = [block for block in blocks() if (block.mark, block.label) == ("name", name)]
    return block.code


if __name__ == "__main__":
    print(named(sys.argv[1]), end="")
