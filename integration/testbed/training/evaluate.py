"""Judge a trained model on held-out edits: `python evaluate.py MODEL_DIR [--json]`.

Reports, over held-out functions: the share of unchanged lines that come out exactly, the share of edits done exactly,
the share of outputs that loop (a line four times in a row, or no end within the budget), and the held-out loss on code.
"""

from __future__ import annotations

import argparse
import difflib
import json
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

import data
import heldout

GATE = 0.95


def unchanged_lines(before: str, after: str, output: str) -> tuple[int, int]:
    """Return how many lines the edit leaves alone, and how many of them stand in the output, in order."""
    a, b, out = before.split("\n"), after.split("\n"), output.split("\n")
    kept = [b[block.b + i] for block in difflib.SequenceMatcher(None, a, b, False).get_matching_blocks() for i in range(block.size)]
    found = sum(block.size for block in difflib.SequenceMatcher(None, kept, out, False).get_matching_blocks())
    return len(kept), found


def loops(output: str, ended: bool) -> bool:
    lines = output.split("\n")
    return not ended or any(len(set(lines[i : i + 4])) == 1 and lines[i].strip() for i in range(len(lines) - 3))


def code_loss(model, tokenizer) -> float:
    texts = [text for path in data.files(held=True)[:40] if (text := data.read(path))]
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text, verbose=False).input_ids[:1024]])
        total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--edits", type=int, default=60, help="per edit rate")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    kept = found = exact = looping = 0
    edits = heldout.held_out_edits(arguments.edits)
    for edit in tqdm(edits, disable=arguments.json):
        ids = tokenizer(edit.prompt, return_tensors="pt").input_ids
        budget = min(2048 - ids.shape[1], 64 + 2 * len(tokenizer(edit.after).input_ids))
        out = model.generate(ids, max_new_tokens=budget, do_sample=False)[0, ids.shape[1] :]
        output = tokenizer.decode(out, skip_special_tokens=True).rstrip("\n")
        lines, copied = unchanged_lines(edit.before, edit.after, output)
        kept, found = kept + lines, found + copied
        exact += output == edit.after
        looping += loops(output, bool((out == tokenizer.eos_token_id).any()))
    row = {
        "edits": len(edits), "unchanged_lines_exact": found / kept, "edits_exact": exact / len(edits),
        "looping": looping / len(edits), "held_out_code_loss": code_loss(model, tokenizer), "gate": GATE, "passed": found / kept >= GATE,
    }  # fmt: skip
    print(json.dumps(row) if arguments.json else "\n".join(f"{key:24s} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
