"""``accelplug bench``: techniques beside plain generation and Transformers' own, by task, on Transformers."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from accelplug._errors import OptionError
from accelplug.cli.arguments import add_engine, add_verifier, at_least
from accelplug.cli.bench import plot, results, serve, tasks, ways
from accelplug.cli.bench.measure import CutShortError, Taken, interleaved, joined
from accelplug.cli.bench.progress import progress, until_interrupted
from accelplug.cli.bench.table import show
from accelplug.cli.command import Command, Document
from accelplug.cli.on_transformers import prompt_room
from accelplug.cli.workload import check_technique, engine_of_arguments, model_of

Found = tuple[list[Document], list[Document], list[results.Alone]]
"""What a task gave: rows of its ways, its prompts, and those that were generated alone."""


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments of a benchmark."""
    parser.add_argument("--model", metavar="DIR_OR_HUB_ID", help="default: the small model of accelplug-testbed")
    parser.add_argument(
        "--prompts", metavar="FILE", help="JSON lines with 'prompt' and maybe 'task', or Spec-Bench's (default: built-in tasks)"
    )
    parser.add_argument("--task", action="append", metavar="NAME", help="only this task; may be repeated")
    parser.add_argument("--limit", type=at_least(1, int), metavar="N", default=4, help="prompts per task (default: %(default)s)")
    parser.add_argument("--drafter", action="append", metavar="SPEC", help="may be repeated (default: every installed one that runs here)")
    add_verifier(parser)
    parser.add_argument("--skip-own", action="store_true", help="leave out Transformers' own methods")
    parser.add_argument("--assistant", metavar="DIR_OR_HUB_ID", help="also Transformers' own assisted generation, by a second model with the same tokens")
    parser.add_argument(
        "--early-exit", action="append", type=at_least(1, int), metavar="N", default=[], help="also Transformers' own early exit behind N layers; repeatable"
    )
    parser.add_argument(
        "--batch-size", action="append", type=at_least(1, int), metavar="N", help="prompts generated together; may be repeated (default: 1)"
    )
    parser.add_argument("--max-new-tokens", type=at_least(1, int), metavar="N", default=128, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=at_least(1, int), metavar="N", default=5, help="timed rounds (default: %(default)s)")
    parser.add_argument(
        "--pair", action="append", nargs=2, metavar=("SPEC", "OTHER"), default=[], help="compare two of the drafters with each other, too; may be repeated"
    )
    parser.add_argument("--compiled", action="store_true", help="everything once more over static caches, compiled; takes minutes to begin")
    parser.add_argument("--plot", metavar="FILE", help="draw the ratios into a .png, .svg or .pdf, with matplotlib")
    add_engine(parser)
    serve.add_to(parser)


def collect(arguments: Namespace) -> Document:
    """Check everything that can be checked, load the model, measure, and describe."""
    if arguments.skip_own and (arguments.assistant or arguments.early_exit):
        raise OptionError("--assistant and --early-exit are methods of Transformers' own, which --skip-own leaves out; drop one or the other")
    if arguments.assistant is not None:
        arguments.assistant = model_of(arguments.assistant)  # said before the model is loaded: no such folder
    if arguments.pair and arguments.drafter:
        arguments.drafter += [drafter for pair in arguments.pair for drafter in pair]
    for drafter in (*(arguments.drafter or ()), *(drafter for pair in arguments.pair for drafter in pair)):
        check_technique("drafter", drafter)
    check_technique("verifier", arguments.verifier)
    picture = None if arguments.plot is None else Path(arguments.plot).expanduser()
    if picture is not None:
        plot.check(picture)
    name, dtype, threads = engine_of_arguments(arguments)
    every = tasks.texts_of(arguments.prompts, for_encoder=arguments.prompts is None and has_encoder(name))
    texts = tasks.chosen(every, arguments.task)  # before weights load
    bench = Bench(arguments, *loaded(name, dtype, threads), texts)
    document = {"model": name, "threads": threads, **bench.measure()}
    if picture is not None:
        plot.draw(document, picture)
    return document


def has_encoder(name: str) -> bool:
    """Whether a model reads its prompts with an encoder.

    :raises HostError: Transformers is missing or untested, or cannot read the model's configuration.
    """
    from accelplug.cli.on_transformers import is_encoder_decoder
    from accelplug.hosts.hf.compat import ENGINE

    ENGINE.require()
    return is_encoder_decoder(name)


def loaded(name: str, dtype: str, threads: int | None) -> tuple[Any, Any]:
    """Return model and tokenizer.

    :raises HostError: Transformers is missing or untested, or cannot load one of them.
    """
    import torch

    from accelplug.cli.on_transformers import load
    from accelplug.hosts.hf.compat import ENGINE

    ENGINE.require()
    if threads is not None:
        torch.set_num_threads(threads)
    return load(name, dtype)


