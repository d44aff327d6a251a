"""What routing costs: the engines alone and `auto`, the same schemas, in turns: compiling, and a mask for each token of the valid instances.

``python integration/constrained/times.py FILE.jsonl [--rounds N] [--every N] [--json OUT]`` prints a line a schema that misses a bound, and a
summary line last. Times are this thread's CPU time, medians of the rounds; the engines compile in this thread (xgrammar with one of its own).
The chosen engine alone is the same engine with what `auto` gave it, the schema as it is or the grammar that it was rewritten to.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch

from accelplug import ConstraintError
from accelplug.constrained import routing
from accelplug.constrained.auto import Alone, Auto
from accelplug.constrained.tekken import tekken
from accelplug.constrained.walking import legal_by_mask
from accelplug.hooks import CompileLimits, GrammarSpec

ENGINES = ("auto", "llguidance", "xgrammar")
BOUND, ROUTING_MS, HALF = 1.1, 1.0, 2.0


def fresh(name):
    """Return an engine that has compiled nothing yet."""
    return Auto() if name == "auto" else Alone(name)


def clocked(work):
    """Return a result, and the milliseconds of this thread that it took."""
    began = time.thread_time()
    found = work()
    return found, (time.thread_time() - began) * 1e3


class Begun:
    """Notes what `auto` asks its engine to compile, and how long that takes."""

    def __init__(self):
        self.milliseconds, self.plain = 0.0, routing.begin

    def __call__(self, *asked):
        try:
            found, spent = clocked(lambda: self.plain(*asked))
        except ConstraintError:
            self.milliseconds = 0.0
            raise
        self.milliseconds = spent
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


def measured(row, vocabulary, rounds):
    """Return engine -> medians in ms: compiling, masks in sum, every mask; of `auto` what its engine alone took to compile as well."""
    texts = [json.dumps(test["data"], ensure_ascii=False) for test in row["tests"] if test["valid"]]
    spec = GrammarSpec("json_schema", json.dumps(row["schema"], ensure_ascii=False))
    begun, found, right = Begun(), defaultdict(list), {}
    routing.begin = begun
    try:
        for _ in range(rounds):
            for name in ENGINES:
                if name in found and found[name] is None:
                    continue
                try:
                    compiled, compiling = clocked(lambda name=name: fresh(name).compile(spec, vocabulary, CompileLimits()))
                    alone = begun.milliseconds
                    each = masks(compiled, texts, vocabulary)
                except ConstraintError:
                    each = None
                if each is None:
                    found[name] = None
                else:
                    found[name].append((compiling, sum(each), each, alone, compiled.statement.engine))
                    right[name] = right[name] if name in right else is_right(compiled, row["tests"], vocabulary)
    finally:
        routing.begin = begun.plain
    return {name: _medians(runs) | {"right": right[name]} for name, runs in found.items() if runs}


def is_right(compiled, tests, vocabulary):
    """Return whether masks and the final check judge all instances right."""
    for test in tests:
        text = json.dumps(test["data"], ensure_ascii=False)
        if (legal_by_mask(compiled.matcher(), text, vocabulary) and compiled.check(text) is None) != test["valid"]:
            return False
    return True


def _medians(runs):
    compiling, summed, alone = (statistics.median(run[at] for run in runs) for at in (0, 1, 3))
    each = [statistics.median(run[2][at] for run in runs) for at in range(len(runs[0][2]))]
    return {"compile": compiling, "masks": summed, "each": each, "alone": alone, "engine": runs[0][4]}


def quantile(values, share):
    """Return a quantile, None of nothing."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None


def verdict(name, found):
    """Return what one schema's times say."""
    auto = found["auto"]
    total = auto["compile"] + auto["masks"]
    others = {other: times["compile"] + times["masks"] for other, times in found.items() if other != "auto" and times["right"]}
    best = min(others, key=others.get, default=None)
    return {
        "name": name,
        "engine": auto["engine"],
        "over": round(total - BOUND * (auto["alone"] + auto["masks"]) - ROUTING_MS, 3),
        "total_ms": round(total, 3),
        "best_other": best,
        "halved": best is not None and total > HALF * others[best],
        "rewritten": "rewritten" in auto["engine"],
    } | {f"{other}_ms": round(spent, 3) for other, spent in others.items()}


def summary(lines, each):
    """Count the schemas beyond a bound, and give quantiles of masks."""
    told = [line for line in lines if line is not None]
    return {
        "schemas": len(lines),
        "measured": len(told),
        "over_bound": sum(line["over"] > 0 for line in told),
        "over_bound_as_they_are": sum(line["over"] > 0 and not line["rewritten"] for line in told),
        "as_they_are": sum(not line["rewritten"] for line in told),
        "halved_by_another_that_is_right": sum(line["halved"] for line in told),
        "of_these_as_they_are": sum(line["halved"] and not line["rewritten"] for line in told),
    } | {f"{name}_mask_us_p{share}": round(1e3 * (quantile(values, share / 100) or 0), 1) for name, values in each.items() for share in (50, 99)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--json", help="also write every schema's line there")
    asked = parser.parse_args()
    vocabulary = tekken()
    rows = [json.loads(line) for line in Path(asked.file).read_text().splitlines()][:: asked.every]
    for name in ENGINES:  # what is loaded and made once is not a schema's
        fresh(name).compile(GrammarSpec("json_schema", '{"type": "integer"}'), vocabulary, CompileLimits())
    lines, each = [], defaultdict(list)
    for row in rows:
        found = measured(row, vocabulary, asked.rounds)
        for name, times in found.items():
            each[name] += times["each"]
        lines.append(verdict(row["name"], found) if "auto" in found else None)
        if lines[-1] and (lines[-1]["over"] > 0 or lines[-1]["halved"]):
            print(json.dumps(lines[-1]), flush=True)
    if asked.json:
        Path(asked.json).write_text("\n".join(json.dumps(line) for line in lines if line) + "\n")
    print(json.dumps({"summary": summary(lines, each)}))


if __name__ == "__main__":
    main()
