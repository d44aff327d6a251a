"""Rules of null, true and false, numbers and strings."""

from __future__ import annotations

import json
from typing import Final

from accelplug.constrained.lark.builder import Builder, spellings
from accelplug.constrained.lark.finished import Symbols
from accelplug.constrained.lark.terminals import terminal
from accelplug.constrained.regex.derive import is_empty
from accelplug.constrained.regex.tree import NOTHING, cat, literal
from accelplug.constrained.schema.atoms import Bound, Inexact, Values
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
    found = builder.string(text_of(branch))
    return [] if found is None else [[found]]


def number(builder: Builder, branch: Branch) -> list[Symbols]:
    """Numbers; llguidance itself writes the expressions of integers' intervals, and of multiples that no short expression says."""
    given = fixed(builder, branch)
    if given is not None:
        return given
    if not branch:
        return [[_ANY_NUMBER]]
    numbers = Numbers.of(branch)
    if numbers.is_empty:
        return []
    few = all(bound is None or abs(bound.value) <= MOST_COUNTED for bound in (numbers.low, numbers.high))
    if not numbers.steps and not numbers.fractional and few and (numbers.integer or (numbers.low is numbers.high is None)):
        return [[_json("integer" if numbers.integer else "number", numbers.low, numbers.high)]]
    above, below = numbers.magnitudes, numbers.mirrored()
    under = below.magnitudes if below.high is None or below.high.value > 0 else NOTHING
    if above is None or under is None:
        return _multiples(builder, numbers)
    return [[builder.terminal(terminal(one))] for one in (above, cat(literal("-"), under)) if not is_empty(one)]


def _multiples(builder: Builder, numbers: Numbers) -> list[Symbols]:
    """Write multiples by llguidance's own arithmetic, which knows whole ones from 0 on; the others are checked."""
    step = numbers.step
    if step is None or step.denominator != 1 or step > MOST_STEP:
        builder.checked(Inexact("*/multipleOf"))
        return [[_json("integer" if numbers.integer else "number", numbers.low, numbers.high)]]
    low, high = numbers.whole(int(step))
    found = []
    if high is None or high >= 0:
        ends = (Bound(max(low or 0, 0), lower=True, exclusive=False), high if high is None else Bound(high, lower=False, exclusive=False))
        found.append([_json("integer", *ends, int(step))])
    if low is None or low < 0:
        builder.checked(Inexact("*/multipleOf"))
        last = Bound(-1 if high is None else min(high, -1), lower=False, exclusive=False)
        found.append([_json("integer", None if low is None else Bound(low, lower=True, exclusive=False), last)])
    return found


def _json(kind: str, low: Bound | None, high: Bound | None, step: int | None = None) -> str:
    schema: dict[str, object] = {"type": kind}
    for bound, name, exclusive in ((low, "minimum", "exclusiveMinimum"), (high, "maximum", "exclusiveMaximum")):
        if bound is not None:
            schema[exclusive if bound.exclusive else name] = bound.value
    if step is not None:
        schema["multipleOf"] = step
    return f"%json {json.dumps(schema)}"


_ANY_NUMBER: Final = _json("number", None, None)
