"""What accelplug's host adds to a step of vLLM: vLLM's own n-gram drafter against the same search registered as a plugin.

    python integration/speed/ngram_tax.py [--model DIR] [--rounds N] [--concurrency 1 8 32]

Both draft with vLLM's own compiled function on the same tokens, so that outputs are equal, and drafts but for those that vLLM makes past
the end of a request and throws away, which is checked; what differs between them is views, checks and counters. These two take turns
in `PAIRS` rounds for each of the others': they are two percent apart at most, and single runs more than that. Beside them, drafters
that gain nothing against plain vLLM: one that drops what its search finds, one whose drafts are always wrong, under `adaptive`, and
vLLM's own where its search finds nothing, which is what speculation costs without a plugin. Ratios are medians over rounds, each round's
taken by itself, with 95 % intervals; "CPU" is the engine process's own time, which other load disturbs less. Six engines, V1 runner, one
thread each; the requests that run at once are as many as are given to an engine. About six minutes.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measure import interleaved, record
from vllm_speed import NEW_TOKENS, Engine, asked, prompts

import accelplug
from accelplug.cli.bench.figures import Interval, paired_ratio
from accelplug.hooks import BuildContext, Drafts, DraftView

NUM_TOKENS, MIN_N, MAX_N = 4, 2, 4
NGRAM = {"method": "ngram", "num_speculative_tokens": NUM_TOKENS, "prompt_lookup_max": MAX_N, "prompt_lookup_min": MIN_N}
PLAIN, OWN, PLUGIN, NOTHING, WRONG = "plain", "vllm ngram", "the same as a plugin", "plugin, drafts nothing", "plugin, always wrong, adaptive"
OWN_NOTHING = "vllm ngram, finds nothing"
PAIRS = 5


def drafting(drafter: str, **more: Any) -> dict[str, Any]:
    """Return the settings of an engine that drafts with one of this file's drafters."""
    return {"additional_config": {"accelplug": {"drafter": drafter, **more}}}


CONTENDERS: Mapping[str, dict[str, Any]] = {
    PLAIN: {},
    OWN_NOTHING: {"speculative_config": {**NGRAM, "prompt_lookup_min": 1024, "prompt_lookup_max": 1024}},
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

        numba.set_num_threads(1)  # as vLLM's own does: the search is compiled for many threads, which cost more than they gain
        assert context.num_slots is not None
        self.search, self.max_length, self.vocab_size = batch_propose_numba, context.max_length, context.vocab_size
        self.rows = np.zeros(context.num_slots, dtype=np.int64)
        self.lengths = np.zeros(context.num_slots, dtype=np.int32)
        self.drafts = np.zeros((context.num_slots, NUM_TOKENS), dtype=np.int32)
        self.counts = np.zeros(context.num_slots, dtype=np.int32)
        self.columns = np.arange(NUM_TOKENS)
        self._search(self.rows[:1], np.zeros((1, self.max_length), dtype=np.int32))  # compiles

    def propose(self, view: DraftView) -> Drafts:
        """Search every row; a request's budget cuts what vLLM would draft past its end."""
        rows = view.rows
        self.lengths[rows] = view.lengths
        self._search(rows, view.tokens)
        counts = np.minimum(self.counts[rows], view.budgets)
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        if not any(counts.tolist()):
            return Drafts(offsets, view.lengths[:0])
        counts.cumsum(out=offsets[1:])
        return Drafts(offsets, self.drafts[rows][self.columns < counts[:, None]])

    def _search(self, rows: Any, tokens: Any) -> None:
        if num_reqs := len(rows):
            own = self.rows[:num_reqs]  # always of one type: numba compiles for every one it meets
            own[:] = rows
            self.search(own, self.lengths, tokens, MIN_N, MAX_N, self.max_length, NUM_TOKENS, self.drafts, self.counts)


class DraftsNothing(VllmsNgram):
    """The same search for nothing."""

    def propose(self, view: DraftView) -> Drafts:
        """Search and draft nothing."""
        found = super().propose(view)
        return Drafts(np.zeros_like(found.offsets), found.tokens[:0])


class DoesNothing:
    """No search either."""

    def propose(self, view: DraftView) -> Drafts:
        """Draft nothing."""
        return Drafts(np.zeros(len(view.slots) + 1, dtype=np.int64), view.lengths[:0])


class AlwaysWrong(VllmsNgram):
    """The same drafts, each token another than was found."""

    def propose(self, view: DraftView) -> Drafts:
        """Draft what the search did not find."""
        found = super().propose(view)
        return Drafts(found.offsets, (found.tokens + 1) % self.vocab_size)


@accelplug.hookimpl
def register_drafters(register: Any) -> None:
    """Offer the drafters."""
    for name, factory in (("vllms_ngram", VllmsNgram), ("drafts_nothing", DraftsNothing), ("does_nothing", DoesNothing), ("always_wrong", AlwaysWrong)):
        register(name, factory)


def install(folder: Path) -> None:
    """Make this file a plugin of the processes that this one starts."""
    info = folder / "ngram_tax-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ngram-tax\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[accelplug]\nngram_tax = ngram_tax\n")
    inherited = [entry for entry in [os.environ.get("PYTHONPATH")] if entry]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(Path(__file__).parent), *inherited])


