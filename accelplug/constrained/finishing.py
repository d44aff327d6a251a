"""The final check of a finished text, in one sentence."""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from accelplug._errors import ConstraintError
from accelplug.constrained.schema.document import Document
from accelplug.constrained.schema.ending import plainly_ends
from accelplug.constrained.schema.validation import translated
from accelplug.constrained.time_limit import OutOfTimeError, within

CHECK_SECONDS: Final = 2.0
"""The longest that the check of one answer takes: a server answers nobody else meanwhile."""
DEEP: Final = 30
TOO_DEEP: Final = "the text is nested too deeply to be checked; whether it is valid is not known"
_UNSURE: Final = frozenset({"$ref", "$dynamicRef", "$recursiveRef", "pattern", "patternProperties"})
"""Keywords without which a schema's check comes to an end, and can be made: references, and expressions that may be unreadable."""
_OF_EACH_TYPE: Final[tuple[Any, ...]] = (None, True, 0, "", [], {})


def problem(document: Document, text: str) -> str | None:
    """Return what is wrong with a text that should satisfy a schema, or why that cannot be known; None if nothing is.

    :raises ConstraintError: the check cannot be made.
    """
    try:
        value = json.loads(text, parse_constant=no_constant)
    except RecursionError:
        return TOO_DEEP
    except ValueError as exc:
        return f"the text is no JSON: {exc}"
    return fault(document, value)


def fault(document: Document, value: Any) -> str | None:
    """Return what is wrong with a value, or why that cannot be known; None if nothing is."""
    if not isinstance(document.schema, dict):
        return None if document.schema else "the schema is false, which nothing satisfies"
    try:
        with translated(), within(CHECK_SECONDS):
            error = next(document.validator.iter_errors(value), None)
    except OutOfTimeError as exc:
        return out_of_time(exc)
    except RecursionError:
        if _is_deep(value):
            return TOO_DEEP
        return "the schema's references lead back to themselves, so that nothing can be checked"
    if error is None:
        return None
    where = "/".join(map(str, error.absolute_path))
    return f"{where or 'the value'} breaks {error.validator}: {' '.join(str(error.message).split()):.200}"


def out_of_time(exc: OutOfTimeError) -> str:
    """Return what is said of an answer whose check took too long."""
    return f"the final check was ended after {CHECK_SECONDS:g} s, in {exc.what}; whether the text is valid is not known"


def _is_deep(value: Any) -> bool:
    """Whether a value is nested so deeply that the stack may end before the schema's references are to blame."""
    level = [value]
    for _ in range(DEEP):
        level = [part for one in level if isinstance(one, dict | list) for part in (one.values() if isinstance(one, dict) else one)]
    return bool(level)


def check_ends(document: Document) -> None:
    """Refuse a schema that says of values of a type only what it says of them.

    :raises ConstraintError: its references go round in a circle, or it cannot be checked at all.
    """
    document.checking  # noqa: B018  # said early: jsonschema is missing
    if _UNSURE.isdisjoint(document.seen.keywords) or plainly_ends(document):
        return  # what their keywords say was looked at, and they lead nowhere
    try:
        with translated():
            for value in _OF_EACH_TYPE:  # another keyword may decide about some before a reference is followed
                document.validator.is_valid(value)
    except RecursionError:
        raise ConstraintError("the schema's references lead back to themselves before they say anything; let one of them say what it is") from None


def no_constant(name: str) -> NoReturn:
    """Refuse what `json` reads and JSON has not: ``NaN`` and the infinities.

    :raises ValueError: always.
    """
    raise ValueError(f"{name} is no JSON number")
