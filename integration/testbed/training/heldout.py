"""Write the held-out edits that ship with the model: `python heldout.py edits.jsonl`.

Functions come from files that training never saw; four edit rates, 30 edits each, 8 to 40 lines long.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import data

RATES, PER_RATE = (0.15, 0.05, 0.3, 0.0), 30


def held_out_edits(per_rate: int) -> list[data.Edit]:
    rng = random.Random(99)
    functions = [function for path in data.files(held=True) for function in data.functions(path)]
    functions = [(name, f) for name, f in functions if 8 <= f.count("\n") + 1 <= 40 and len(f) < 1800]
    rng.shuffle(functions)
    edits: list[data.Edit] = []
    for rate in RATES:
        made = 0
        while made < per_rate:
            if edit := data.make_edit(functions.pop(), rng, rate):
                edits.append(edit)
                made += 1
    return edits


def main(out: Path) -> None:
    with out.open("w", encoding="utf-8") as lines:
        for edit in held_out_edits(PER_RATE):
            row = {"prompt": edit.prompt, "expected": edit.after, "edit_rate": round(edit.edit_rate, 3)}
            lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
