"""``pattern``, ``patternProperties`` and ``additionalProperties`` for the final check, with ECMA 262 expressions rather than Python's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from accelplug._errors import ConstraintError
from accelplug.constrained.regex.derive import matches
from accelplug.constrained.regex.parse import UnsupportedPatternError, parse

_NAMED: Final = re.compile(r"\(\?<(\w+)>|\\k<(\w+)>|\\.", re.DOTALL)


@lru_cache(maxsize=1 << 13)
def found_in(pattern: str, text: str) -> bool:
    """Whether an expression is found in a text; what is not regular is left to Python, whose dialect is near.

    :raises ConstraintError: nobody can read the expression, or the text is too long for derivatives.
    """
    try:
        regex = parse(pattern)
    except (UnsupportedPatternError, RecursionError):
        return check_readable(pattern).search(text) is not None
    return matches(regex, text)


def check_readable(pattern: str) -> re.Pattern[str]:
    """Return what is not regular as Python reads it; refuse what is no expression of Python's either: no text could be checked for it.

    :raises ConstraintError: naming the pattern.
    """
    try:
        return re.compile(_NAMED.sub(_as_python_does, pattern))
    except re.error as exc:
        raise ConstraintError(f"the pattern {pattern!r:.100} cannot be read: {exc}; write a regular expression of ECMA 262") from exc


def _as_python_does(found: re.Match[str]) -> str:
    """Write a group with a name, or a reference to one, as Python has them."""
    if found[1]:
        return f"(?P<{found[1]}>"
    return f"(?P={found[2]})" if found[2] else found[0]


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
