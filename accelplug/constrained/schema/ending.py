"""Whether what a schema says of a value comes to an end, as far as that is seen without asking it of values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from accelplug.constrained.regex.parse import UnsupportedPatternError, parse
from accelplug.constrained.schema.document import Document

MOST_DEPTH: Final = 20
MOST_STEPS: Final = 200
"""Subschemas of one value. Where there are more they may be the same ones again and again, and where they are deeper, lead back."""
_TO_BE_TRIED: Final = frozenset({"$dynamicRef", "$recursiveRef", "unevaluatedProperties", "unevaluatedItems"})
"""Keywords that lead on in ways of their own."""
_LISTS: Final = ("allOf", "anyOf", "oneOf")
_ONES: Final = ("not", "if", "then", "else")


def plainly_ends(document: Document) -> bool:
    """Whether a value without parts can certainly be checked: what is said of it leads back nowhere, and its expressions can be read.

    What is said of parts of a value does not matter: such a value has none.
    """
    if document.draft <= 3 or document.names.inside or not _TO_BE_TRIED.isdisjoint(document.seen.keywords):
        return False
    level, steps = [document.schema], 0
    for _ in range(MOST_DEPTH):
        schemas = [one for one in level if not isinstance(one, bool)]
        steps += len(schemas)
        if steps > MOST_STEPS or not all(_is_plain(document, one) for one in schemas):
            return False
        level = [part for one in schemas for part in _in_place(document, one)]
        if not level:
            return True
    return False


def _is_plain(document: Document, schema: Any) -> bool:
    """Whether this is a schema whose keywords are read as those of the whole are."""
    if not document.is_shaped(schema) or ("$schema" in schema and schema is not document.schema):
        return False
    try:
        return "pattern" not in schema or bool(parse(schema["pattern"]))
    except (UnsupportedPatternError, RecursionError):
        return False


def _in_place(document: Document, schema: dict[str, Any]) -> Iterator[Any]:
    """Return what is said of the same value."""
    if "$ref" in schema:
        yield document.names.at(schema["$ref"])
        if document.draft <= 7:
            return
    for keyword in _LISTS:
        yield from schema.get(keyword, ())
    for keyword in _ONES:
        if keyword in schema:
            yield schema[keyword]
