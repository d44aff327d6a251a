"""What accelplug's host adds to a step of vLLM on a GPU, its graphs on: beside vLLM's own n-gram drafter and plain vLLM, on both runners.

    PYTHONPATH=. python integration/gpu/tax.py [--runner v1|v2-async] [--model DIR] [--rounds N] [--concurrency 1 8 32]

On V1 these are the engines of `integration/speed/ngram_tax.py`. On V2 they are plain vLLM, vLLM's own `ngram_gpu`, and accelplug's `prompt_lookup` on
the device, once with vLLM's rule and once with `block`. Ratios are printed and kept in ``results/vllm_tax_*.json``; none is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import accelplug_testbed
from place import MACHINE, ON_CPU, RESULTS, circumstances, missing

import ngram_tax  # isort: skip  place puts their folder on the path
from counting import count_graphs
from measure import record
from vllm_speed import NEW_TOKENS, Engine

PLAIN, OWN = ngram_tax.PLAIN, "vllm ngram_gpu"
ON_DEVICE = "prompt_lookup(num_tokens=4)"
V2: Mapping[str, dict[str, Any]] = {
    PLAIN: {},
    OWN: {"speculative_config": {**ngram_tax.NGRAM, "method": "ngram_gpu"}},
    "prompt_lookup": ngram_tax.drafting(ON_DEVICE),
    "prompt_lookup, block": ngram_tax.drafting(ON_DEVICE, verifier="block"),
}


def started(model: str, runner: str, most: int) -> dict[str, Engine]:
    """Return the runner's engines, all alive at once."""
    contenders = ngram_tax.CONTENDERS if runner == "v1" else V2
    told = {"dtype": "float32" if ON_CPU else "auto", **MACHINE.arguments(runner)}
    environment = MACHINE.environment(runner)
    return {name: Engine(model, {**told, **config}, most, script=__file__, environment=environment) for name, config in contenders.items()}


def serve(model: str, config: str, most: int) -> None:
    """Be one of the engines; without CUDA graphs there is nothing worth measuring on a GPU."""
    graphs = count_graphs()

    def started() -> None:
        if not (ON_CPU or graphs["captured"]):
            raise SystemExit("no CUDA graph was captured")

    ngram_tax.serve(model, config, most, started)


def compare_v2(engines: Mapping[str, Engine], concurrency: int, rounds: int) -> list[dict[str, Any]]:
    """Return two rows for each contender: beside plain vLLM, and beside vLLM's own drafter."""
    first = {name: engine(str(concurrency)) for name, engine in engines.items()}
    race, tokens = ngram_tax.Race(engines, concurrency, rounds), sum(map(len, first[PLAIN][:-1]))
    rows = []
    for name, answer in first.items():
        differing = sum(mine != plain for mine, plain in zip(answer[:-1], first[PLAIN][:-1], strict=True))
        counts = dict(zip(("drafted", "accepted"), answer[-1][2:], strict=True))
        told = {"tokens/s": tokens / statistics.median(race.seconds[name]), "outputs differing from plain": differing, **counts}
        rows += [{"concurrency": concurrency, "contender": name, **told, **race.beside(base, name), **race.raw(name)} for base in (PLAIN, OWN)]
    return rows


def main(folder: Path = RESULTS) -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runner", choices=("v1", "v2-async"), default="v1")
    parser.add_argument("--model", default=str(accelplug_testbed.path()))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.model, arguments.serve, max(arguments.concurrency))
    if (reason := missing()) is not None:
        raise SystemExit(f"nothing to measure: {reason}")
    # In half precision, unlike on a CPU, near-ties may part the outputs.
    compare = partial(ngram_tax.compare, exact=ON_CPU) if arguments.runner == "v1" else compare_v2
    with tempfile.TemporaryDirectory() as site:
        ngram_tax.install(Path(site))
        engines = started(arguments.model, arguments.runner, max(arguments.concurrency))
        rows: list[dict[str, Any]] = []
        for concurrency in arguments.concurrency:
            rows += compare(engines, concurrency, arguments.rounds)
            notes = {**circumstances(arguments.runner), "new_tokens": NEW_TOKENS, "rounds": arguments.rounds}
            record(f"vllm_tax_{arguments.runner}", rows, notes, folder)
        for engine in engines.values():
            engine.stop()
    return None


if __name__ == "__main__":
    main(Path(tempfile.mkdtemp()) if ON_CPU else RESULTS)
