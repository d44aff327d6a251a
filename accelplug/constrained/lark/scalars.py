"""Rules of null, true and false, numbers and strings."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from accelplug.constrained.lark.builder import Builder, spellings
from accelplug.constrained.lark.finished import Symbols
from accelplug.constrained.lark.terminals import terminal
from accelplug.constrained.regex.decimals import ANY, ANY_INTEGER, multiples
from accelplug.constrained.regex.derive import is_empty
from accelplug.constrained.regex.tree import NOTHING, both, cat, literal
from accelplug.constrained.schema.atoms import Bound, Multiple, Text, Values
from accelplug.constrained.schema.ledger import Branch
from accelplug.constrained.schema.numbers import Numbers
from accelplug.constrained.schema.texts import text_of
from accelplug.constrained.statements import MOST_COUNTED, MOST_STEP


def values_of(branch: Branch) -> list[str] | None:
    """Return the fixed values of a branch, as JSON, None where it has none: where it has, it has nothing else."""
    return list(branch[0].texts) if branch and isinstance(branch[0], Values) else None


def fixed(builder: Builder, branch: Branch) -> list[Symbols] | None:
    """Return the alternatives of a branch of fixed values."""
    values = values_of(branch)
    if values is None:
        return None
    simple = [spelt for text in values if text[0] not in "{[" for spelt in spellings(text)]
    nested = [builder.literal(json.loads(text)) for text in values if text[0] in "{["]
    return [*([[builder.texts(simple)]] if simple else []), *nested]


def null(builder: Builder, branch: Branch) -> list[Symbols]:
    """``null``."""
    return fixed(builder, branch) or [['"null"']]


def boolean(builder: Builder, branch: Branch) -> list[Symbols]:
    """``true`` and ``false``."""
    given = fixed(builder, branch)
    return [['"true"'], ['"false"']] if given is None else given


def string(builder: Builder, branch: Branch) -> list[Symbols]:
    """Strings."""
    given = fixed(builder, branch)
    if given is not None:
        return given
    regex = text_of(branch)
    if builder.is_too_much(regex):
        kept = builder.kept([atom.regex for atom in branch if isinstance(atom, Text)])
        builder.give_up(lambda atom: isinstance(atom, Text) and atom.regex not in kept)
        regex = both(*kept)
    found = builder.string(regex)
    return [] if found is None else [[found]]


def number(builder: Builder, branch: Branch) -> list[Symbols]:
    """Numbers; multiples that no short expression says are llguidance's."""
    given = fixed(builder, branch)
    if given is not None:
        return given
    if not branch:
        return [[builder.terminal(_ANY)]]
    numbers = Numbers.of(branch)
    if numbers.is_empty:
        return []
    return _multiples(builder, numbers) if _is_long(numbers) else _between(builder, numbers)


def _is_long(numbers: Numbers) -> bool:
    """Whether numbers are multiples of a step of which no short expression says which those are."""
    return bool(numbers.steps) and (numbers.step is None or multiples(numbers.step) is None)


def _between(builder: Builder, numbers: Numbers) -> list[Symbols]:
    """Write numbers by expressions for those from 0 on and for those below, or for both where there is no bound."""
    if numbers.low is numbers.high is None and not numbers.steps and not numbers.fractional:
        return [[builder.terminal(_ANY_INTEGER if numbers.integer else _ANY)]]
    above, below = numbers.magnitudes, numbers.mirrored()
    under = below.magnitudes if below.high is None or below.high.value > 0 else NOTHING
    assert above is not None, "there is an expression"
    assert under is not None, "there is an expression"
    return [[builder.terminal(terminal(one))] for one in (above, cat(literal("-"), under)) if not is_empty(one)]


def _multiples(builder: Builder, numbers: Numbers) -> list[Symbols]:
    """Write multiples by llguidance's own arithmetic, which knows whole ones from 0 on; the others are checked."""
    step = numbers.step
    if step is None or step.denominator != 1 or step > MOST_STEP or not builder.may_nest or _is_rounded(numbers.whole(int(step))):
        builder.give_up(lambda atom: isinstance(atom, Multiple))
        return _between(builder, replace(numbers, steps=()))
    low, high = numbers.whole(int(step))
    found = []
    if high is None or high >= 0:
        ends = {"minimum": max(low or 0, 0)} | ({} if high is None else {"maximum": high})
        found.append([f"%json {json.dumps({'type': 'integer', **ends, 'multipleOf': int(step)})}"])
    if low is None or low < 0:
        builder.give_up(lambda atom: isinstance(atom, Multiple))
        last = Bound(-1 if high is None else min(high, -1), lower=False, exclusive=False)
        found += _between(builder, replace(numbers, integer=True, high=last, steps=()))
    return found


def _is_rounded(ends: Iterable[int | None]) -> bool:
    """Whether llguidance's own arithmetic rounds one of these bounds."""
    return any(end is not None and abs(end) > MOST_COUNTED for end in ends)


_ANY: Final = terminal(ANY)
_ANY_INTEGER: Final = terminal(ANY_INTEGER)
