"""``accelplug schema``: what becomes of a JSON Schema under a mask, or of every schema in a file of instances."""

from __future__ import annotations

import json
import random
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from accelplug._errors import AccelplugError, ConstraintError, HostError, OptionError
from accelplug.cli.arguments import at_least
from accelplug.cli.command import Command, Document, table
from accelplug.cli.plugins import offered_here
from accelplug.hooks import BuildContext, CompiledGrammar, CompileLimits, GrammarEngine, GrammarSpec, Technique, Vocabulary

if TYPE_CHECKING:
    from rich.console import Console

TEKKEN: Final = "tekken"
BYTES: Final = "bytes"
_SPACINGS: Final[dict[Literal["spaced", "compact"], tuple[str, str]]] = {"spaced": (", ", ": "), "compact": (",", ":")}


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", help="a schema (JSON), or a file of schemas with instances, one a line (.jsonl)")
    parser.add_argument("--engine", default="auto", help="a registered grammar engine: auto (default), llguidance, xgrammar, outlines")
    parser.add_argument(
        "--tokenizer", help="tekken (131,072 tokens, from mistral_common), bytes, or a folder; default tekken where installed"
    )
    parser.add_argument("--strict", action="store_true", help="refuse what the mask does not enforce")
    parser.add_argument("--format", choices=("assert", "annotate"), default="assert", help="whether the keyword format constrains")
    parser.add_argument("--order", choices=("declared", "any"), default="declared", help="of an object's properties")
    parser.add_argument(
        "--walks", type=at_least(0, int), default=0, metavar="N", help="of a file: also draw N texts by chance under each mask, and check them"
    )
    parser.add_argument("--forced", action="store_true", help="of a file: also say which share of the valid instances' tokens the grammars force")
    parser.add_argument("--seconds", type=at_least(0.001, float), default=30.0, metavar="S", help="most time for compiling one schema (default: %(default)s)")


def collect(given: Namespace) -> Document:
    """Look at one schema, or judge a file."""
    path = Path(given.file).expanduser()
    text = _read(path)
    if path.suffix != ".jsonl" and (given.walks or given.forced):
        raise OptionError(f"--walks and --forced are for a file of schemas with instances, a .jsonl, and {given.file} is one schema; leave them out")
    vocabulary = _vocabulary(given.tokenizer)
    engine = offered_here().build("grammar", given.engine, _context(vocabulary))
    limits = CompileLimits(given.seconds)
    _load(engine.instance, vocabulary)
    if path.suffix == ".jsonl":
        return {"lines": _judge(text.split("\n"), engine.instance, vocabulary, limits, given)}
    return _one(text, engine, vocabulary, limits, given)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise OptionError(f"cannot read {path} ({type(exc).__name__}); name a JSON Schema or a .jsonl file") from exc


def _load(engine: GrammarEngine, vocabulary: Vocabulary) -> None:
    """Have an engine load what it needs for the first grammar of a vocabulary, which is none of the time that a schema takes."""
    with suppress(AccelplugError):  # the schemas will say so
        engine.compile(GrammarSpec("json_schema", '{"type": "null"}'), vocabulary, CompileLimits())


def _context(vocabulary: Vocabulary) -> BuildContext:
    """Describe a model of which nothing but the tokens is known."""
    import torch

    return BuildContext(
        host="transformers", vocab_size=len(vocabulary), eos_token_ids=vocabulary.eos_token_ids, dtype=torch.float32,
        device=torch.device("cpu"), hidden_size=0, max_length=1 << 30, num_slots=None,
        vocabulary=lambda: vocabulary.tokens, embeddings=_no_weights, output_head=_no_weights,
    )  # fmt: skip


def _no_weights() -> NoReturn:
    raise HostError("'accelplug schema' loads no model; name an engine that needs no matrices of one")


def _options(given: Namespace) -> dict[str, Any]:
    """Return what the command line says of every schema, as GrammarSpec takes it."""
    return {"format": given.format, "strict": given.strict, "order": given.order}


def _one(text: str, engine: Technique, vocabulary: Vocabulary, limits: CompileLimits, given: Namespace) -> Document:
    from accelplug.constrained.walking import example

    began = time.perf_counter()
    spec = GrammarSpec("json_schema", text, **_options(given))
    try:
        compiled: CompiledGrammar = engine.call(lambda wanted: engine.instance.compile(wanted, vocabulary, limits), spec)
    except ConstraintError as exc:
        refused = list(getattr(exc.statement, "refused", ()))
        return {"engine": None, "enforced": [], "checked": [], "refused": refused, "reason": str(exc), "compile_ms": None, "example": None}
    seconds = time.perf_counter() - began
    said = compiled.statement
    listed = {"engine": said.engine, "enforced": list(said.enforced), "checked": list(said.checked), "refused": list(said.refused)}
    return {**listed, "reason": None, "compile_ms": round(seconds * 1e3, 2), "example": example(compiled, vocabulary)}


