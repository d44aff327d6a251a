"""What a step of vLLM's V1 runner costs in its process, in CPU time: plain, with vLLM's n-gram drafter, and with plugins of accelplug's.

    python integration/speed/step_costs.py [--model DIR] [--rounds N] [--concurrency 1 8]

Every engine runs the same requests in every round, so that its n-th step does the same work each time; a step's cost is the least of all
rounds, which other load on the machine can only raise, and figures are means over the steps in which every request decodes. The model is
a tiny random one, beside which the engine's own work shows; a real one adds the same to all. With STEP_PROFILE=FILE each engine also writes
what cProfile saw of one run into FILE.<process id>.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ngram_tax as tax
import numpy as np
from measure import record
from ngram_tax import MAX_N, NOTHING, NUM_TOKENS, OWN, OWN_NOTHING, PLAIN, PLUGIN, WRONG, drafting, install
from rich.console import Console
from rich.progress import track
from vllm_speed import Engine, asked

sys.path.append(str(Path(__file__).parents[1] / "vllm"))
from tiny_model import make

CONTENDERS: Mapping[str, dict[str, Any]] = {
    PLAIN: {},
    OWN_NOTHING: tax.CONTENDERS[OWN_NOTHING],
    "plugin, does nothing": drafting("does_nothing", num_tokens=NUM_TOKENS),
    **{name: tax.CONTENDERS[name] for name in (NOTHING, WRONG, OWN, PLUGIN)},
}
STEPS = 150


def serve(model: str, config: str, concurrency: int) -> None:
    """Answer every line on standard input with the nanoseconds of each step and how many tokens it brought."""
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    llm = LLM(
        model, dtype="float32", max_model_len=512, enforce_eager=True, max_num_seqs=concurrency, enable_prefix_caching=False,
        disable_log_stats=False, **json.loads(config),
    )  # fmt: skip
    sampling = SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
    draw = np.random.default_rng(0)
    prompts = [draw.integers(2, 256, 48).tolist() for _ in range(concurrency)]
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin):
        for i, prompt in enumerate(prompts):
            llm.llm_engine.add_request(f"{number}-{i}", {"prompt_token_ids": prompt}, sampling)
        if number == 1 and (file := os.environ.get("STEP_PROFILE")):
            profile(llm.llm_engine, f"{file}.{os.getpid()}")
        steps = list(run(llm.llm_engine, concurrency))
        print(json.dumps([list(column) for column in zip(*steps, strict=True)] or [[0]]), flush=True)


def run(engine: Any, concurrency: int) -> Any:
    """Yield nanoseconds and tokens of every step in which all requests decode, the first of them left out."""
    began = 0
    while engine.has_unfinished_requests():
        start = time.process_time_ns()
        outputs = engine.step()
        spent = time.process_time_ns() - start
        began += len(outputs) == concurrency
        if began > 2 and len(outputs) == concurrency and not any(output.finished for output in outputs):
            yield spent, sum(len(output.outputs[0].token_ids) for output in outputs)


def profile(engine: Any, where: str) -> None:
    """Write down what the steps of one run spend their time on."""
    import cProfile

    profiler = cProfile.Profile()
    for _ in range(5):
        engine.step()
    profiler.enable()
    for _ in range(40):
        engine.step()
    profiler.disable()
    profiler.dump_stats(where)


def compare(model: str, concurrency: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each contender."""
    engines = {name: Engine(model, config, concurrency, script=__file__) for name, config in CONTENDERS.items()}
    least: dict[str, Any] = {}
    tokens: dict[str, list[int]] = {}
    for number in track(range(rounds + 1), f"concurrency {concurrency}", console=Console(stderr=True)):
        for name, engine in engines.items():
            spent, tokens[name] = engine()
            if number:
                least[name] = np.minimum(least.get(name, np.inf), spent)
    for engine in engines.values():
        engine.stop()
    common = min(map(len, least.values())) - 1
    rows = []
    for name in CONTENDERS:
        base = PLAIN if name not in (OWN, PLUGIN) else OWN
        micros, of_base = (float(least[each][:common].mean()) / 1000 for each in (name, base))
        rows.append(
            {"concurrency": concurrency, "contender": name, "us/step": micros, "beside": base, "more us": micros - of_base,
             "tokens/step": float(np.mean(tokens[name][:common])), "steps": common}
        )  # fmt: skip
    return rows


def main() -> None:
    """Measure and record."""
    arguments = asked(__doc__, 8, [1, 8], serve)
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder))
        model = arguments.model if "--model" in sys.argv else str(make(Path(folder) / "model"))
        rows = [row for concurrency in arguments.concurrency for row in compare(model, concurrency, arguments.rounds)]
    record("vllm_step_costs", rows, {"rounds": arguments.rounds, "runner": "V1", "ngram": [NUM_TOKENS, MAX_N]})


if __name__ == "__main__":
    main()
