"""Which settings are tried, and how most of them are given up early."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import Parameter
from typing import Any, Final, TypeVar

from accelplug.cli.plugins import offered_here
from accelplug.hooks.options import fields_of, words_of

MOST: Final = 27
"""A grid with more settings than this changes one option at a time."""

T = TypeVar("T")
Prompts = TypeVar("Prompts", bound=Sequence[Any])


def settings(given: str) -> list[str]:
    """Return the spellings to try for one drafter, its own first: each whole-number option with bounds at half, once and twice its default,
    each option of words at all of them.

    Options that `given` sets stay as they are, and so does `scope`: what a drafter may remember of others is not for a search to choose.

    :raises AccelplugError: nobody offers it, or it cannot be imported.
    """
    entry, spec = offered_here().find("drafter", given)
    factory = entry.resolve()
    declared = {name: field.metadata.get("accelplug", {}) for name, field in getattr(factory, "__dataclass_fields__", {}).items()}
    open_to_choice = {name: parameter for name, parameter in fields_of(factory).items() if declared.get(name) and name not in (*spec.options, "scope")}
    free: dict[str, list[Any]] = {name: _tried(parameter, declared[name]) for name, parameter in open_to_choice.items()}
    free = {name: tried for name, tried in free.items() if tried}
    changes = [dict(zip(free, chosen, strict=True)) for chosen in itertools.product(*free.values())]
    if len(changes) > MOST:
        changes = [{}, *({name: value} for name, tried in free.items() for value in tried[1:])]
    defaults = {name: tried[0] for name, tried in free.items()}
    spelled = [{name: value for name, value in change.items() if value != defaults[name]} for change in changes]
    return [str(replace(spec, options={**spec.options, **change})) for change in spelled]


def _tried(parameter: Parameter, declared: Mapping[str, Any]) -> list[Any]:
    """Return the values to try of one option, its default first; none where it has neither bounds nor words."""
    if type(parameter.default) is int:
        return values(parameter.default, declared.get("ge"), declared.get("le"))
    words = words_of(parameter.annotation)
    return sorted(words, key=lambda word: word != parameter.default) if parameter.default in words else []


def values(default: int, low: float | None, high: float | None) -> list[int]:
    """Return the default, half and twice of it, as far as the bounds allow."""
    tried = (default, default // 2, 2 * default)
    return list(dict.fromkeys(v for v in tried if (low is None or v >= low) and (high is None or v <= high)))


def halving(candidates: Sequence[T], prompts: Prompts, measure: Callable[[list[T], Any], list[float]]) -> tuple[T, list[tuple[int, int]]]:
    """Return the fastest candidate by successive halving (Jamieson & Talwalkar 2016), and each rung's (candidates, prompts).

    Every rung measures the candidates that are left on twice as many prompts and keeps the faster half.

    :param measure: returns seconds for each candidate on these prompts.
    """
    left = list(candidates)
    rungs = []
    while len(left) > 1:
        to_come = (len(left) - 1).bit_length() - 1  # rungs after this one, as each halves what is left
        count = -(-len(prompts) // 2**to_come)
        seconds = measure(left, prompts[:count])
        rungs.append((len(left), count))
        order = sorted(range(len(left)), key=seconds.__getitem__)
        left = [left[i] for i in order[: (len(left) + 1) // 2]]
    return left[0], rungs


def halves(prompts: Sequence[T]) -> tuple[list[T], list[T]]:
    """Split in two, alternating, so that a file sorted by task puts every task into both."""
    return list(prompts[::2]), list(prompts[1::2])
