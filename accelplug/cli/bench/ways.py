"""The ways of generating that a benchmark compares: plain, through techniques, and Transformers' own methods."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, Final, Literal

from accelplug._errors import AccelplugError, OptionError
from accelplug.cli.bench.scripts import Scripted
from accelplug.cli.bench.tasks import Prompt
from accelplug.cli.on_transformers import before_the_answer, decoding
from accelplug.cli.plugins import offered_here
from accelplug.hooks import Entry
from accelplug.hooks.options import fields_of

if TYPE_CHECKING:
    from accelplug.hosts.hf import Session

OWN_GRID: Final = [(tokens, ngram) for tokens in (4, 8, 12) for ngram in (2, 3)]
"""Transformers' options that are tried: prompt_lookup_num_tokens and max_matching_ngram_size."""
OWN_TOKENS: Final = (4, 8)
"""num_assistant_tokens that are tried of early exit and of an assistant."""
PLAIN: Final = "plain"
COMPILED: Final = "plain, compiled"


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts that are generated together, as ``generate()`` takes them; rows are padded on the left, an encoder's on the right.

    :param before: how many tokens stand before each row's answer: the prompts, padded, or a decoder's start token.
    :param arguments: input_ids and attention_mask, [rows, length], and the rest.
    """

    prompts: list[Prompt]
    before: int
    arguments: dict[str, Any]


@dataclass(slots=True)
class Way:
    """One way of generating. `session` is attached while it runs, `arguments` go to ``generate()``, with a new `cache` for each call.

    `settings` are put into the generation config of `assistant` meanwhile: Transformers reads some there alone.
    """

    name: str
    family: Literal["plain", "compiled", "accelplug", "transformers"]
    arguments: dict[str, Any] = field(default_factory=dict)
    session: Session | None = None
    cache: Callable[[], Any] | None = None
    assistant: Any = None
    settings: dict[str, Any] = field(default_factory=dict)

    def run(self, model: Any, batches: Iterable[Batch]) -> list[tuple[list[list[int]], float, float]]:
        """Generate every batch; return each one's rows, prompts and padding included, the seconds that it took, and the process's CPU seconds."""
        generated = []
        with self.session or nullcontext(), _settled(self.assistant, self.settings):
            for batch in batches:
                began, cpu_began = time.perf_counter(), time.process_time()
                cache = {} if self.cache is None else {"past_key_values": self.cache()}
                rows = model.generate(**batch.arguments, **self.arguments, **cache).tolist()
                generated.append((rows, time.perf_counter() - began, time.process_time() - cpu_began))
        return generated

    def counted(self) -> tuple[int, int]:
        """Return how many tokens were drafted and accepted so far."""
        return (0, 0) if self.session is None else (self.session.stats.drafted, self.session.stats.accepted)


def batches_of(prompts: Sequence[Prompt], size: int, model: Any, new_tokens: int, pad: int) -> list[Batch]:
    """Group a task's prompts; where the last batch is not full, they come again from the first one."""
    rows = islice(cycle(prompts), -(-len(prompts) // size) * size)
    return [_batch(list(group), model, new_tokens, pad) for group in zip(*[rows] * size, strict=True)]


def _batch(prompts: list[Prompt], model: Any, new_tokens: int, pad: int) -> Batch:
    import torch

    length = max(len(prompt.tokens) for prompt in prompts)
    ids = torch.full((len(prompts), length), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        own = slice(len(prompt.tokens)) if model.config.is_encoder_decoder else slice(length - len(prompt.tokens), None)
        ids[row, own] = torch.tensor(prompt.tokens)
        mask[row, own] = 1
    before = before_the_answer(model, length)
    arguments: dict[str, Any] = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device), "pad_token_id": pad}
    scripts = [prompt.script for prompt in prompts if prompt.script is not None]
    if scripts:
        arguments["logits_processor"] = [Scripted(before, torch.tensor(scripts, device=model.device))]
    return Batch(prompts, before, {**arguments, "max_new_tokens": new_tokens, **decoding(0.0)})


def plain() -> Way:
    """Return plain generation."""
    return Way(PLAIN, "plain")


@contextmanager
def _settled(assistant: Any, settings: dict[str, Any]) -> Iterator[None]:
    """Put settings into a model's generation config for a while."""
    config = None if assistant is None else assistant.generation_config
    before = {name: getattr(config, name) for name in settings}
    for name, value in settings.items():
        setattr(config, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def own(model: Any, assistant: Any = None, exits: Sequence[int] = ()) -> list[Way]:
    """Return Transformers' own methods, over a small grid of their options; they take one prompt at a time.

    Prompt lookup; a second model, where one is given; early exits, each behind so many layers, which pay on models trained for them.
    """
    found = [
        Way(f"transformers {tokens}/{ngram}", "transformers", {"prompt_lookup_num_tokens": tokens, "max_matching_ngram_size": ngram})
        for tokens, ngram in OWN_GRID
    ]
    for layers in exits:
        found += _assisted(f"early exit {layers}", {"assistant_early_exit": layers}, model)
    if assistant is not None:
        found += _assisted("assistant", {"assistant_model": assistant}, assistant)
    return found


def _assisted(name: str, arguments: dict[str, Any], assistant: Any) -> list[Way]:
    steady = {"num_assistant_tokens_schedule": "constant"}  # a schedule would carry what one prompt taught over to the next
    return [
        Way(f"transformers {name}, {tokens}", "transformers", arguments, assistant=assistant, settings={"num_assistant_tokens": tokens, **steady})
        for tokens in OWN_TOKENS
    ]


def accelerated(model: Any, tokenizer: Any, drafter: str, verifier: str, *, allow_lossy: bool) -> Way:
    """Return a way through techniques that has generated once, so that what cannot run is refused here.

    :raises AccelplugError: the selection is unknown, misconfigured, or cannot run on this model.
    """
    import torch

    from accelplug.hosts.hf import attach

    session = attach(model, drafter=drafter, verifier=verifier, tokenizer=tokenizer, allow_lossy=allow_lossy)
    ids = torch.full((1, 4), next(token for token in range(9) if token not in eos_ids(model)), device=model.device)
    with session:
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, pad_token_id=0, **decoding(0.0))
    return Way(drafter, "accelplug", session=session)


def compiled(model: Any, ways: Sequence[Way], length: int, remade: Callable[[str], Way]) -> list[Way]:
    """Return plain generation and the drafters of `ways` once more, over a static cache, with the forward pass compiled.

    Plain generation needs one graph, drafting two, one for a single token and one for steps of every other width: the number of tokens
    becomes a variable as soon as it changes. A graph for each width would take minutes apiece.

    :param length: of the cache, one for all prompts, so that they share their graphs.
    :param remade: makes a drafter's way anew, with statistics and costs of its own.
    """
    from transformers import CompileConfig, StaticCache

    config = CompileConfig()
    config._compile_all_devices = True
    found = [Way(COMPILED, "compiled")] + [remade(way.name) for way in ways if way.family == "accelplug"]
    for way in found:
        way.name = way.name if way.family == "compiled" else f"{way.name}, compiled"
        way.arguments = {"compile_config": config}
        way.cache = lambda: StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=length)
    return found


