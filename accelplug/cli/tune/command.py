"""``accelplug tune``: try drafters and the best one's options on half of the prompts, judge the winner on the other half, write what holds."""

from __future__ import annotations

import json
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from accelplug._errors import AccelplugError, OptionError
from accelplug._version import __version__
from accelplug.cli.arguments import add_engine, add_verifier, at_least
from accelplug.cli.bench import results, tasks, ways
from accelplug.cli.bench.command import dtype_of, loaded
from accelplug.cli.bench.figures import paired_ratio
from accelplug.cli.bench.measure import Taken, interleaved, joined
from accelplug.cli.bench.plot import check_writable
from accelplug.cli.bench.progress import progress
from accelplug.cli.command import Command, Document
from accelplug.cli.on_transformers import prompt_room
from accelplug.cli.tune.search import halves, halving, settings
from accelplug.cli.workload import check_technique, engine_of_arguments

if TYPE_CHECKING:
    from rich.console import Console


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", metavar="MODEL", help="a model directory or hub id")
    parser.add_argument("--prompts", metavar="FILE", required=True, help="JSON lines with 'prompt', or Spec-Bench's")
    parser.add_argument(
        "--drafter",
        metavar="SPEC",
        action="append",
        help="may be repeated; options given here stay fixed (default: every installed one that runs here)",
    )
    add_verifier(parser)
    parser.add_argument("--output", metavar="FILE", default="accelplug.toml", help="the configuration to write (default: %(default)s)")
    parser.add_argument("--limit", type=at_least(2, int), metavar="N", default=32, help="the most prompts (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=at_least(1, int), metavar="N", default=128, help="(default: %(default)s)")
    parser.add_argument(
        "--rounds", type=at_least(3, int), metavar="N", default=5, help="timed rounds of the judgement, at least 3 (default: %(default)s)"
    )
    add_engine(parser)


def collect(arguments: Namespace) -> Document:
    """Search, judge, and write the configuration if it is shown to be faster than plain generation."""
    for drafter in arguments.drafter or ():
        check_technique("drafter", drafter)
    check_technique("verifier", arguments.verifier)
    output = Path(arguments.output).expanduser()
    if output.exists():
        raise OptionError(f"{output} is there already; remove it, or name another file with --output")
    check_writable(output)
    texts = tasks.read_prompts(Path(arguments.prompts).expanduser())
    name, dtype, threads = engine_of_arguments(arguments)
    model, tokenizer = loaded(name, dtype, threads)
    document = {"model": name, **Tuning(arguments, model, tokenizer, texts).run()}
    if document["faster"]:
        output.write_text(toml(document), encoding="utf-8")
    return {**document, "output": str(output) if document["faster"] else None}


class Tuning:
    """One search: the drafters that run, then the fastest one's settings, and the two halves of the prompts."""

    def __init__(self, arguments: Namespace, model: Any, tokenizer: Any, texts: Sequence[tasks.Text]) -> None:
        self.arguments, self.model = arguments, model
        self.pad = ways.pad_id(tokenizer, model)
        new = arguments.max_new_tokens
        found = [
            prompt
            for prompt in (tasks.Prompt(t.task, tasks.encode(t, tokenizer)) for t in texts)
            if 0 < len(prompt.tokens) <= prompt_room(model, new)
        ]
        if len(found) < 2:
            raise OptionError(
                f"{arguments.prompts} has {len(found)} prompts that fit the model with --max-new-tokens {new}; "
                "tuning takes at least 2, to search on one half and judge on the other"
            )
        self.search, self.judge = halves(found[: arguments.limit])
        self.chosen = {"verifier": arguments.verifier, "allow_lossy": arguments.allow_lossy}
        self.tokenizer = tokenizer
        self.drafters, self.left_out = ways.asked(model, tokenizer, arguments.drafter, **self.chosen)
        if not self.drafters:
            raise ways.none_runs(self.left_out)

    def _settings(self, drafter: ways.Way) -> list[ways.Way]:
        """Return a drafter's settings, its own first, without those that it refuses."""
        found = [drafter]
        for spec in settings(drafter.name)[1:]:
            try:
                found.append(ways.accelerated(self.model, self.tokenizer, spec, **self.chosen))
            except AccelplugError:
                continue
        return found

    def run(self) -> Document:
        """Return what won, what it was worth on the prompts it was not chosen on, and the way there."""
        asked = self.arguments
        with progress("searching", 0) as tick:

            def measure(left: list[ways.Way], prompts: list[tasks.Prompt]) -> list[float]:
                return [taken.seconds[0] for taken in self._take(left, prompts, 1, tick)]

            default, rungs = halving(self.drafters, self.search, measure)
            tried = self._settings(default)
            winner, more = halving(tried, self.search, measure)
            compared = list({way.name: way for way in (ways.plain(), default, winner)}.values())
            taken = dict(zip((way.name for way in compared), self._take(compared, self.judge, asked.rounds, tick), strict=True))
        against_default = paired_ratio(taken[default.name].seconds, taken[winner.name].seconds)
        chosen = winner if against_default.low > 1 else default
        against_plain = paired_ratio(taken[ways.PLAIN].seconds, taken[chosen.name].seconds)
        margins = results.margins_of(self.model, self.judge, taken[ways.PLAIN])
        agreement = results.agreement(taken[ways.PLAIN], taken[chosen.name], margins, results.near_tie(self.model))
        exact = asked.allow_lossy or not agreement["different"]
        return {
            "drafter": chosen.name,
            "verifier": asked.verifier,
            "allow_lossy": asked.allow_lossy,
            "winner": winner.name,
            "default": default.name,
            "x_default": against_default.as_dict(),
            "x_plain": against_plain.as_dict(),
            "faster": exact and against_plain.low > 1,
            "output_agreement": agreement,
            "drafters": [way.name for way in self.drafters],
            "left_out": self.left_out,
            "tried": [way.name for way in tried],
            "rungs": [*rungs, *more],
            "prompts": {"search": len(self.search), "judge": len(self.judge)},
            "rounds": asked.rounds,
            "max_new_tokens": asked.max_new_tokens,
            "dtype": dtype_of(self.model),
            **results.circumstances({}),
        }

    def _take(self, compared: list[ways.Way], prompts: list[tasks.Prompt], rounds: int, tick: Callable[[], None]) -> list[Taken]:
        batches = ways.batches_of(prompts, 1, self.model, self.arguments.max_new_tokens, self.pad)
        return [joined(parts) for parts in interleaved(self.model, compared, batches, rounds, tick)]


def toml(document: Document) -> str:
    """Write the configuration, with where it comes from."""
    ratio, prompts = document["x_plain"], document["prompts"]
    lines = [
        f"# accelplug {__version__} tune, {document['model']}: {ratio['median']:.2f} x plain generation",
        f"# ({ratio['low']:.2f} to {ratio['high']:.2f}) on {prompts['judge']} prompts that it was not chosen on; {document['dtype']}, {document['machine']}",
        *(f"{key} = {json.dumps(document[key], ensure_ascii=False)}" for key in ("drafter", "verifier")),
        *(["allow_lossy = true"] if document["allow_lossy"] else []),
    ]
    return "\n".join(lines) + "\n"


def show(document: Document, console: Console) -> None:
    """Print what was found and what to do with it."""

    def interval(ratio: Document) -> str:
        return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"

    rungs = ", ".join(f"{candidates} on {prompts}" for candidates, prompts in document["rungs"])
    tried = f"{len(document['tried'])} settings, in all {rungs} prompts" if rungs else "no other setting, as there is none"
    lines = [
        f"drafters: {', '.join(document['drafters'])}; fastest: {document['default']}",
        f"tried of it: {tried}; fastest: {document['winner']}",
        f"against its default {document['default']}, on the other {document['prompts']['judge']} prompts: {interval(document['x_default'])} x",
        f"chosen: {document['drafter']}, {interval(document['x_plain'])} x plain generation",
        f"wrote {document['output']}; use it with 'accelplug run --config {shlex.quote(document['output'])}' or attach(model, **accelplug.load_config(...))"
        if document["faster"]
        else _nothing(document),
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _nothing(document: Document) -> str:
    if document["output_agreement"]["different"]:
        return f"nothing was written: {document['output_agreement']['different']} outputs are DIFFERENT from plain generation's"
    return "nothing was written: it is not shown to be faster than plain generation on these prompts"


COMMAND: Final = Command(
    "tune",
    "find a drafter's fastest options on your prompts, and write them down",
    configure,
    collect,
    show,
    lambda d: 0 if d["faster"] else 1,
)
