"""``accelplug run``: generate once through techniques, and with ``--compare`` show what they were worth."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from accelplug.cli import report
from accelplug.cli.arguments import add_engine, add_verifier, at_least, temperature
from accelplug.cli.command import Command, Document, table
from accelplug.cli.job import Job, Measurement
from accelplug.cli.plugins import offered_here
from accelplug.cli.workload import job_of

if TYPE_CHECKING:
    from rich.console import Console


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments of a run."""
    parser.add_argument("--host", choices=("transformers", "vllm"), default="transformers", help="the engine (default: %(default)s)")
    parser.add_argument("--model", metavar="DIR_OR_HUB_ID", help="default: the small model of accelplug-testbed")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="default: a code edit that the small model was not trained on")
    prompt.add_argument("--prompt-file", metavar="FILE", help="read the prompt from a UTF-8 file")
    parser.add_argument(
        "--drafter", metavar="SPEC", help="e.g. 'prompt_lookup(num_tokens=6)' (default: the configuration's, else prompt_lookup)"
    )
    add_verifier(parser, default=None)
    parser.add_argument(
        "--grammar", metavar="FILE_OR_JSON", help="what the answer must be: a file with a JSON Schema, or e.g. '{\"regex\": \"[a-z]+\"}' as attach takes it"
    )
    parser.add_argument("--config", metavar="FILE", help="a configuration that 'accelplug tune' wrote; what is given here overrules it")
    parser.add_argument("--max-new-tokens", type=at_least(1, int), metavar="N", default=256, help="(default: %(default)s)")
    parser.add_argument("--temperature", type=temperature, metavar="T", default=0.0, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--seed", type=at_least(0, int, 2**63 - 1), metavar="S", default=0, help="of sampling (default: %(default)s)")
    parser.add_argument("--compare", action="store_true", help="also generate without techniques, and compare")
    parser.add_argument("--rounds", type=at_least(1, int), metavar="N", default=3, help="timed rounds (default: %(default)s)")
    add_engine(parser)


def collect(arguments: Namespace) -> Document:
    """Run the job on its host and describe what happened."""
    job = job_of(arguments)
    for owner, exc in offered_here().broken.items():
        print(f"accelplug: warning: plugin {owner.plugin!r} ({owner}) failed to load: {exc}; 'accelplug plugins' lists it", file=sys.stderr)
    with _progress(f"generating on {job.host} with {job.drafter} and {job.verifier}"):
        return report.document(job, _measure(job))


def _measure(job: Job) -> Measurement:
    if job.host == "vllm":
        from accelplug.cli import on_vllm

        return on_vllm.measure(job)
    from accelplug.cli import on_transformers

    return on_transformers.measure(job)


@contextmanager
def _progress(text: str) -> Iterator[None]:
    from rich.console import Console

    with Console(file=sys.stderr, highlight=False).status(text):
        yield


def show(document: Document, console: Console) -> None:
    """Print the generated text, then what it took."""
    console.print(document["text"], markup=False, soft_wrap=True)
    figures = table("", "plain", "accelerated")
    figures.add_row("tokens/s", _number(document["plain_tokens_per_s"]), _number(document["tokens_per_s"]))
    figures.add_row("ratio", "1" if document["ratio"] else "-", _number(document["ratio"]))
    figures.add_row("tokens per forward", "1", f"{document['tokens_per_forward']:.2f}")
    figures.add_row("drafted, accepted", "-", f"{document['drafted']}, {document['accepted']} ({document['acceptance']:.0%})")
    console.print(figures)
    for line in _lines(document):
        console.print(line, markup=False, soft_wrap=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _lines(document: Document) -> list[str]:
    techniques = [f"{row['kind']} {row['spec']} by {row['distribution']} {row['version']}".strip() for row in document["techniques"]]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lossy = [f"lossy accepts: {document['lossy_accepts']}"] if document["lossy_accepts"] else []
    return [
        f"output: {report.verdict(document)}",
        *lossy,
        *_grammar(document["grammar"]),
        f"by: {'; '.join(techniques)}",
        f"on: {document['host']}, {document['model']}, {document['dtype']}; {versions}",
        f"method: {document['method']}",
    ]


def _grammar(found: Document | None) -> list[str]:
    """Say what became of a grammar."""
    if found is None:
        return []
    enforced, checked = (", ".join(found[key]) or "nothing" for key in ("enforced", "checked"))
    return [
        f"grammar: by {found['engine']}; the mask enforces {enforced}; the finished text is checked for {checked}",
        f"final check: {found['problem'] or 'passed'}",
    ]


COMMAND: Final = Command("run", "generate through techniques, and compare with plain generation", configure, collect, show, report.status)
