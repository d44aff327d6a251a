"""Structural tags in the words that xgrammar takes: the older form, which OpenAI-like servers still write, and expressions."""

from __future__ import annotations

import json
from collections.abc import Callable
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


def with_patterns(text: str, spelled: Callable[[str], str]) -> str:
    """Return the JSON of a structural tag with the expressions of its formats spelled otherwise; those in schemas stay."""

    def respelled(given: Any) -> Any:
        if isinstance(given, list):
            return [respelled(one) for one in given]
        if not isinstance(given, dict):
            return given
        if given.get("type") == "regex" and isinstance(given.get("pattern"), str):
            return {**given, "pattern": spelled(given["pattern"])}
        return {name: one if name == "json_schema" else respelled(one) for name, one in given.items()}

    return json.dumps(respelled(json.loads(text))) if '"regex"' in text else text


def _schema(structure: dict[str, Any]) -> Any:
    found = structure.get("schema")
    return True if found is None else json.loads(found) if isinstance(found, str) else found
