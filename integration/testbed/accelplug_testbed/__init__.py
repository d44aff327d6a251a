"""A Llama-architecture code model and a T5 that corrects spelling, and held-out prompts to run them on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["corrections", "corrector", "path", "prompts"]

FOLDER = Path(__file__).parent


def path() -> Path:
    """Return the code model's directory, as ``from_pretrained`` and vLLM take it."""
    return FOLDER / "model"


def prompts() -> list[dict[str, Any]]:
    """Return held-out code edits: ``prompt``, ``expected`` (the changed function) and ``edit_rate`` (share of lines changed)."""
    return _rows("edits.jsonl")


def corrector() -> Path:
    """Return the directory of the T5 that corrects spelling mistakes, as ``AutoModelForSeq2SeqLM.from_pretrained`` takes it."""
    return FOLDER / "corrector"


def corrections() -> list[dict[str, Any]]:
    """Return held-out misspelt texts: ``noisy``, ``clean`` and ``edit_rate`` (share of the clean text's tokens that are misspelt)."""
    return _rows("corrections.jsonl")


def _rows(name: str) -> list[dict[str, Any]]:
    with (FOLDER / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
