"""Rules of null, true and false, numbers and strings."""

from __future__ import annotations

import json
from dataclasses import replace

from accelplug.constrained.lark.builder import Builder, Symbols
from accelplug.constrained.schema.atoms import Fractional, Inexact, Values
from accelplug.constrained.schema.branches import Branch
from accelplug.constrained.schema.numbers import Numbers
from accelplug.constrained.schema.texts import text_of


def values_of(branch: Branch) -> list[str] | None:
    """Return the fixed values of a branch, as JSON, None where it has none."""
    given = [atom.texts for atom in branch if isinstance(atom, Values)]
    return [text for text in given[0] if all(text in other for other in given)] if given else None


def fixed(builder: Builder, branch: Branch) -> list[Symbols] | None:
    """Return the alternatives of a branch of fixed values."""
    values = values_of(branch)
    if values is None:
        return None
    simple = [text for text in values if text[0] not in "{["]
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
    found = builder.string(text_of(branch))
    return [] if found is None else [[found]]


def _writable(step: int | float) -> bool:
    """Whether llguidance counts with so many digits."""
    return step < 10**9 and len(repr(step).replace(".", "")) <= 9 and "e" not in repr(step)


def number(builder: Builder, branch: Branch) -> list[Symbols]:
    """Numbers; llguidance itself writes the expressions of intervals and multiples."""
    given = fixed(builder, branch)
    if given is not None:
        return given
    numbers = Numbers.of(branch)
    if numbers.is_empty:
        return []
    if numbers.fractional:
        return _fractional(builder, numbers, branch)
    step = numbers.step
    if step is None or not numbers.steps:
        return [[_json(numbers)]]
    if not _writable(step):
        builder.checked(Inexact("*/multipleOf"))
        return [[_json(replace(numbers, steps=()))]]
    below, above = numbers.divided()
    return [*([_json(one)] for one in above.spelled()), *([_negative(builder, one)] for one in below.spelled())]


def _negative(builder: Builder, numbers: Numbers) -> str:
    """Return the rule of numbers with a sign before them: llguidance knows no negative multiples, and a grammar inside one skips no blanks."""
    rule = builder.new("neg")
    builder.add(rule, f'%lark {{\nstart: "-" {_json(numbers)}\n}}')
    return rule


def _fractional(builder: Builder, numbers: Numbers, branch: Branch) -> list[Symbols]:
    """Write numbers that are no integers, which no engine knows; within bounds they are written as numbers and checked."""
    if numbers.low is None and numbers.high is None and not numbers.steps:
        return [[builder.terminal(r"/-?(0|[1-9][0-9]*)\.[0-9]*[1-9][0-9]*/")]]
    builder.checked(*(Inexact(atom.place) for atom in branch if isinstance(atom, Fractional)))
    if numbers.steps:
        builder.checked(Inexact("*/multipleOf"))
    return [[_json(replace(numbers, steps=()))]]


def _json(numbers: Numbers) -> str:
    step = numbers.step
    schema: dict[str, object] = {"type": "integer" if isinstance(step, int) else "number"}
    for bound, name, exclusive in ((numbers.low, "minimum", "exclusiveMinimum"), (numbers.high, "maximum", "exclusiveMaximum")):
        if bound is not None:
            schema[exclusive if bound.exclusive else name] = bound.value
    if numbers.steps:
        schema["multipleOf"] = step
    return f"%json {json.dumps(schema)}"