def dtype_of(model: Any) -> str:
    """Return the type of a model's weights, as ``--dtype`` takes it."""
    return str(model.dtype).removeprefix("torch.")


def check_exits(exits: Sequence[int], model: Any) -> None:
    """Refuse early exits that the model does not have.

    :raises OptionError: one is behind its last layer, or it has an encoder.
    """
    if exits and model.config.is_encoder_decoder:
        raise OptionError(f"--early-exit is for decoders, and {type(model).__name__} has an encoder; leave it out")
    layers = model.config.get_text_config().num_hidden_layers
    if exits and max(exits) >= layers:
        raise OptionError(f"--early-exit takes fewer layers than the {layers} of {type(model).__name__}, got {max(exits)}")


class Bench:
    """One benchmark: the ways, the prompts, and the rounds over all of them."""

    def __init__(self, arguments: Namespace, model: Any, tokenizer: Any, texts: Sequence[tasks.Text]) -> None:
        self.arguments, self.model, self.tokenizer = arguments, model, tokenizer
        check_exits(arguments.early_exit, model)
        self.assistant = None if arguments.assistant is None else loaded(arguments.assistant, dtype_of(model), arguments.threads)[0]
        self.prompts, self.left_out = prompts_for(model, tokenizer, texts, arguments)
        self.cut_short = False
        self.sizes: list[int] = sorted(set(arguments.batch_size or [1]))
        chosen = {"verifier": arguments.verifier, "allow_lossy": arguments.allow_lossy}
        self.ways, refused = ways.asked(model, tokenizer, arguments.drafter, **chosen)
        self.left_out |= {f"drafter {spec}": why for spec, why in refused.items()}
        known = {way.name for way in self.ways}
        asked = dict.fromkeys(spec for pair in arguments.pair for spec in pair if spec not in known)
        self.ways += [ways.accelerated(model, tokenizer, drafter, **chosen) for drafter in asked]
        if arguments.compiled and model.config.is_encoder_decoder:
            raise OptionError(f"--compiled is for decoders, and {type(model).__name__} has an encoder; leave it out")
        if arguments.compiled:
            length = max(len(prompt.tokens) for prompt in self.prompts) + arguments.max_new_tokens
            self.ways += ways.compiled(model, self.ways, length, lambda name: ways.accelerated(model, tokenizer, name, **chosen))
        if not self.ways:
            raise ways.none_runs(self.left_out)
        if any(size > 1 for size in self.sizes) and not arguments.skip_own:
            self.left_out["Transformers' own methods in batches"] = "they take one prompt at a time"

    def measure(self) -> Document:
        """Run every task at every batch size; return what was found, with what is needed to repeat it.

        Interrupted, it describes what was finished until then: whole tasks, and the whole rounds of the last one.
        """
        tie = results.near_tie(self.model)
        tasks_here = list(dict.fromkeys(prompt.task for prompt in self.prompts))
        parts = [(task, size) for task in tasks_here for size in self.sizes]
        total = (self.arguments.rounds + 1) * len(tasks_here) * sum(len(self._ways(size)) for size in self.sizes)
        with progress("measuring", total) as tick:
            finished, interrupted = until_interrupted(self._tasks(parts, tie, tick))
        self.left_out |= {f"{task}, batch {size}": "interrupted" for task, size in parts[len(finished) :]}
        rows = [row for found, _, _ in finished for row in found]
        described = [row for (_, size), (_, about, _) in zip(parts, finished, strict=False) if size == self.sizes[0] for row in about]
        alone = [one for _, _, each in finished for one in each]
        asked = {key: getattr(self.arguments, key) for key in ("verifier", "allow_lossy", "max_new_tokens", "rounds", "limit")}
        return {
            "rows": rows,
            "by_copy_ratio": results.bin_rows(self._ways(1), alone, tie),
            "pairs": results.pair_rows(rows, self._pairs()),
            "prompts": described,
            "left_out": self.left_out,
            "interrupted": interrupted,
            "techniques": self._techniques(),
            "near_tie_below": tie,
            "dtype": dtype_of(self.model),
            "method": method(self.arguments.rounds),
            **asked,
            **results.circumstances({row["distribution"]: row["version"] for row in self._techniques()}),
        }

    def _pairs(self) -> list[tuple[str, str]]:
        """Return what is compared with each other: what was asked for, and compiled ways with compiled plain generation."""
        asked: list[tuple[str, str]] = [(one, other) for one, other in self.arguments.pair]
        return asked + [(way.name, ways.COMPILED) for way in self.ways if way.cache is not None and way.family == "accelplug"]

    def _ways(self, size: int) -> list[ways.Way]:
        own = ways.own(self.model, self.assistant, self.arguments.early_exit) if size == 1 and not self.arguments.skip_own else []
        return [ways.plain(), *self.ways, *own]

    def _tasks(self, parts: Sequence[tuple[str, int]], tie: float, tick: Callable[[], None]) -> Iterator[Found]:
        for task, size in parts:
            yield self._task(task, size, tie, tick)
            if self.cut_short:
                raise KeyboardInterrupt  # which was put off until the rounds before it were described

    def _task(self, task: str, size: int, tie: float, tick: Callable[[], None]) -> Found:
        here = [prompt for prompt in self.prompts if prompt.task == task]
        batches = ways.batches_of(here, size, self.model, self.arguments.max_new_tokens, ways.pad_id(self.tokenizer, self.model))
        prompts = [prompt for batch in batches for prompt in batch.prompts]
        compared = self._ways(size)
        each = self._rounds(f"{task}, batch {size}", compared, batches, tick)
        compared, taken = self._without_failed(task, compared, [joined(parts) for parts in each])
        margins = results.margins_of(self.model, prompts, taken[0])
        rows = results.task_rows(compared, taken, prompts, margins, tie)
        alone: list[results.Alone] = list(zip(prompts, zip(*each, strict=True), margins, strict=True)) if size == 1 and not self.cut_short else []
        return [{"batch_size": size, **row} for row in rows], results.prompt_rows(prompts, taken[0], margins, tie), alone

    def _rounds(self, what: str, compared: list[ways.Way], batches: Sequence[ways.Batch], tick: Callable[[], None]) -> list[list[Taken]]:
        """Return what every way did with each batch, in all rounds or in those before an interruption."""
        rounds = self.arguments.rounds
        try:
            return interleaved(self.model, compared, batches, rounds, tick)
        except CutShortError as exc:
            self.cut_short = True
            self.left_out[what] = f"interrupted after {len(exc.taken[0][0].seconds)} of {rounds} rounds, which count by task and not by copy ratio"
            return exc.taken

    def _without_failed(self, task: str, compared: list[ways.Way], taken: list[Taken]) -> tuple[list[ways.Way], list[Taken]]:
        """Return the ways that ran with what they did, and put the others down as left out, by their reasons."""
        reasons: dict[str, list[str]] = {}
        for way, own in zip(compared, taken, strict=True):
            if own.failed:
                reasons.setdefault(own.failed, []).append(way.name)
        self.left_out |= {f"{', '.join(names)} on {task}": why for why, names in reasons.items()}
        ran = [(way, own) for way, own in zip(compared, taken, strict=True) if not own.failed]
        return [way for way, _ in ran], [own for _, own in ran]

    def _techniques(self) -> list[Document]:
        sessions = [way.session for way in self.ways if way.session is not None]
        built = {str(technique): technique for session in sessions for technique in session.selection}
        return [{"kind": t.kind, "name": t.name, "distribution": t.owner.distribution, "version": t.owner.version} for t in built.values()]