def _judge(lines: Iterable[str], engine: GrammarEngine, vocabulary: Vocabulary, limits: CompileLimits, given: Namespace) -> list[Document]:
    from accelplug.constrained.judging import judged, read_rows, summary

    rows, found, walks = list(read_rows(lines)), [], given.walks
    if not rows:
        raise OptionError(f'{given.file} holds no schemas; write lines such as {{"name": ..., "schema": ..., "tests": [...]}} into it')
    for row in _progress(rows):
        line = judged(engine, row, vocabulary, limits, _options(given))
        if line["outcome"] != "refused":
            line |= _walks(engine, row, line, vocabulary, limits, given) if walks else {}
            line |= _forced(engine, row, line, vocabulary, limits, given) if given.forced else {}
        found.append(line)
    last = summary(found)
    for name in _SPACINGS if given.forced else ():
        forced, tokens = (sum(line.get(f"{name}_{kind}", 0) for line in found) for kind in ("forced", "tokens"))
        last[f"forced_share_{name}"] = round(forced / max(1, tokens), 4)
    if walks:
        done, failed, stuck = (sum(line.get(what, 0) for line in found) for what in ("walks", "walks_failed", "walks_stuck"))
        last |= {"walks": done, "walks_failed": failed, "walks_stuck": stuck, "walks_failed_share": round(failed / max(1, done), 5)}
    return [*found, {"summary": last}]


def _walks(engine: GrammarEngine, row: Document, line: Document, vocabulary: Vocabulary, limits: CompileLimits, given: Namespace) -> Document:
    from accelplug.constrained.walking import walk

    compiled = engine.compile(_spec(row, line, given), vocabulary, limits)
    chance = random.Random(0)
    drawn = [walk(compiled, vocabulary, chance) for _ in range(given.walks)]
    texts = [text for text, came in drawn if came == "ended"]
    failed = [text for text in texts if compiled.check(text) is not None]
    stuck = [text for text, came in drawn if came == "stuck"]
    counts = {"walks": len(texts), "walks_failed": len(failed), "walks_stuck": len(stuck)}
    return counts | {f"walk_{what}": some[0][:200] for what, some in (("failed", failed), ("stuck", stuck)) if some}


def _spec(row: Document, line: Document, given: Namespace, **options: Any) -> GrammarSpec:
    """Return a row's schema as it was judged, where `options` do not say otherwise."""
    return GrammarSpec("json_schema", json.dumps(row["schema"], ensure_ascii=False), **{**_options(given), "order": line["order"], **options})


def _forced(engine: GrammarEngine, row: Document, line: Document, vocabulary: Vocabulary, limits: CompileLimits, given: Namespace) -> Document:
    """Count the forced tokens of the valid instances, written with blanks as `json.dumps` does, and without."""
    from accelplug.constrained.walking import forced_of

    found: Document = {}
    for name, separators in _SPACINGS.items():
        compiled = engine.compile(_spec(row, line, given, whitespace=name), vocabulary, limits)
        texts = [json.dumps(test["data"], ensure_ascii=False, separators=separators) for test in row["tests"] if test["valid"]]
        counts = [forced_of(compiled.matcher(), text, vocabulary) for text in texts]
        found |= {f"{name}_forced": sum(forced for forced, _ in counts), f"{name}_tokens": sum(tokens for _, tokens in counts)}
    return found


def _progress(rows: list[Document]) -> Iterator[Document]:
    """Go through rows, with a bar on stderr where somebody watches."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return iter(track(rows, "judging", console=console, disable=not console.is_terminal, transient=True))


def _vocabulary(name: str | None) -> Vocabulary:
    from importlib.util import find_spec

    from accelplug.constrained.probes import bytes_only

    if name == BYTES or (name is None and find_spec("mistral_common") is None):
        return bytes_only()
    if name in {None, TEKKEN}:
        from accelplug.constrained.tekken import tekken

        return tekken()
    from transformers import AutoTokenizer

    from accelplug.hosts.vocabulary import vocabulary_of

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError) as exc:
        raise OptionError(f"cannot load the tokenizer {name!r} ({type(exc).__name__}); pass tekken, bytes, or a folder that holds one") from exc
    return vocabulary_of(tokenizer, len(tokenizer), () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,))


def lines_of(document: Document) -> list[Document] | None:
    """Return the lines of a judged file, None for one schema."""
    lines: list[Document] | None = document.get("lines")
    return lines


def show(document: Document, console: Console) -> None:
    """Print a schema's statement, or a table of outcomes."""
    if "lines" not in document:
        _show_one(document, console)
        return
    from rich.markup import escape

    *rows, last = document["lines"]
    outcomes = table("schema", "outcome", "engine", "order", "checked", "compile ms")
    for row in rows:
        if row["outcome"] != "right_by_mask":
            cells = (row["name"], row["outcome"], row["engine"], row["order"], str(len(row["checked"])), f"{row['compile_ms']:.1f}")
            outcomes.add_row(*map(escape, cells))
    console.print(outcomes)
    console.print(", ".join(f"{name} {value}" for name, value in last["summary"].items()), soft_wrap=True)


def _show_one(document: Document, console: Console) -> None:
    for name in ("engine", "reason", "compile_ms", "example"):
        if document[name] is not None:
            console.print(f"{name}: {document[name]}", markup=False, soft_wrap=True)
    for name in ("enforced", "checked", "refused"):
        console.print(f"{name}: {', '.join(document[name]) or '-'}", markup=False, soft_wrap=True)


def status(document: Document) -> int:
    """Return 1 for a refused schema, or a wrongly judged one."""
    if "lines" in document:
        return 1 if document["lines"][-1]["summary"]["wrong"] else 0
    return 1 if document["reason"] else 0


COMMAND: Final = Command(
    "schema", "say what a mask enforces of a JSON Schema, or judge a file of schemas", configure, collect, show, status, lines_of
)