def serve(model: str, config: str, most: int, started: Callable[[], None] = lambda: None) -> None:
    """Answer every line on standard input, a number of requests to run at once, with one run over as many prompts, four at least.

    The answer is the outputs, then [p99 of the microseconds per token, microseconds of CPU time, drafted, accepted].

    :param started: called once the engine is up.
    """
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    # Statistics go on in every engine, so that they cost all of them alike.
    sizes = {"max_model_len": 2048, "max_num_seqs": most, "enable_prefix_caching": False, "disable_log_stats": False}
    llm = LLM(model, **{"dtype": "float32", "enforce_eager": True, **sizes, **json.loads(config)})
    started()
    sampling = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, output_kind=RequestOutputKind.DELTA)
    print("ready", flush=True)
    for number, line in enumerate(sys.stdin):
        concurrency = int(line)
        named = [(f"{number}-{i}", text) for i, text in enumerate(prompts(max(4, concurrency)))]
        before, began = drafted(llm), time.process_time_ns()
        runs = [run(llm.llm_engine, dict(named[i : i + concurrency]), sampling) for i in range(0, len(named), concurrency)]
        cpu, counted = (time.process_time_ns() - began) // 1000, [now - then for now, then in zip(drafted(llm), before, strict=True)]
        p99 = int(1e6 * float(np.percentile([second for _, seconds in runs for second in seconds], 99)))
        print(json.dumps([*(tokens for outputs, _ in runs for tokens in outputs), [p99, cpu, *counted]]), flush=True)


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


class Race:
    """Runs of some engines at one concurrency, in turns.

    :ivar seconds: name -> of each round; so are `cpu`, the process's own, and `p99`, the slowest tokens' in microseconds.
    """

    def __init__(self, engines: Mapping[str, Engine], concurrency: int, rounds: int) -> None:
        self.engines, self.line = engines, str(concurrency)
        self.cpu: dict[str, list[float]] = {name: [] for name in engines}
        self.p99: dict[str, list[float]] = {name: [] for name in engines}
        self.seconds = interleaved({name: partial(self._ask, name) for name in engines}, rounds, f"concurrency {concurrency}")
        for kept in (*self.cpu.values(), *self.p99.values()):
            del kept[0]  # the warm-up round is thrown away

    def _ask(self, name: str) -> None:
        p99, cpu, *_ = self.engines[name](self.line)[-1]
        self.cpu[name].append(cpu)
        self.p99[name].append(p99)

    def beside(self, base: str, name: str) -> dict[str, Any]:
        """Return how a contender fared beside another: above 1 is faster, but for the p99, where it is slower."""
        speed, cpu = (paired_ratio(kept[base], kept[name]) for kept in (self.seconds, self.cpu))
        p99 = paired_ratio(self.p99[name], self.p99[base])
        shown = {f"x {what}": said(ratio) for what, ratio in (("tokens/s", speed), ("CPU", cpu), ("p99", p99))}
        return {"beside": base, **shown, "ratios": {"tokens/s": speed.as_dict(), "cpu": cpu.as_dict(), "p99": p99.as_dict()}}

    def raw(self, name: str) -> dict[str, list[float]]:
        """Return what was measured of a contender."""
        return {"seconds": self.seconds[name], "cpu us": self.cpu[name], "p99 us": self.p99[name]}


