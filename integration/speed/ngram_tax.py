"""What accelplug's host adds to a step of vLLM: vLLM's own n-gram drafter against the same search registered as a plugin.

    python integration/speed/ngram_tax.py [--model DIR] [--rounds N] [--concurrency 1 8 32]

Both draft with vLLM's own compiled function on the same tokens, so that drafts, steps and outputs are equal, which is
checked, and the ratio of their times is the tax of views, checks and counters. Runs on the V1 runner, one thread.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from measure import ratios, record
from numba import set_num_threads
from vllm_speed import NEW_TOKENS, Engine, asked, race, serve

import accelplug
from accelplug.hooks import BuildContext, Drafts, DraftView

NUM_TOKENS, MIN_N, MAX_N = 4, 2, 4
NGRAM = {"method": "ngram", "num_speculative_tokens": NUM_TOKENS, "prompt_lookup_max": MAX_N, "prompt_lookup_min": MIN_N}
CONTENDERS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "vllm ngram": {"speculative_config": NGRAM},
    "the same as a plugin": {"additional_config": {"accelplug": {"drafter": "vllms_ngram", "num_tokens": NUM_TOKENS}}},
}


class VllmsNgram:
    """vLLM's compiled search behind accelplug's interface."""

    def __init__(self, context: BuildContext) -> None:
        from vllm.v1.spec_decode.ngram_proposer import batch_propose_numba

        assert context.num_slots is not None
        self.search, self.max_length = batch_propose_numba, context.max_length
        self.lengths = np.zeros(context.num_slots, dtype=np.int32)
        self.drafts = np.zeros((context.num_slots, NUM_TOKENS), dtype=np.int32)
        self.counts = np.zeros(context.num_slots, dtype=np.int32)
        self.columns = np.arange(NUM_TOKENS)
        self._search([0], np.zeros((1, self.max_length), dtype=np.int32))  # compiles

    def propose(self, view: DraftView) -> Drafts:
        """Search every row; a request's budget cuts what vLLM would draft past its end."""
        rows = view.rows
        self.lengths[rows] = view.lengths
        self._search(rows.tolist(), view.tokens)
        counts = np.minimum(self.counts[rows], view.budgets)
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        counts.cumsum(out=offsets[1:])
        return Drafts(offsets, self.drafts[rows][self.columns < counts[:, None]])

    def _search(self, rows: list[int], tokens: Any) -> None:
        if rows:
            set_num_threads(1)  # as vLLM's own does: the search is compiled for many threads, which cost more than they gain
            self.search(rows, self.lengths, tokens, MIN_N, MAX_N, self.max_length, NUM_TOKENS, self.drafts, self.counts)


@accelplug.hookimpl
def register_drafters(register: Any) -> None:
    """Offer the drafter."""
    register("vllms_ngram", VllmsNgram)


def install(folder: Path) -> None:
    """Make this file a plugin of the processes that this one starts."""
    info = folder / "ngram_tax-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ngram-tax\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[accelplug]\nngram_tax = ngram_tax\n")
    inherited = [entry for entry in [os.environ.get("PYTHONPATH")] if entry]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(Path(__file__).parent), *inherited])


def drafted(llm: Any) -> list[list[int]]:
    """Return how many tokens were drafted and accepted so far, behind the outputs."""
    counted = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    return [[int(counted.get(f"vllm:spec_decode_num_{what}_tokens", 0)) for what in ("draft", "accepted")]]


def compare(model: str, concurrency: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each contender; the tax is the plugin's time over vLLM's own."""
    engines = {name: Engine(model, {**config, "disable_log_stats": False}, concurrency, script=__file__) for name, config in CONTENDERS.items()}
    first, seconds = race(engines, rounds, f"concurrency {concurrency}")
    own, plugin = first["vllm ngram"], first["the same as a plugin"]
    assert own[:-1] == plugin[:-1] == first["plain"][:-1], "three engines, one output"
    assert own[-1][1] == plugin[-1][1], "the same drafts are accepted"
    tokens = sum(map(len, own[:-1]))
    faster, against = ratios(seconds, "plain"), ratios(seconds, "vllm ngram")
    return [
        {"concurrency": concurrency, "contender": name, "tokens/s": tokens / statistics.median(seconds[name]), "x plain": faster[name],
         "tax, %": 100 * (1 / against[name] - 1) if name == "the same as a plugin" else None,
         "drafted": first[name][-1][0], "accepted": first[name][-1][1]}
        for name in CONTENDERS
    ]  # fmt: skip


def main() -> None:
    """Measure and record."""
    arguments = asked(__doc__, 7, [1, 8, 32])
    if arguments.serve:
        concurrency = arguments.concurrency[0]
        serve(arguments.model, arguments.serve, concurrency, max(4, concurrency), drafted)
        return
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder))
        rows = [row for concurrency in arguments.concurrency for row in compare(arguments.model, concurrency, arguments.rounds)]
    record("vllm_ngram_tax", rows, {"new_tokens": NEW_TOKENS, "rounds": arguments.rounds, "runner": "V1", "ngram": [NUM_TOKENS, MIN_N, MAX_N]})


if __name__ == "__main__":
    main()
