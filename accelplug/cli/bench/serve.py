"""``accelplug bench serve``: time to the first token, between tokens, and throughput of running servers, side by side."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from accelplug.cli.arguments import at_least
from accelplug.cli.bench import results, tasks
from accelplug.cli.bench.client import Answer, Server, accepted
from accelplug.cli.bench.figures import paired_ratio
from accelplug.cli.bench.progress import progress, until_interrupted
from accelplug.cli.command import Command, Document, table

if TYPE_CHECKING:
    from rich.console import Console

CONCURRENCY: Final = (1, 8, 32)


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("url", nargs="+", metavar="URL", help="an OpenAI-compatible server; of several, the first is what the others are compared with")
    parser.add_argument("--served-model", metavar="NAME", help="the model to ask (default: the first that each server lists)")
    parser.add_argument("--prompts", metavar="FILE", help="JSON lines with 'prompt', or Spec-Bench's (default: built-in tasks)")
    parser.add_argument("--task", action="append", metavar="NAME", help="only this task; may be repeated")
    parser.add_argument("--limit", type=at_least(1, int), metavar="N", default=4, help="prompts per task (default: %(default)s)")
    parser.add_argument(
        "--concurrency", action="append", type=at_least(1, int), metavar="N", help="requests at a time; may be repeated (default: 1, 8, 32)"
    )
    parser.add_argument("--max-new-tokens", type=at_least(1, int), metavar="N", default=128, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=at_least(1, int), metavar="N", default=3, help="timed rounds (default: %(default)s)")


def add_to(parser: ArgumentParser) -> None:
    """Add ``serve`` to the parser of ``bench``."""
    sub = parser.add_subparsers(metavar="[serve URL ...]").add_parser(COMMAND.name, help=COMMAND.summary, description=COMMAND.summary, allow_abbrev=False)
    sub.add_argument("--json", action="store_true", default=SUPPRESS, help="print one JSON document on stdout and nothing else there")
    sub.set_defaults(command=COMMAND, parser=sub)
    configure(sub)


def collect(arguments: Namespace) -> Document:
    """Ask every server all prompts at every concurrency, in turns, and describe."""
    texts = list(prompts(tasks.texts_of(arguments.prompts, "--prompts FILE"), arguments.task, arguments.limit))
    servers = [Server(url, arguments.served_model) for url in arguments.url]
    levels = sorted(set(arguments.concurrency or CONCURRENCY))
    asked = {level: list(islice(cycle(texts), max(len(texts), level))) for level in levels}
    total = (arguments.rounds + 1) * len(servers) * sum(map(len, asked.values()))
    with progress("asking", total) as tick:
        finished, interrupted = until_interrupted(compare(servers, asked[level], level, arguments, tick) for level in levels)
    return {
        "rows": [row for rows in finished for row in rows],
        "interrupted": interrupted,
        "prompts": len(texts),
        "tasks": list(dict.fromkeys(text.task for text in texts)),
        "max_new_tokens": arguments.max_new_tokens,
        "rounds": arguments.rounds,
        **results.circumstances({"openai": results.version_of("openai")}),
    }


def prompts(texts: Sequence[tasks.Text], wanted: Sequence[str] | None, limit: int) -> Iterator[tasks.Text]:
    """Yield the first `limit` texts of each task; scripted tasks need the model at hand and are none of a server's."""
    chosen = tasks.chosen(texts, wanted, scripted=False)
    for task in dict.fromkeys(text.task for text in chosen):
        yield from islice((text for text in chosen if text.task == task), limit)


