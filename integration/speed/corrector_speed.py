"""Input copying on the testbed's corrector: plain ``generate()``, `input_copy` and `suffix`, by edit rate.

    python integration/speed/corrector_speed.py [--rounds N] [--texts N]

Every contender corrects the same held-out texts, one at a time, and must come to the same output. `suffix` looks through what the decoder has,
which does not hold the encoder's text. Transformers' own prompt lookup fails on a T5 with fewer decoder than encoder layers, and is no contender.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import accelplug_testbed
import torch
from measure import interleaved, ratios, record
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import accelplug

DRAFTERS = ("input_copy", "suffix")


def plain(model: Any, texts: list[Any]) -> list[list[int]]:
    return [model.generate(**text, max_new_tokens=text["input_ids"].shape[1] + 32, do_sample=False)[0].tolist() for text in texts]


def drafted(model: Any, texts: list[Any], drafter: str, counted: dict[str, float] | None = None) -> list[list[int]]:
    with accelplug.attach(model, drafter=drafter) as session:
        found = plain(model, texts)
    if counted is not None:
        counted[drafter] = session.stats.tokens_per_forward
    return found


def at(model: Any, texts: list[Any], rate: float, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each contender at one edit rate."""
    contenders = {"plain": partial(plain, model, texts)}
    contenders |= {name: partial(drafted, model, texts, name) for name in DRAFTERS}
    per_forward: dict[str, float] = {"plain": 1.0}
    expected = plain(model, texts)
    for name in DRAFTERS:
        assert drafted(model, texts, name, per_forward) == expected, name
    seconds = interleaved(contenders, rounds, f"{rate:.0%} edited")
    tokens, faster = sum(len(row) - 1 for row in expected), ratios(seconds, "plain")
    return [
        {"edit rate": rate, "contender": name, "tokens/s": tokens / statistics.median(seconds[name]), "x plain": faster[name],
         "tokens per forward": per_forward.get(name)}
        for name in contenders
    ]  # fmt: skip


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--texts", type=int, default=16, help="per edit rate")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = accelplug_testbed.corrector()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    pairs, rows = accelplug_testbed.corrections(), []
    for rate in sorted({pair["rate"] for pair in pairs}):
        texts = [tokenizer(pair["noisy"], return_tensors="pt") for pair in pairs if pair["rate"] == rate][: arguments.texts]
        rows += at(model, texts, rate, arguments.rounds)
    record("corrector_speed", rows, {"texts": arguments.texts, "rounds": arguments.rounds, "threads": arguments.threads})


if __name__ == "__main__":
    main()
