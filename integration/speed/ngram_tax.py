"""What accelplug's host adds to a step of vLLM: vLLM's own n-gram drafter against the same search registered as a plugin.

    python integration/speed/ngram_tax.py [--model DIR] [--rounds N] [--concurrency 1 8 32]

Both draft with vLLM's own compiled function on the same tokens, so that outputs are equal, and drafts but for those that vLLM makes past
the end of a request and throws away, which is checked; what differs between them is views, checks and counters. Beside them, drafters
that gain nothing against plain vLLM: one that drops what its search finds, and one whose drafts are always wrong, under `adaptive`. Every
engine takes its turn in every round; ratios are medians over rounds. Runs on the V1 runner, one thread. About five minutes.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from measure import interleaved, ratios, record
from vllm_speed import NEW_TOKENS, Engine, asked, prompts

import accelplug
from accelplug.hooks import BuildContext, Drafts, DraftView

NUM_TOKENS, MIN_N, MAX_N = 4, 2, 4
NGRAM = {"method": "ngram", "num_speculative_tokens": NUM_TOKENS, "prompt_lookup_max": MAX_N, "prompt_lookup_min": MIN_N}
PLAIN, OWN, PLUGIN, NOTHING, WRONG = "plain", "vllm ngram", "the same as a plugin", "plugin, drafts nothing", "plugin, always wrong, adaptive"


def drafting(drafter: str, **more: Any) -> dict[str, Any]:
    """Return the settings of an engine that drafts with one of this file's drafters."""
    return {"additional_config": {"accelplug": {"drafter": drafter, **more}}}


CONTENDERS: Mapping[str, dict[str, Any]] = {
    PLAIN: {},
    OWN: {"speculative_config": NGRAM},
    PLUGIN: drafting("vllms_ngram", num_tokens=NUM_TOKENS),
    NOTHING: drafting("drafts_nothing", num_tokens=NUM_TOKENS),
    WRONG: drafting(f"adaptive(source='always_wrong', num_tokens={NUM_TOKENS})"),
}


class VllmsNgram:
    """vLLM's compiled search behind accelplug's interface."""

    def __init__(self, context: BuildContext) -> None:
        import numba  # here, since vLLM looks through its own and others' modules for kernels and stumbles over numba's functions
        from vllm.v1.spec_decode.ngram_proposer import batch_propose_numba

        self.set_num_threads = numba.set_num_threads
        assert context.num_slots is not None
        self.search, self.max_length, self.vocab_size = batch_propose_numba, context.max_length, context.vocab_size
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
            self.set_num_threads(1)  # as vLLM's own does: the search is compiled for many threads, which cost more than they gain
            self.search(rows, self.lengths, tokens, MIN_N, MAX_N, self.max_length, NUM_TOKENS, self.drafts, self.counts)


class DraftsNothing(VllmsNgram):
    """The same search for nothing."""

    def propose(self, view: DraftView) -> Drafts:
        """Search and draft nothing."""
        found = super().propose(view)
        return Drafts(np.zeros_like(found.offsets), found.tokens[:0])


class AlwaysWrong(VllmsNgram):
    """The same drafts, each token another than was found."""

    def propose(self, view: DraftView) -> Drafts:
        """Draft what the search did not find."""
        found = super().propose(view)
        return Drafts(found.offsets, (found.tokens + 1) % self.vocab_size)


@accelplug.hookimpl
def register_drafters(register: Any) -> None:
    """Offer the drafters."""
    for name, factory in (("vllms_ngram", VllmsNgram), ("drafts_nothing", DraftsNothing), ("always_wrong", AlwaysWrong)):
        register(name, factory)


def install(folder: Path) -> None:
    """Make this file a plugin of the processes that this one starts."""
    info = folder / "ngram_tax-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ngram-tax\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[accelplug]\nngram_tax = ngram_tax\n")
    inherited = [entry for entry in [os.environ.get("PYTHONPATH")] if entry]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(Path(__file__).parent), *inherited])


