"""Which draft of JSON Schema a schema is written in."""

from __future__ import annotations

from typing import Any, Final

from accelplug.constrained.schema.seen import Seen

DRAFTS: Final = {
    "draft-03": 3,
    "draft-04": 4,
    "draft-06": 6,
    "draft-07": 7,
    "2019-09": 2019,
    "2020-12": 2020,
}


def declared(schema: Any) -> str | None:
    """Return what a schema names as its draft, None where it names none."""
    given = schema.get("$schema") if isinstance(schema, dict) else None
    return given if isinstance(given, str) else None


def draft_of(schema: Any, seen: Seen) -> int:
    """Return the draft that a schema declares; without one 2020-12, or 2019-09 where ``items`` is a list."""
    given = declared(schema)
    for name, draft in DRAFTS.items():
        if given and name in given:
            return draft
    return 2019 if seen.lists_items else 2020
