"""Every class of Transformers that generates text, tiny and random: whether its output with drafts is plain generation's. Run by hand.

``python integration/transformers/architectures.py [--only NAME...] [--json OUT]`` surveys all classes, or those named, and writes what came
of them into ``results/architectures.json``, beside what is there of others. Each class has a process of its own, with limits of time and memory.
It decodes greedily one row and a padded batch of text, in chains and in trees, and the same with an image, and with a sound, in the prompt,
where another makes another answer. The drafts are of all widths, right and wrong by turns; a case is "equal" only if some were accepted and some rejected.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from prompts import Given, inputs_for
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tiny import VOCAB, tiny
from transformers.models.auto import modeling_auto

import accelplug
from accelplug.testing.oracle import Oracle

RESULT = Path(__file__).resolve().parent / "results" / "architectures.json"
PACKAGES = ("accelplug", "transformers", "torch")
KINDS = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ")
SECONDS, MEMORY = 90, 10 << 30
NEW_TOKENS, NEAR = 40, 1e-4
PATTERN = [(3, 1), (0, 2), (5, 0), (2, 2), (1, 1), (4, 1), (0, 1), (7, 2)]
"""How many drafts of each step are right, and how many behind them wrong: about two thirds of all."""
WANDERS = 10
"""How many different tokens an answer must have for mistakes to show; other weights are tried where it has fewer."""
WEIGHTS = [(0.3, 3), (0.6, 3), (0.15, 3), (1.0, 4), (0.05, 5), (0.15, 5)]


def classes() -> list[str]:
    """Return the names of the classes, each once."""
    names = [name for kind in KINDS for name in getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES").values()]
    return list(dict.fromkeys(names))


def said(exc: BaseException) -> str:
    """Return an exception's type and first line."""
    return f"{type(exc).__name__}: {str(exc).strip().partition(chr(10))[0]:.300}"


def generate(model: Any, given: Given, **more: Any) -> Any:
    """Generate greedily."""
    return model.generate(**given.arguments, max_new_tokens=NEW_TOKENS, do_sample=False, **more)


def margin(model: Any, given: Given, row: int, column: int, length: int) -> float:
    """Return how close plain generation's best two tokens are, at this column of this row of its output of this length."""
    out = generate(model, given, return_dict_in_generate=True, output_logits=True)
    best, second = out.logits[column - (length - len(out.logits))][row].float().topk(2).values.tolist()
    return float(best - second)


def compare(model: Any, given: Given, width: int) -> dict[str, Any]:
    """Decode plainly and with drafts; return the outcome."""
    try:
        known = generate(model, given).tolist()
    except Exception as exc:
        return {"outcome": "plain fails", "said": said(exc)}
    try:
        with accelplug.attach(model, drafter=Oracle(given.unpadded(known), PATTERN, VOCAB, width)) as session:
            found = generate(model, given).tolist()
    except accelplug.AccelplugError as exc:
        return {"outcome": "refused", "said": said(exc)}
    except Exception as exc:
        return {"outcome": "error", "said": said(exc)}
    stats = session.stats
    counted = {"drafted": stats.drafted, "accepted": stats.accepted, "distinct": len(set(known[0][-NEW_TOKENS:]))}
    if known == found:
        return {"outcome": "equal" if 0 < stats.accepted < stats.drafted else "not drafted", **counted}
    return {**_difference(model, given, known, found), **counted}


def _difference(model: Any, given: Given, known: list[list[int]], found: list[list[int]]) -> dict[str, Any]:
    """Return where, in the row that parts first, and how close plain generation's best two tokens are there."""
    pairs = zip(known, found, strict=True)
    column, row = min((i, row) for row, ours in enumerate(pairs) for i, both in enumerate(zip(*ours, strict=False)) if len(set(both)) > 1)
    least = margin(model, given, row, column, len(known[0]))
    return {"outcome": "near-tie" if least < NEAR else "different", "row": row, "column": column, "margin": least}


def wandering(kind: type[Any]) -> Any:
    """Return a tiny model of this class, of the first weights whose answers have enough different tokens, else those with most.

    Weights by which an image or a sound makes no other answer come last.
    """
    best, most = (0.3, 3), (0, -1)
    for weights in WEIGHTS:
        model = tiny(kind, *weights)
        try:
            given = [one for way, one in inputs_for(model).items() if way in ("row", "image", "audio")]
            found = len(given), min(len(set(generate(model, one)[0, -NEW_TOKENS:].tolist())) for one in given)
        except Exception:  # some read their image, without which they fail, only with some weights
            continue
        best, most = (weights, found) if found > most else (best, most)
        if most[1] >= WANDERS:
            break
    return tiny(kind, *best)


def survey(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what comes of each way of decoding with one class."""
    try:
        model = wandering(getattr(transformers, name))
    except Exception as exc:
        yield "all", {"outcome": "not built", "said": said(exc)}
        return
    given = inputs_for(model)
    for way, one in given.items():
        yield way, {**compare(model, one, 1), "inputs": one.what}
    for way in [way for way in ("row", "batch", "image", "audio") if way in given]:
        yield f"tree, {way}", {**compare(model, given[way], 2), "inputs": given[way].what}


def in_child(name: str, out: Path) -> None:
    """Survey one class and write each outcome as it comes; never return."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    with out.open("a") as file:
        for way, found in survey(name):
            file.write(json.dumps({way: found}) + "\n")
            file.flush()
    os._exit(0)


def limited(name: str) -> dict[str, Any]:
    """Survey one class in a process of its own; return what came of it until its limits."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found"
        out.touch()
        child = os.fork()
        if not child:
            in_child(name, out)
        ended = _wait(child)
        found = {way: of for line in out.read_text().splitlines() for way, of in json.loads(line).items()}
    why = f"{ended} s were not enough" if ended == SECONDS else f"the process left with {ended}"
    return found if ended == 0 else {**found, "rest": {"outcome": "error", "said": why}}


def _wait(child: int) -> int:
    """Wait for a process, and end it when its time is over; return its status, or the limit."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return SECONDS


def table(results: dict[str, Any]) -> Table:
    """Count outcomes by way of decoding."""
    counts = Counter((way, of["outcome"]) for found in results.values() for way, of in found["ways"].items())
    outcomes, ways = sorted({outcome for _, outcome in counts}), list(dict.fromkeys(way for way, _ in counts))
    drawn = Table("outcome", *ways, title=f"{len(results)} classes")
    for outcome in outcomes:
        drawn.add_row(outcome, *(str(counts[way, outcome] or "") for way in ways))
    return drawn


def main(arguments: list[str]) -> int:
    """Survey the classes and record them; leave with 1 where output was different or failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME")
    parser.add_argument("--json", type=Path, default=RESULT, metavar="OUT")
    asked = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    console = Console()
    versions = {name: version(name) for name in PACKAGES}
    results = json.loads(asked.json.read_text())["classes"] if asked.json.exists() else {}
    for name in track(asked.only or classes(), console=console):
        ways = limited(name)
        results[name] = {"ways": ways, "with": versions}
        asked.json.parent.mkdir(exist_ok=True)
        asked.json.write_text(json.dumps({"classes": dict(sorted(results.items()))}, indent=1) + "\n")
        bad = [str(of) for of in ways.values() if of["outcome"] in ("different", "error", "not drafted")]
        console.print(name, *(f"{way}: {of['outcome']}" for way, of in ways.items()), *bad, sep="  ", highlight=False, soft_wrap=True)
    console.print(table(results))
    return any(of["outcome"] in ("different", "error") for found in results.values() for of in found["ways"].values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
