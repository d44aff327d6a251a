"""Which model and which prompt a run uses, when the user names them and when not."""

from __future__ import annotations

import json
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from accelplug._config import load_config
from accelplug._errors import AccelplugError, HostError, OptionError
from accelplug.cli.job import Job
from accelplug.cli.plugins import offered_here
from accelplug.hooks.masking import KINDS, GrammarSpec
from accelplug.hooks.options import check_options
from accelplug.hooks.spelling import parse_spec

EXAMPLE: Final = '{"regex": "[a-z]+"}'
"""A grammar as it is written out."""


def job_of(arguments: Namespace) -> Job:
    """Check everything that can be checked before weights load, and return the job.

    :raises AccelplugError: an unknown technique, a wrong option, no such model, or no prompt.
    """
    chosen = selection(arguments)
    for kind in ("drafter", "verifier"):
        check_technique(kind, chosen[kind])
    model, dtype, threads = engine_of_arguments(arguments)
    named = ("host", "max_new_tokens", "temperature", "seed", "compare", "rounds")
    given = {name: getattr(arguments, name) for name in named}
    grammar = None if arguments.grammar is None else grammar_of(arguments.grammar)
    return Job(model=model, prompt=prompt_of(arguments), dtype=dtype, threads=threads, grammar=grammar, **given, **chosen)


def selection(arguments: Namespace) -> dict[str, Any]:
    """Return drafter, verifier and allow_lossy: the command line's, else the configuration's, else the defaults.

    :raises OptionError: the configuration cannot be read.
    """
    found = {} if arguments.config is None else load_config(arguments.config)
    return {
        "drafter": _asked(arguments.drafter, found.get("drafter", "prompt_lookup")),
        "verifier": _asked(arguments.verifier, found.get("verifier", "token_wise")),
        "allow_lossy": arguments.allow_lossy or bool(found.get("allow_lossy", False)),
    }


def _asked(given: str | None, otherwise: Any) -> str:
    """Return what was asked for; an empty text is no technique, and no wish for another one either."""
    return str(parse_spec(otherwise)) if given is None else given


def engine_of_arguments(arguments: Namespace) -> tuple[str, str, int | None]:
    """Return the model, as engines take it, the dtype to load it in, and how many CPU threads it gets.

    :raises HostError: no such model.
    """
    model = str(testbed("--model DIRECTORY_OR_HUB_ID").path()) if arguments.model is None else model_of(arguments.model)
    dtype = arguments.dtype or ("float32" if arguments.model is None else "auto")
    # For a model as small as ours, waking other threads costs more than they save.
    return model, dtype, arguments.threads or (1 if arguments.model is None else None)


def check_technique(kind: str, given: str) -> None:
    """Find a technique and check its options without building it.

    :raises AccelplugError: as building it would.
    """
    entry, spec = offered_here().find(kind, given)
    check_options(str(entry), entry.resolve(), spec.options)


def testbed(instead: str) -> ModuleType:
    """Return the installed small model's package.

    :raises HostError: it is not installed; the sentence names `instead`.
    """
    try:
        return import_module("accelplug_testbed")
    except ModuleNotFoundError as exc:
        raise HostError(f"accelplug's small model is not installed; pip install ./integration/testbed in a clone of accelplug, or pass {instead}") from exc


def model_of(given: str) -> str:
    """Return a model directory or a hub id as engines take it.

    :raises HostError: a path that is no model directory.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise HostError(f"{given} holds no config.json, so it is no model directory; pass the folder that save_pretrained() wrote")
        return str(path.resolve())
    if path.exists() or given.startswith((".", "/", "~")) or given.count("/") > 1:
        raise HostError(f"no model directory at {given}; pass an existing folder with a config.json, or a hub id like 'org/name'")
    return given


def prompt_of(arguments: Namespace) -> str:
    """Return the prompt: given as text, in a file, or a held-out one of the small model.

    :raises AccelplugError: the file cannot be read, the prompt is empty, or there is none.
    """
    if arguments.prompt is not None:
        text = str(arguments.prompt)
    elif arguments.prompt_file is not None:
        text = _read(Path(arguments.prompt_file))
    else:
        text = str(testbed("--prompt TEXT").prompts()[0]["prompt"])
    if not text:
        raise OptionError("the prompt is empty; pass --prompt TEXT or --prompt-file FILE with something in it")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise OptionError("the prompt is no UTF-8; pass it as such, or in a file by --prompt-file FILE")
    return text


def grammar_of(given: str) -> dict[str, Any]:
    """Return what an answer must be, as `GrammarSpec.of` reads it: from a file that holds that, or a JSON Schema; or written out.

    :raises AccelplugError: the file cannot be read, holds no JSON, or what is written is no grammar.
    """
    written_out = given.lstrip().startswith("{")
    try:
        found = json.loads(given if written_out else Path(given).expanduser().read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as exc:
        raise OptionError(f"cannot read the grammar file {given} ({type(exc).__name__}); pass a JSON Schema's file, or {EXAMPLE}") from exc
    except (ValueError, RecursionError) as exc:
        who = "what --grammar says" if written_out else f"the grammar file {given}"
        raise OptionError(f"{who} is no JSON ({type(exc).__name__}: {exc}); pass a JSON Schema's file, or {EXAMPLE}") from exc
    if not written_out and not (isinstance(found, dict) and found.keys() & set(KINDS)):
        found = {"json_schema": found}
    GrammarSpec.of(found)
    return dict(found)


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8-sig")  # a mark that an editor put before the text is none of it
    except (OSError, UnicodeDecodeError) as exc:
        raise OptionError(f"cannot read the prompt file {path} ({type(exc).__name__}); pass a UTF-8 text file") from exc


def missing_weights(model: str, exc: Exception) -> AccelplugError:
    """Translate an engine's refusal to load a model into one sentence with the cure."""
    reason = " ".join(str(exc).split())[:200]
    if Path(model).is_dir() or not isinstance(exc, OSError):
        return HostError(f"cannot load the model in {model}: {reason}; pass a model that save_pretrained() wrote, tokenizer included")
    return HostError(
        f"cannot load {model!r}: no folder of that name here, and the hub has it neither in the local cache nor within reach; "
        f"download it first ('hf download {model}'), or pass a model directory"
    )


def check_length(prompt_tokens: int, max_new_tokens: int, limit: int | None) -> None:
    """Refuse a run that does not fit the model.

    :raises OptionError: naming the model's limit and what fits.
    """
    if limit is None or prompt_tokens + max_new_tokens <= limit:
        return
    if prompt_tokens >= limit:
        raise OptionError(f"the prompt has {prompt_tokens} tokens and the model takes {limit}; shorten the prompt")
    fits = limit - prompt_tokens
    raise OptionError(f"{prompt_tokens} prompt tokens and --max-new-tokens {max_new_tokens} exceed the model's {limit}; at most {fits} fit")
