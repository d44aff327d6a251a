"""What routing costs: the engines alone and `auto`, the same schemas, in turns: compiling, and a mask for each token of the valid instances.

``python integration/constrained/times.py FILE.jsonl [--rounds N] [--every N] [--engine NAME] [--json OUT]`` prints a line a schema that misses a bound, a
summary line, and a line a bound. Times are this thread's CPU time, medians of the rounds; the engines compile in this thread (xgrammar with
one of its own). What takes the other engines long is measured once. The chosen engine alone is the same engine with what `auto` gave it, the schema as it is or
the grammar that it was rewritten to. ``--engine auto`` leaves the others out, which are nearly all of the time. Whether another engine is
right is only asked where it takes less than half the time. What is loaded is left out of garbage collection, as in servers.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track

from accelplug import ConstraintError
from accelplug.constrained import routing
from accelplug.constrained.auto import Alone, Auto
from accelplug.constrained.engines.on_xgrammar import compiler as compiler_of
from accelplug.constrained.tekken import tekken
from accelplug.constrained.walking import legal_by_mask
from accelplug.hooks import CompiledGrammar, CompileLimits, GrammarSpec

ENGINES = ("auto", "llguidance", "xgrammar")
BOUND, ROUTING_MS, HALF, MOST_HALVED = 1.1, 1.0, 2.0, 1 / 20
LONG_MS = 150.0  # beside so much, what differs between rounds decides nothing


class Run(NamedTuple):
    """One engine on one schema, in ms: compiling, every mask, and what `auto`'s engine alone took to compile."""

    compiling: float
    each: list[float]
    alone: float
    compiled: CompiledGrammar

    @property
    def total(self):
        """Compiling and masks."""
        return self.compiling + sum(self.each)


def fresh(name):
    """Return an engine that has compiled nothing yet."""
    return Auto() if name == "auto" else Alone(name)


def clocked(work):
    """Return a result, and the milliseconds of this thread that it took."""
    began = time.thread_time()
    found = work()
    return found, (time.thread_time() - began) * 1e3


class Begun:
    """Notes how long the engine takes for what `auto` gives it to compile, as long as it is entered."""

    NAMES = "begin", "begin_written"  # as it is, and as it was rewritten

    def __init__(self):
        self.milliseconds = 0.0

    def __enter__(self):
        self.plain = {name: getattr(routing, name) for name in self.NAMES}
        for name, compiles in self.plain.items():
            setattr(routing, name, partial(self._noted, compiles))
        return self

    def __exit__(self, *_):
        for name, compiles in self.plain.items():
            setattr(routing, name, compiles)

    def _noted(self, compiles, *asked):
        found, self.milliseconds = clocked(lambda: compiles(*asked))
        return found


