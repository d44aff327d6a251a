"""``pattern``, ``patternProperties`` and ``additionalProperties`` for the final check, with ECMA 262 expressions rather than Python's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from accelplug.constrained.regex.backtracking import backtracking
from accelplug.constrained.regex.derive import matches
from accelplug.constrained.regex.parse import UnsupportedPatternError, parse
from accelplug.constrained.time_limit import OutOfTimeError, seconds_left

MOST_REMEMBERED: Final = 1000  # characters of a text


def found_in(pattern: str, text: str) -> bool:
    """Whether an expression is found in a text.

    :raises ConstraintError: nobody can read the expression.
    :raises OutOfTimeError: the search takes too long.
    """
    return (_remembered if len(text) <= MOST_REMEMBERED else _found_in)(pattern, text)


def _found_in(pattern: str, text: str) -> bool:
    what = f"the pattern {pattern!r:.100}"
    try:
        return matches(parse(pattern), text, what)
    except (UnsupportedPatternError, RecursionError):
        pass
    readable, left = backtracking(pattern), seconds_left(what)
    try:
        return readable.search(text, timeout=None if left == math.inf else left) is not None
    except TimeoutError:
        raise OutOfTimeError(what) from None


_remembered: Final = lru_cache(maxsize=1 << 13)(_found_in)


def pattern(validator: Any, given: str, instance: Any, _schema: Any) -> Iterator[Any]:
    """``pattern``."""
    from jsonschema import ValidationError

    if validator.is_type(instance, "string") and not found_in(given, instance):
        yield ValidationError(f"{instance!r} does not match {given!r}")


def pattern_properties(validator: Any, given: dict[str, Any], instance: Any, _schema: Any) -> Iterator[Any]:
    """``patternProperties``."""
    if validator.is_type(instance, "object"):
        for expression, schema in given.items():
            for name, value in instance.items():
                if found_in(expression, name):
                    yield from validator.descend(value, schema, path=name, schema_path=expression)


def additional_properties(validator: Any, given: Any, instance: Any, schema: dict[str, Any]) -> Iterator[Any]:
    """``additionalProperties``."""
    from jsonschema import ValidationError

    if not validator.is_type(instance, "object"):
        return
    named, expressions = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, value in instance.items():
        if name in named or any(found_in(expression, name) for expression in expressions):
            continue
        if given is False:
            yield ValidationError(f"the property {name!r} was unexpected")
        else:
            yield from validator.descend(value, given, path=name)