def prompts_for(model: Any, tokenizer: Any, texts: Sequence[tasks.Text], arguments: Namespace) -> tuple[list[tasks.Prompt], dict[str, str]]:
    """Return the prompts that fit the model, by task, and what was left out: task -> why.

    :raises OptionError: none fits.
    """
    new, limit = arguments.max_new_tokens, arguments.limit
    most = prompt_room(model, new)
    found, left_out = tasks.encoded(texts, tokenizer, most, limit)
    wanted = [task for task in tasks.SCRIPTED if not arguments.task or task in arguments.task]
    ordinary = tasks.ordinary_tokens(tokenizer, model.config.get_text_config(decoder=True).vocab_size, ways.eos_ids(model))
    code = tasks.tokens_of_code(tokenizer, ordinary) if any(task in tasks.EDITED for task in wanted) else []
    scripted, missing = tasks.scripted(wanted, ordinary, code, new, most + new, limit)
    if not found and not scripted:
        raise OptionError(
            f"no prompt fits the model, which takes prompts of {max(most, 0)} tokens with --max-new-tokens {new}; ask for fewer"
        )
    return found + scripted, left_out | missing


def method(rounds: int) -> str:
    """Say how the figures were taken."""
    return (
        f"medians of {rounds} rounds after one warm-up, all ways in turns; x plain is the median of the rounds' own ratios with a bootstrap "
        "interval; CPU, worst: the same of the process's CPU time, and of the prompt or batch where it is least; tokens and time per forward pass "
        "of a row and of a batch; Transformers' own is the best of its settings on each task"
    )


COMMAND: Final = Command("bench", "measure techniques beside plain generation, by task", configure, collect, show, results.status)