def said(ratio: Interval) -> str:
    """Return a ratio as it stands in the table."""
    return f"{ratio.median:.3f} ({ratio.low:.3f} .. {ratio.high:.3f})"


def compare(engines: Mapping[str, Engine], concurrency: int, rounds: int, *, exact: bool = True) -> list[dict[str, Any]]:
    """Return a row for each contender: the plugin's tax beside vLLM's own, and what is left of plain vLLM's speed.

    :param exact: outputs and drafts are checked to be the same; in half precision near-ties part them.
    """
    first = {name: engine(str(concurrency)) for name, engine in engines.items()}
    counted = {name: answer[-1][2:] for name, answer in first.items()}
    if exact:
        check(first, counted)
    tokens = sum(map(len, first[PLAIN][:-1]))
    pair = Race({name: engines[name] for name in (OWN, PLUGIN)}, concurrency, PAIRS * rounds)
    others = Race({name: engine for name, engine in engines.items() if name not in (OWN, PLUGIN)}, concurrency, rounds)
    rows = []
    for name in CONTENDERS:
        race, base = (pair, OWN) if name in (OWN, PLUGIN) else (others, PLAIN)
        speed = {"tokens/s": tokens / statistics.median(race.seconds[name]), "p99 ms/token": statistics.median(race.p99[name]) / 1000}
        counts = dict(zip(("drafted", "accepted"), counted[name], strict=True))
        rows.append({"concurrency": concurrency, "contender": name, **speed, **race.beside(base, name), **counts, **race.raw(name)})
    return rows


def check(first: Mapping[str, list[Any]], counted: Mapping[str, list[int]]) -> None:
    """Compare what the contenders generated and drafted.

    :param first: name -> the first answer; `counted`: name -> drafted and accepted in it.
    """
    assert all(answer[:-1] == first[PLAIN][:-1] for answer in first.values()), "six engines, one output"
    # vLLM's own drafts past the end of a request too, and counts what it then throws away.
    assert all(0 <= a - b <= NUM_TOKENS * (len(first[OWN]) - 1) for a, b in zip(counted[OWN], counted[PLUGIN], strict=True)), "the same drafts"
    assert counted[PLUGIN][1] > 0, "some are accepted"
    assert counted[NOTHING][0] == counted[OWN_NOTHING][0] == 0, "nothing is drafted"


def main() -> None:
    """Measure and record."""
    arguments = asked(__doc__, 4, [1, 8, 32], serve)
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder))
        engines = {name: Engine(arguments.model, config, max(arguments.concurrency), script=__file__) for name, config in CONTENDERS.items()}
        rows: list[dict[str, Any]] = []
        for concurrency in arguments.concurrency:
            rows += compare(engines, concurrency, arguments.rounds)
            notes = {"new_tokens": NEW_TOKENS, "rounds": arguments.rounds, "runner": "V1", "ngram": [NUM_TOKENS, MIN_N, MAX_N]}
            record("vllm_ngram_tax", rows, notes)
        for engine in engines.values():
            engine.stop()


if __name__ == "__main__":
    main()
