"""The final check of a finished text, in one sentence."""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from accelplug._errors import ConstraintError
from accelplug.constrained.schema.document import Document
from accelplug.constrained.schema.validation import translated

_OF_EACH_TYPE: Final[tuple[Any, ...]] = (None, True, 0, "", [], {})


def problem(document: Document, text: str) -> str | None:
    """Return what is wrong with a text that should satisfy a schema, None if nothing is.

    :raises ConstraintError: the check cannot be made.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as exc:
        return f"the text is no JSON: {exc}"
    return fault(document, value)


def fault(document: Document, value: Any) -> str | None:
    """Return what is wrong with a value, None if nothing is."""
    if not isinstance(document.schema, dict):
        return None if document.schema else "the schema is false, which nothing satisfies"
    try:
        with translated():
            error = next(document.validator.iter_errors(value), None)
    except RecursionError:
        return "the schema's references lead back to themselves, so that nothing can be checked"
    if error is None:
        return None
    where = "/".join(map(str, error.absolute_path))
    return f"{where or 'the value'} breaks {error.validator}: {' '.join(str(error.message).split()):.200}"


def check_ends(document: Document) -> None:
    """Refuse a schema that says of values of a type only what it says of them.

    :raises ConstraintError: its references go round in a circle, or it cannot be checked at all.
    """
    try:
        with translated():
            for value in _OF_EACH_TYPE:  # another keyword may decide about some before a reference is followed
                document.validator.is_valid(value)
    except RecursionError:
        raise ConstraintError("the schema's references lead back to themselves before they say anything; let one of them say what it is") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
