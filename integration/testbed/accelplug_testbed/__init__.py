"""A Llama-architecture code model of 7.5 million parameters, and held-out edit prompts to run it on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["path", "prompts"]


def path() -> Path:
    """Return the model's directory, as ``from_pretrained`` and vLLM take it."""
    return Path(__file__).parent / "model"


def prompts() -> list[dict[str, Any]]:
    """Return held-out code edits: ``prompt``, ``expected`` (the changed function) and ``edit_rate`` (share of lines changed)."""
    with (Path(__file__).parent / "edits.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
