"""Write the held-out pairs that ship with the corrector, or judge a corrector on them.

    python corrections.py write corrections.jsonl
    python corrections.py judge MODEL_DIR corrections.jsonl

Texts come from files that training never saw; four rates, 16 pairs each. Judging reports, by rate and greedily decoded: the
share of texts that come out exactly, of mistakes that are corrected, and of the other words that stay.
"""

from __future__ import annotations

import difflib
import json
import random
import sys
from pathlib import Path

RATES, PER_RATE = (0.0, 0.05, 0.15, 0.3), 16
CLOSE = 0.02  # a pair's rate to the one wanted
LETTERS = range(100, 301)


def write(out: Path) -> None:
    import correct
    import noise

    tokenizer, rng = correct.new_tokenizer(), random.Random(98)
    writer = noise.Writer(tokenizer, sorted(noise.sentences(held=False), key=len))
    texts = [text for text in noise.sentences(held=True) if len(text) in LETTERS]
    rng.shuffle(texts)
    rows = []
    for rate in RATES:
        while sum(row["rate"] == rate for row in rows) < PER_RATE:
            pair = writer.writes(texts.pop(), rng, rate)
            if abs(pair.edit_rate - rate) <= CLOSE:
                rows.append({"noisy": pair.noisy, "clean": pair.clean, "rate": rate, "edit_rate": round(pair.edit_rate, 3)})
    out.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def count(noisy: str, clean: str, output: str) -> tuple[int, int, int, int]:
    """Return the mistakes, those corrected, the other words, those that stayed.

    A mistake is corrected where the clean words, and the words on both sides of them, stand in the output without a gap.
    """
    before, after, out = (["", *text.split(), ""] for text in (noisy, clean, output))
    place = [-1] * len(after)
    for block in difflib.SequenceMatcher(None, after, out, False).get_matching_blocks():
        place[block.a : block.a + block.size] = range(block.b, block.b + block.size)
    mistakes = corrected = others = stayed = 0
    for kind, _, _, first, end in difflib.SequenceMatcher(None, before, after, False).get_opcodes():
        if kind == "equal":
            others, stayed = others + end - first, stayed + sum(at >= 0 for at in place[first:end])
            continue
        around = place[first - 1 : end + 1]
        mistakes += 1
        corrected += around[0] >= 0 and around == list(range(around[0], around[0] + len(around)))
    return mistakes, corrected, others, stayed


def judge(folder: Path, pairs: Path) -> None:
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    for rate in RATES:
        own, exact, counts = [row for row in rows if row["rate"] == rate], 0, [0, 0, 0, 0]
        for row in own:
            ids = tokenizer(row["noisy"], return_tensors="pt").input_ids
            found = model.generate(ids, max_new_tokens=ids.shape[1] + 32, do_sample=False)[0]
            output = tokenizer.decode(found, skip_special_tokens=True)
            exact += output == row["clean"]
            counts = [a + b for a, b in zip(counts, count(row["noisy"], row["clean"], output), strict=True)]
        mistakes, corrected, others, stayed = counts
        shares = {"exact": exact / len(own), "mistakes_corrected": corrected / max(1, mistakes), "other_words_stay": stayed / others}
        print(
            json.dumps({"rate": rate, "texts": len(own), "mistakes": mistakes, **{name: round(share, 3) for name, share in shares.items()}})
        )


if __name__ == "__main__":
    {"write": write, "judge": judge}[sys.argv[1]](*map(Path, sys.argv[2:]))