def serve(model: str, config: str, concurrency: int) -> None:
    """Answer every line on standard input with one run over all prompts: outputs, then [p99 of the microseconds per token, drafted, accepted]."""
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    # Statistics go on in every engine, so that they cost all of them alike.
    llm = LLM(
        model, dtype="float32", max_model_len=2048, enforce_eager=True, max_num_seqs=concurrency, enable_prefix_caching=False,
        disable_log_stats=False, **json.loads(config),
    )  # fmt: skip
    sampling = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, output_kind=RequestOutputKind.DELTA)
    texts = prompts(max(4, concurrency))
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin):
        outputs, seconds = run(llm.llm_engine, {f"{number}-{i}": text for i, text in enumerate(texts)}, sampling)
        p99 = int(1e6 * float(np.percentile(seconds, 99)))
        print(json.dumps([*outputs, [p99, *drafted(llm)]]), flush=True)


def run(engine: Any, texts: Mapping[str, str], sampling: Any) -> tuple[list[list[int]], list[float]]:
    """Return every request's tokens, and for each token but a request's first ones how long it took."""
    tokens: dict[str, list[int]] = {name: [] for name in texts}
    came: dict[str, float] = {}
    seconds: list[float] = []
    for name, text in texts.items():
        engine.add_request(name, text, sampling)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            name, new = output.request_id, list(output.outputs[0].token_ids)
            if name in came and new:
                seconds += [(now - came[name]) / len(new)] * len(new)
            came[name] = now
            tokens[name] += new
    return list(tokens.values()), seconds


def drafted(llm: Any) -> list[int]:
    """Return how many tokens were drafted and accepted so far."""
    counted = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    return [int(counted.get(f"vllm:spec_decode_num_{what}_tokens", 0)) for what in ("draft", "accepted")]


def compare(model: str, concurrency: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each contender: the plugin's tax beside vLLM's own, and what is left of plain vLLM's speed."""
    engines = {name: Engine(model, config, concurrency, script=__file__) for name, config in CONTENDERS.items()}
    first = {name: engine() for name, engine in engines.items()}
    assert all(answer[:-1] == first[PLAIN][:-1] for answer in first.values()), "five engines, one output"
    requests = len(first[PLAIN]) - 1
    # vLLM's own drafts past the end of a request too, and counts what it then throws away.
    assert all(0 <= a - b <= NUM_TOKENS * requests for a, b in zip(first[OWN][-1][1:], first[PLUGIN][-1][1:], strict=True)), "the same drafts"
    assert first[PLUGIN][-1][2] > 0, "some are accepted"
    assert first[NOTHING][-1][1] == 0, "nothing is drafted"
    p99s: dict[str, list[float]] = {name: [] for name in engines}

    def asking(name: str) -> Callable[[], None]:
        return lambda: p99s[name].append(engines[name]()[-1][0])

    seconds = interleaved({name: asking(name) for name in engines}, rounds, f"concurrency {concurrency}")
    for engine in engines.values():
        engine.stop()
    p99s = {name: times[1:] for name, times in p99s.items()}  # the warm-up round is thrown away
    tokens = sum(map(len, first[PLAIN][:-1]))
    faster, against, slowest = ratios(seconds, PLAIN), ratios(seconds, OWN), ratios(p99s, OWN)
    return [
        {"concurrency": concurrency, "contender": name, "tokens/s": tokens / statistics.median(seconds[name]), "x plain": faster[name],
         "p99 ms/token": statistics.median(p99s[name]) / 1000,
         "x vllm ngram": against[name] if name == PLUGIN else None, "p99 x vllm ngram": 1 / slowest[name] if name == PLUGIN else None,
         "drafted": first[name][-1][1], "accepted": first[name][-1][2], "seconds": seconds[name], "p99 us": p99s[name]}
        for name in CONTENDERS
    ]  # fmt: skip


def main() -> None:
    """Measure and record."""
    arguments = asked(__doc__, 5, [1, 8, 32])
    if arguments.serve:
        serve(arguments.model, arguments.serve, arguments.concurrency[0])
        return
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder))
        rows = [row for concurrency in arguments.concurrency for row in compare(arguments.model, concurrency, arguments.rounds)]
    record("vllm_ngram_tax", rows, {"new_tokens": NEW_TOKENS, "rounds": arguments.rounds, "runner": "V1", "ngram": [NUM_TOKENS, MIN_N, MAX_N]})


if __name__ == "__main__":
    main()
