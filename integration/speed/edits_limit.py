"""How far edits can be sped up at all: drafters and Transformers' own prompt lookup beside drafters that know the text.

    python integration/speed/edits_limit.py [--model DIR] [--limit N] [--skip N] [--rounds N] [--max-new-tokens N]

"knows the text" drafts all that is left at once, so that it costs the prompt's forward pass and one more; with a number, it drafts so many
tokens a step. The prompt's pass is in every figure. Ratios are medians of rounds, of wall time and of the process's CPU time.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from measure import record
from rich.console import Console
from rich.progress import track

import accelplug
from accelplug.cli.bench import tasks, ways
from accelplug.cli.bench.command import loaded
from accelplug.cli.bench.figures import paired_ratio
from accelplug.cli.bench.measure import Taken, interleaved, joined
from accelplug.cli.workload import testbed

DRAFTERS = ("suffix", "suffix(num_tokens=128)", "suffix(shape='tree')", "adaptive", "fusion", "input_copy")


class Knowing:
    """Draft the next tokens of texts that are known.

    :param texts: prompts with their outputs, token ids, filled in later.
    """

    def __init__(self, texts: list[list[int]], num_tokens: int) -> None:
        self.texts, self.num_tokens = texts, num_tokens

    def propose_one(self, tokens: Any, budget: int) -> list[int]:
        count = len(tokens)
        known = next((text for text in self.texts if len(text) > count and np.array_equal(text[:count], tokens)), ())
        return list(known[count : count + min(budget, self.num_tokens)])


def knowing(model: Any, texts: list[list[int]], num_tokens: int, name: str) -> ways.Way:
    return ways.Way(name, "accelplug", session=accelplug.attach(model, drafter=Knowing(texts, num_tokens)))


def row_of(rate: str, way: ways.Way, plain: Taken, own: Taken) -> dict[str, Any]:
    cpu = paired_ratio(*([sum(batches) for batches in taken.cpu] for taken in (plain, own)))
    return {
        "task": rate,
        "way": way.name,
        "x plain": paired_ratio(plain.seconds, own.seconds).median,
        "x plain, CPU": cpu.median,
        "tokens per forward": own.tokens / own.row_forwards,
        "identical": sum(ours[0] == theirs[0] for ours, theirs in zip(own.outputs, plain.outputs, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(testbed("--model DIR").path()))
    parser.add_argument("--limit", type=int, default=4, help="edits at each rate")
    parser.add_argument("--skip", type=int, default=0, help="of the edits at each rate, the first that are left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    given = parser.parse_args()
    model, tokenizer = loaded(given.model, "float32", 1)
    texts: list[list[int]] = []
    compared = [
        ways.plain(),
        *(ways.accelerated(model, tokenizer, name, "token_wise", allow_lossy=False) for name in DRAFTERS),
        *ways.own(model),
    ]
    compared += [knowing(model, texts, 12, "knows the text, 12"), knowing(model, texts, 1 << 20, "knows the text")]
    rows = []
    for rate in track([f"edits {rate} %" for rate in tasks.EDIT_RATES], console=Console(stderr=True)):
        own = [text for text in tasks.built_in(testbed("--model DIR").prompts()) if text.task == rate][given.skip :]
        prompts, _ = tasks.encoded(own, tokenizer, 2048 - given.max_new_tokens, given.limit)
        batches = ways.batches_of(prompts, 1, model, given.max_new_tokens, ways.pad_id(tokenizer, model))
        texts[:] = [rows[0] for rows, _, _ in ways.plain().run(model, batches)]
        taken = [joined(parts) for parts in interleaved(model, compared, batches, given.rounds, lambda: None)]
        rows += [row_of(rate, way, taken[0], own) for way, own in zip(compared, taken, strict=True)]
    record("edits_limit", rows, vars(given))


if __name__ == "__main__":
    main()
