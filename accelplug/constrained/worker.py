"""Compiling that may take long: in a process of its own, which may be ended, or in a thread, for which nobody waits beyond its time."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from subprocess import PIPE
from tempfile import TemporaryFile
from typing import Any, Final, TypeVar

from accelplug._errors import ConstraintError
from accelplug.constrained.unfolding import unfolds_far
from accelplug.hooks import CompileLimits, GrammarSpec, Vocabulary

R = TypeVar("R")
_GLANCE: Final = 0.05  # seconds between looks at whether a grammar is still wanted
STARTING: Final = 60.0
"""The most seconds that a process may take before it begins to compile: it loads the engine, on a machine that is busy. The limit begins behind that."""
LONG_TEXT: Final = 300_000
BIG_NUMBER: Final = 1000
LONG_STEP: Final = 5  # digits of all steps together
_REPEATS: Final = re.compile(r"\{\d*,?(\d{4,})")
_COUNTS: Final = re.compile(r"(?:Length|Items|Properties)\"?\s*:\s*(\d{4,})")
_STEPS: Final = re.compile(r'multipleOf"\s*:\s*0*([\d.]+)')
_NESTED_REPEATS: Final = re.compile(r"[+*}]\)*[+*{]|\)[+*{][^\"]*\)[+*{]")


def looks_dangerous(name: str, spec: GrammarSpec) -> bool:
    """Whether a grammar is long, repeats often, repeats repetitions or multiplies far; where an engine is asked alone, also whether it counts far."""
    text = spec.text if "\\u" not in spec.text or spec.kind != "json_schema" else json.dumps(spec.value(), ensure_ascii=False)
    counted = [*_REPEATS.finditer(text), *(() if name == "auto" else _COUNTS.finditer(text))]
    if len(text) > LONG_TEXT or any(int(found[1]) > BIG_NUMBER for found in counted):
        return True
    steps = {found[1].replace(".", "").strip("0") or "1" for found in _STEPS.finditer(text)}
    if len(steps) > (name == "auto") and sum(map(len, steps)) > LONG_STEP:
        return True
    return spec.kind in {"regex", "lark", "ebnf"} and _NESTED_REPEATS.search(text) is not None


def tried(name: str, spec: GrammarSpec, limits: CompileLimits) -> None:
    """Compile a grammar that looks dangerous, or for xgrammar one that unfolds far, in another process, on a small vocabulary, under the limits.

    :raises ConstraintError: it was refused there, took longer or more memory than the limits, or brought the process down.
    """
    if name == "outlines":  # which is always compiled apart
        return
    if looks_dangerous(name, spec) or (name == "xgrammar" and unfolds_far(spec)):
        _in_a_process(name, spec, None, limits)


def compiled_apart(name: str, spec: GrammarSpec, vocabulary: Vocabulary, limits: CompileLimits) -> Any:
    """Return what an engine, once it has begun, can only be kept from by ending its process: compiled in one, under the limits.

    :raises ConstraintError: as `tried` does.
    """
    return pickle.loads(_in_a_process(name, spec, (tuple(vocabulary.tokens), vocabulary.eos_token_ids), limits))


def compiled_beside(spec: GrammarSpec, work: Callable[[], R], limits: CompileLimits) -> R:
    """Return what a call makes that lets other threads run and that nothing ends: beyond its time, or once it is cancelled, nobody waits for it.

    Two such calls run at a time, those for which nobody waits any longer among them; what others wait for their turn is of their own time.

    :raises ConstraintError: it takes longer than the limits, or was cancelled.
    """
    deadline, made = time.monotonic() + limits.seconds, _threads(os.getpid()).submit(work)
    try:
        while time.monotonic() < deadline:
            limits.check_wanted()
            try:
                return made.result(_GLANCE)
            except TimeoutError:
                continue
    finally:
        made.cancel()
    raise _too_long(spec, limits)


@lru_cache(1)
def _threads(process: int) -> ThreadPoolExecutor:
    """Return one process's threads: a fork has none of those before it."""
    return ThreadPoolExecutor(2, f"accelplug-compiling-{process}")


def _too_long(spec: GrammarSpec, limits: CompileLimits) -> ConstraintError:
    return ConstraintError(f"the {spec.kind} takes longer to compile than {limits.seconds:g} s; simplify it, or raise seconds")


def _in_a_process(name: str, spec: GrammarSpec, vocabulary: object, limits: CompileLimits) -> bytes:
    command = [sys.executable, "-m", "accelplug.constrained.trial"]
    with TemporaryFile() as given:  # no pipe: looking whether it has ended would stop sending
        pickle.dump((name, asdict(spec), vocabulary, limits.seconds, limits.megabytes), given)
        given.seek(0)
        with subprocess.Popen(command, stdin=given, stdout=PIPE, stderr=PIPE) as process:
            try:
                output = _waited_for(process, limits)
            finally:
                process.kill()
    if output is None or process.returncode == -signal.SIGALRM:
        raise _too_long(spec, limits)
    if process.returncode == 0:
        return output
    if process.returncode == 1 and output.startswith(b"refused: "):
        raise ConstraintError(output.decode().removeprefix("refused: ").strip())
    raise ConstraintError(f"the {spec.kind} takes more than {limits.megabytes} MB to compile; simplify it, or raise megabytes")


def _waited_for(process: subprocess.Popen[bytes], limits: CompileLimits) -> bytes | None:
    """Return what a process printed, None once it took too long, which it ends for itself unless it never gets so far.

    :raises ConstraintError: nobody waits for it any longer.
    """
    deadline = time.monotonic() + STARTING + limits.seconds
    while time.monotonic() < deadline:
        limits.check_wanted()
        try:
            return process.communicate(timeout=_GLANCE)[0]
        except subprocess.TimeoutExpired:
            continue
    return None
