"""Which prompts a benchmark runs, by task: the built-in ones, a file's, and scripted ones for any tokenizer."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

from accelplug._errors import OptionError
from accelplug.cli.bench.scripts import Script, adversarial, edited, regimes
from accelplug.cli.workload import testbed

FREE_CODE: Final = (
    "import os\n\ndef walk(",
    "class Parser:\n    def __init__(self",
    "def test_read(self):\n",
    "import re\nimport sys\n\n",
    "def main(argv=None):\n    parser = argparse.ArgumentParser(",
    "class Error(Exception):\n",
    "def _format(value, width",
    "import unittest\n\nclass Test",
)
JSON: Final = tuple(
    f"<|json|>\n{count} records of {fields}\n"
    for fields in ("name: string, count: integer, path: string, size: number", "id: integer, title: string, done: boolean")
    for count in (4, 3, 5, 6)
)
EDIT_RATES: Final = (0, 5, 15, 30)
EDITED: Final = {f"scripted edits {rate} %": rate for rate in EDIT_RATES[1:]}
SCRIPTED: Final = ("adversarial", "regimes", *EDITED)
CODE: Final = ("argparse", "configparser", "difflib", "textwrap")
"""Modules of Python's own whose source is edited."""


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt as it was written. `is_question` asks for the tokenizer's chat template, if it has one."""

    task: str
    text: str
    is_question: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt for the model, [prompt_length] token ids, and the output that is scripted for it, if one is."""

    task: str
    tokens: list[int]
    script: list[int] | None = None


def texts_of(path: str | None, instead: str = "--prompts FILE with --model DIR_OR_HUB_ID", *, for_encoder: bool = False) -> list[Text]:
    """Return the prompts of a file, or the built-in ones, which are other ones for an encoder-decoder model.

    :raises AccelplugError: the file cannot be read, or the small models' package with the prompts is not installed.
    """
    if path is not None:
        return read_prompts(Path(path).expanduser())
    return misspelt(testbed(instead).corrections()) if for_encoder else built_in(testbed(instead).prompts())


def misspelt(corrections: Sequence[Mapping[str, Any]]) -> list[Text]:
    """Return texts to correct, by the rate at which they are misspelt."""
    by_rate = sorted(corrections, key=lambda correction: float(correction["rate"]))
    return [Text(f"correct {100 * float(correction['rate']):g} %", correction["noisy"]) for correction in by_rate]


def built_in(edits: Sequence[Mapping[str, Any]]) -> list[Text]:
    """Return free code, JSON, and held-out edits: each at the edit rate that is nearest to its own, the nearest first."""

    def distance(edit: Mapping[str, Any], rate: int) -> float:
        return abs(100 * float(edit["edit_rate"]) - rate)

    found = [Text("free code", text) for text in FREE_CODE]
    for rate in EDIT_RATES:
        own = [edit for edit in edits if distance(edit, rate) == min(distance(edit, other) for other in EDIT_RATES)]
        found += [Text(f"edits {rate} %", edit["prompt"]) for edit in sorted(own, key=lambda edit: distance(edit, rate))]
    return found + [Text("json", text) for text in JSON]


def read_prompts(path: Path) -> list[Text]:
    """Read JSON lines: ``{"prompt": text}`` with an optional ``task``, or Spec-Bench's ``{"turns": [text, ...], "category": name}``.

    Of several turns the first one is asked, as the later ones need answers of their own.

    :raises OptionError: the file cannot be read, a line is neither, or there is none; the message has the line's number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would end lines at U+2028 too, inside of texts
    except (OSError, UnicodeDecodeError) as exc:
        raise OptionError(f"cannot read the prompts in {path} ({type(exc).__name__}); pass a UTF-8 file of JSON lines") from exc
    found = [_read_line(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise OptionError(f'{path} holds no prompts; write lines such as {{"prompt": "..."}} into it')
    return found


def _read_line(where: str, line: str) -> Text:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise OptionError(f"{where}: not JSON ({exc}); write one object per line") from exc
    row = given if isinstance(given, dict) else {}
    text, turns = row.get("prompt"), row.get("turns")
    is_question = text is None
    if text is None and isinstance(turns, list) and turns:
        text = turns[0]
    if not isinstance(text, str) or not text:
        raise OptionError(f'{where}: no prompt in it; write {{"prompt": "..."}} or {{"turns": ["..."]}}, with text that is not empty')
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # JSON can write what no tokenizer takes
        raise OptionError(f"{where}: its prompt has half of a pair of surrogates, which no tokenizer takes; write the letter whole")
    return Text(str(row.get("task") or row.get("category") or "prompts"), text, is_question)


def chosen(texts: Sequence[Text], tasks: Sequence[str] | None, *, scripted: bool = True) -> list[Text]:
    """Return the texts of the tasks asked for.

    :param scripted: whether scripted tasks may be asked for, which have no texts.

    :raises OptionError: there is no such task.
    """
    offered = [*dict.fromkeys(text.task for text in texts), *(SCRIPTED if scripted else ())]
    for task in tasks or ():
        if task not in offered:
            raise OptionError(f"no task {task!r}; there are {', '.join(offered)}")
    return [text for text in texts if not tasks or text.task in tasks]


def encoded(texts: Sequence[Text], tokenizer: Any, room: int, limit: int) -> tuple[list[Prompt], dict[str, str]]:
    """Return the first `limit` prompts of each task that leave room for the output, and what was left out: task -> why.

    :param room: the most prompt tokens.
    """
    prompts: list[Prompt] = []
    left_out = {}
    for task in dict.fromkeys(text.task for text in texts):
        every = (Prompt(task, encode(text, tokenizer)) for text in texts if text.task == task)
        found = list(islice((prompt for prompt in every if 0 < len(prompt.tokens) <= room), limit))
        if not found:
            left_out[task] = f"no prompt of it has between 1 and {room} tokens, which is what the model and --max-new-tokens leave"
        prompts += found
    return prompts, left_out


def encode(text: Text, tokenizer: Any) -> list[int]:
    """Return token ids; a question goes through the tokenizer's chat template."""
    if text.is_question and getattr(tokenizer, "chat_template", None):
        asked = [{"role": "user", "content": text.text}]
        rendered = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        return [int(token) for token in tokenizer(rendered, add_special_tokens=False)["input_ids"]]
    return [int(token) for token in tokenizer(text.text)["input_ids"]]


def scripted(
    tasks: Sequence[str], ordinary: Sequence[int], code: Sequence[int], new_tokens: int, room: int, limit: int
) -> tuple[list[Prompt], dict[str, str]]:
    """Return `limit` prompts of each scripted task, and what was left out: task -> why.

    :param ordinary: token ids to choose from.
    :param code: tokens of code.
    :param room: the most tokens, prompt and output, that the model takes.
    """
    makers: dict[str, Callable[[int, int, int], Script | None]] = {name: partial(edited, code, rate) for name, rate in EDITED.items()}
    makers |= {"adversarial": partial(adversarial, ordinary), "regimes": partial(regimes, ordinary)}
    prompts, left_out = [], {}
    for task in tasks:
        scripts = [makers[task](new_tokens, room, seed) for seed in range(limit)]
        if None in scripts:
            left_out[task] = f"the model takes {room} tokens and its tokenizer has {len(ordinary)} ordinary ones, which is too few for it"
        prompts += [Prompt(task, script.prompt, script.output) for script in scripts if script is not None]
    return prompts, left_out


def tokens_of_code(tokenizer: Any, ordinary: Sequence[int]) -> list[int]:
    """Return the source of some of Python's own modules as ordinary tokens."""
    kept = set(ordinary)
    text = "\n".join(inspect.getsource(importlib.import_module(name)) for name in CODE)
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"] if token in kept]


def ordinary_tokens(tokenizer: Any, vocab_size: int, eos: Sequence[int]) -> list[int]:
    """Return the token ids that neither end nor mark anything."""
    special = {*tokenizer.all_special_ids, *eos}
    return [token for token in range(min(len(tokenizer), vocab_size)) if token not in special]