def masks(compiled, texts, vocabulary):
    """Return the milliseconds of each mask along the texts, None where the mask refuses one."""
    row = torch.zeros((len(vocabulary) + 31) // 32, dtype=torch.int32)
    spent = []
    for text in texts:
        matcher = compiled.matcher()
        for token in vocabulary.encode(text):
            spent.append(clocked(lambda matcher=matcher: matcher.fill(row))[1])
            if matcher.accept([token]) != 1:
                return None
    return spent


def run(name, spec, texts, vocabulary, begun):
    """Return one engine's run, None where it refuses the schema or a valid instance."""
    compiler_of(vocabulary).clear_cache()  # xgrammar's own, which would know the schema from the second round on
    begun.milliseconds = 0.0
    try:
        compiled, compiling = clocked(lambda: fresh(name).compile(spec, vocabulary, CompileLimits()))
        alone = begun.milliseconds
        if name == "auto" and not alone:
            raise SystemExit(f"times.py notes nothing of what auto gives its engine: routing.py no longer compiles with {' or '.join(Begun.NAMES)}")
        each = masks(compiled, texts, vocabulary)
    except ConstraintError:
        return None
    return None if each is None else Run(compiling, each, alone, compiled)


def measured(row, vocabulary, rounds, engines=ENGINES):
    """Return engine -> medians of its runs, without the engines that refuse."""
    texts = [json.dumps(test["data"], ensure_ascii=False) for test in row["tests"] if test["valid"]]
    spec = GrammarSpec("json_schema", json.dumps(row["schema"], ensure_ascii=False))
    found = {name: [] for name in engines}
    with Begun() as begun:
        for _ in range(rounds):
            for name, runs in found.items():
                if not runs or (runs[0] is not None and (name == "auto" or runs[0].total < LONG_MS)):
                    runs.append(run(name, spec, texts, vocabulary, begun))
    return {name: medians(runs) for name, runs in found.items() if runs[0] is not None}


def medians(runs):
    """Return one run of the medians of several."""
    each = [statistics.median(spent) for spent in zip(*(one.each for one in runs), strict=True)]
    return Run(statistics.median(one.compiling for one in runs), each, statistics.median(one.alone for one in runs), runs[0].compiled)


def is_right(compiled, tests, vocabulary):
    """Return whether masks and the final check judge all instances right."""
    for test in tests:
        text = json.dumps(test["data"], ensure_ascii=False)
        if (legal_by_mask(compiled.matcher(), text, vocabulary) and compiled.check(text) is None) != test["valid"]:
            return False
    return True


def verdict(row, found, vocabulary):
    """Return what one schema's times say."""
    auto, engine = found["auto"], found["auto"].compiled.statement.engine
    faster = sorted((one.total, name) for name, one in found.items() if HALF * one.total < auto.total)
    halved = next((name for _, name in faster if is_right(found[name].compiled, row["tests"], vocabulary)), None)
    return {
        "name": row["name"],
        "engine": engine,
        "rewritten": "rewritten" in engine,
        "over_ms": round(auto.total - BOUND * (auto.alone + sum(auto.each)) - ROUTING_MS, 3),
        "routing_ms": round(auto.compiling - auto.alone, 3),
        "compile_ms": round(auto.compiling, 3),
        "total_ms": round(auto.total, 3),
        "halved_by": halved,
    } | {f"{name}_ms": round(one.total, 3) for name, one in found.items() if name != "auto"}


def quantile(values, share):
    """Return a quantile, 0 of nothing."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0


def summary(lines, count, each):
    """Count the schemas beyond a bound, and give quantiles of masks."""
    over = [line for line in lines if line["over_ms"] > 0]
    halved = [line for line in lines if line["halved_by"]]
    return {
        "engines": list(each),
        "schemas": count,
        "measured": len(lines),
        "rewritten": sum(line["rewritten"] for line in lines),
        "over_bound": len(over),
        "over_bound_rewritten": sum(line["rewritten"] for line in over),
        "below_bound_together_ms": round(-sum(line["over_ms"] for line in lines), 1),
        "over_bound_most_ms": max((line["over_ms"] for line in over), default=0),
        "over_bound_median_ms": quantile([line["over_ms"] for line in over], 0.5),
        "halved_by_another_that_is_right": len(halved),
        "halved_rewritten": sum(line["rewritten"] for line in halved),
        "total_s": round(sum(line["total_ms"] for line in lines) / 1e3, 3),
    } | {f"{name}_mask_us_p{share}": round(1e3 * quantile(values, share / 100), 1) for name, values in each.items() for share in (50, 99)}


def bounds(said):
    """Return a sentence for each bound, and whether it holds."""
    most = int(MOST_HALVED * said["measured"])
    yield (
        f"at most {BOUND}x the engine alone + {ROUTING_MS:g} ms: {said['over_bound']} of {said['measured']} miss it"
        f" ({said['over_bound_rewritten']} of {said['rewritten']} rewritten),"
        f" by {said['over_bound_median_ms']} ms in the median and {said['over_bound_most_ms']} ms at most;"
        f" all together take {said['below_bound_together_ms']} ms less than all bounds",
        said["over_bound"] == 0,
    )
    if len(said["engines"]) == 1:
        return  # there is no other engine to compare with
    yield (
        f"at most {most} where another engine that is right takes less than half: {said['halved_by_another_that_is_right']}"
        f" ({said['halved_rewritten']} rewritten)",
        said["halved_by_another_that_is_right"] <= most,
    )


def main():
    """Measure a file; return 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--engine", action="append", choices=ENGINES, help="measure only this one; may be repeated, and auto is always measured")
    parser.add_argument("--json", help="also write every schema's line there, as soon as it is measured")
    asked = parser.parse_args()
    vocabulary, console = tekken(), Console(stderr=True)
    rows = [json.loads(line) for line in Path(asked.file).read_text().splitlines()][:: asked.every]
    engines = [name for name in ENGINES if not asked.engine or name in {"auto", *asked.engine}]
    for name in engines:  # what is loaded and made once is not a schema's
        fresh(name).compile(GrammarSpec("json_schema", '{"type": "integer"}'), vocabulary, CompileLimits())
    gc.collect()
    gc.freeze()  # as servers do once they have started: else one schema or another pays for a look at everything that is loaded
    lines, each = [], defaultdict(list)
    with ExitStack() as stack:
        out = stack.enter_context(Path(asked.json).open("w")) if asked.json else None
        for row in track(rows, "measuring", console=console, disable=not console.is_terminal, transient=True):
            found = measured(row, vocabulary, asked.rounds, engines)
            for name, one in found.items():
                each[name] += one.each
            if "auto" not in found:
                continue
            lines.append(verdict(row, found, vocabulary))
            if out:
                print(json.dumps(lines[-1]), file=out, flush=True)
            if lines[-1]["over_ms"] > 0 or lines[-1]["halved_by"]:
                print(json.dumps(lines[-1]), flush=True)
    said = summary(lines, len(rows), each)
    print(json.dumps({"summary": said}))
    held = list(bounds(said))
    print("\n".join(f"{'held' if holds else 'MISSED'}: {sentence}" for sentence, holds in held))
    return 0 if all(holds for _, holds in held) else 1


if __name__ == "__main__":
    sys.exit(main())
