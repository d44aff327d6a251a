"""The older form of a structural tag, which OpenAI-like servers still take, in the words of the newer."""

from __future__ import annotations

import json
from typing import Any, Final

STRUCTURES: Final = "structures"


def as_format(given: Any) -> Any:
    """Return a structural tag of the older form as the newer, others as they are."""
    if not isinstance(given, dict) or not isinstance(given.get(STRUCTURES), list):
        return given
    tags = [
        {"type": "tag", "begin": one.get("begin"), "content": {"type": "json_schema", "json_schema": _schema(one)}, "end": one.get("end")}
        for one in given[STRUCTURES]
        if isinstance(one, dict)
    ]
    return {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": given.get("triggers"), "tags": tags}}


def newer(text: str) -> str:
    """Return the JSON of a structural tag in the newer form."""
    given = json.loads(text)
    found = as_format(given)
    return text if found is given else json.dumps(found)


def _schema(structure: dict[str, Any]) -> Any:
    found = structure.get("schema")
    return True if found is None else json.loads(found) if isinstance(found, str) else found