def eos_ids(model: Any) -> list[int]:
    """Return the ids that end an output."""
    from accelplug.hosts.hf.context import build_context

    return list(build_context(model, None).eos_token_ids)


def pad_id(tokenizer: Any, model: Any) -> int:
    """Return the id that shorter rows are padded with; it is masked, so any will do."""
    known = [tokenizer.pad_token_id, *eos_ids(model)]
    return next((int(token) for token in known if token is not None), 0)


def asked(model: Any, tokenizer: Any, drafters: Sequence[str] | None, verifier: str, *, allow_lossy: bool) -> tuple[list[Way], dict[str, str]]:
    """Return a way for each drafter that was named, each once, or where none was for every installed one that runs here; and why others do not."""
    if not drafters:
        return installed(model, tokenizer, verifier, allow_lossy=allow_lossy)
    return [accelerated(model, tokenizer, drafter, verifier, allow_lossy=allow_lossy) for drafter in dict.fromkeys(drafters)], {}


def none_runs(left_out: Mapping[str, str]) -> OptionError:
    """Return the error for a model on which no installed drafter runs."""
    return OptionError(f"no installed drafter runs here ({left_out}); name one with --drafter")


def installed(model: Any, tokenizer: Any, verifier: str, *, allow_lossy: bool) -> tuple[list[Way], dict[str, str]]:
    """Return a way for every installed drafter that runs here without further arguments, and why others do not: spec -> reason."""
    ways, left_out = [], {}
    for spec, entry in sorted(((_spelled(entry), entry) for entry in offered_here() if entry.kind == "drafter"), key=lambda pair: pair[0]):
        try:
            fields = fields_of(entry.resolve())
            if missing := [name for name, field in fields.items() if field.default is field.empty]:
                left_out[spec] = f"needs {', '.join(missing)}"
                continue
            ways.append(accelerated(model, tokenizer, spec, verifier, allow_lossy=allow_lossy))
        except (AccelplugError, TypeError, ValueError) as exc:
            left_out[spec] = " ".join(str(exc).split())
    return ways, left_out


def _spelled(entry: Entry) -> str:
    """Return the name, with its distribution where another one offers it too."""
    is_alone = len(offered_here().entries[entry.kind, entry.name]) == 1
    return entry.name if is_alone else f"{entry.owner.distribution}:{entry.name}"