def compare(servers: Sequence[Server], texts: Sequence[tasks.Text], level: int, arguments: Namespace, tick: Callable[[], None]) -> list[Document]:
    """Return a row for each server: rounds in turns after one warm-up, whose first server turns by one each round."""
    rounds: list[list[tuple[float, list[Answer]]]] = [[] for _ in servers]
    before = []
    for number in range(arguments.rounds + 1):
        if number == 1:
            before = [server.counters() for server in servers]
        for place in range(len(servers)):
            own = (place + number) % len(servers)
            measured = servers[own].run(texts, level, arguments.max_new_tokens, tick)
            if number:
                rounds[own].append(measured)
    drafts = [accepted(old, server.counters()) for old, server in zip(before, servers, strict=True)]
    found = [row(server, level, taken, counted) for server, taken, counted in zip(servers, rounds, drafts, strict=True)]
    expected = [answer.text for answer in rounds[0][0][1]]
    for described, taken in zip(found, rounds, strict=True):
        described["x first"] = paired_ratio(found[0]["seconds per token"], described["seconds per token"]).as_dict()
        described["same text"] = sum(answer.text == text for answer, text in zip(taken[0][1], expected, strict=True))
    return found


def row(server: Server, level: int, taken: Sequence[tuple[float, list[Answer]]], drafts: dict[str, float] | None) -> Document:
    """Describe one server at one concurrency: medians over rounds, with every round's own figures."""
    tokens = [sum(answer.tokens for answer in answers) for _, answers in taken]
    return {
        "url": server.url,
        "model": server.model,
        "concurrency": level,
        "requests": len(taken[0][1]),
        "tokens_per_s": median(count / seconds for count, (seconds, _) in zip(tokens, taken, strict=True)),
        "ttft_ms": quantiles([[answer.first for answer in answers] for _, answers in taken]),
        "itl_ms": quantiles([[gap for answer in answers for gap in answer.gaps] for _, answers in taken]),
        "drafts": drafts,
        "tokens": tokens,
        "seconds per token": [seconds / count for count, (seconds, _) in zip(tokens, taken, strict=True)],
    }


def quantiles(rounds: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """Return the medians over rounds of each round's p50 and p99, in milliseconds; None where there is nothing to measure."""
    import numpy as np

    found = [np.percentile(seconds, (50, 99)) * 1000 for seconds in rounds if seconds]
    return {"p50": None, "p99": None} if not found else {name: float(median(pair[i] for pair in found)) for i, name in enumerate(("p50", "p99"))}


def show(document: Document, console: Console) -> None:
    """Print a row for each concurrency and server."""
    from rich.markup import escape

    names = ("at a time", "server", "tokens/s", "x first (95 %)", "first token p50, p99", "per token p50, p99", "accepted", "same text")
    found = table(*names)
    numbers = {url: str(number) for number, url in enumerate(dict.fromkeys(own["url"] for own in document["rows"]), 1)}
    before: Any = None
    for own in document["rows"]:
        if before not in {None, own["concurrency"]}:
            found.add_section()
        level = "" if own["concurrency"] == before else str(own["concurrency"])
        found.add_row(*map(escape, (level, numbers[own["url"]], *cells(own))))
        before = own["concurrency"]
    console.print(found)
    for url, number in numbers.items():  # here, since in a column of a narrow terminal nobody could read them
        console.print(f"server {number}: {url}", markup=False, soft_wrap=True)
    asked = f"{document['prompts']} prompts ({', '.join(document['tasks'])}), {document['max_new_tokens']} tokens at most, greedy; milliseconds"
    if document["interrupted"]:
        console.print("interrupted: higher concurrencies were not measured")
    console.print(f"{asked}; medians of {document['rounds']} rounds after one warm-up, servers in turns", markup=False, soft_wrap=True)


def cells(own: Document) -> tuple[str, ...]:
    """Write one row's figures, but for the server."""
    ratio, drafts = own["x first"], own["drafts"]
    kept = "-" if drafts is None else f"{drafts['accepted'] / drafts['drafted']:.0%} of {drafts['drafted']:.0f}"
    speed = f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"
    return f"{own['tokens_per_s']:.1f}", speed, both(own["ttft_ms"]), both(own["itl_ms"]), kept, f"{own['same text']} of {own['requests']}"


def both(found: dict[str, float | None]) -> str:
    """Write two percentiles."""
    return "-" if found["p50"] is None or found["p99"] is None else f"{found['p50']:.1f}, {found['p99']:.1f}"


COMMAND: Final = Command("serve", "measure running servers: first token, time per token, throughput", configure, collect, show, results.interruption)
