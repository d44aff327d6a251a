"""What a tiny model is given: a prompt, a padded batch of three, and a prompt with an image, or a sound, where it reads one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from images import twice, with_image
from sounds import with_sound

ROWS = [[5, 9, 17, 33, 6, 9], [11, 12, 13], [21, 8, 40, 41, 42, 7, 8, 40, 50]]
ANSWER = 40
"""How many tokens a model writes for two images to be told apart."""


@dataclass(frozen=True)
class Given:
    """Arguments of ``generate()``, and what they are in a word."""

    arguments: dict[str, Any]
    what: str = "text"

    def unpadded(self, rows: list[list[int]]) -> list[list[int]]:
        """Return the rows of an output as drafters are to see them, without padding before the prompt."""
        ids, mask = self.arguments.get("input_ids"), self.arguments.get("attention_mask")
        if ids is None or mask is None or [row[: ids.shape[1]] for row in rows] != ids.tolist():
            return rows
        return [row[int((own == 0).sum()) :] for row, own in zip(rows, mask, strict=True)]


def inputs_for(model: Any) -> dict[str, Given]:
    """Return one row, a batch and, where it reads them, one row and a batch with an image and with a sound; those alone where it takes no text."""
    ways = {"row": _text(model, ROWS[:1]), "batch": _text(model, ROWS)}
    shown = list(_shown(model))
    if shown and not _answer(model, ways["row"].arguments):
        one = shown[0]
        return {"row": one, "batch": Given({name: torch.cat([of] * 3) for name, of in one.arguments.items()}, one.what)}
    for one in shown:
        ways[one.what], both = one, _beside_padded(one)
        if both is not None and _answer(model, both.arguments):
            ways[f"{one.what}, batch"] = both
    return ways


def _text(model: Any, rows: list[list[int]]) -> Given:
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    is_left = not model.config.is_encoder_decoder
    ids = torch.tensor([pad + row if is_left else row + pad for pad, row in zip(pads, rows, strict=True)])
    if codebooks := getattr(model, "num_codebooks", None):
        return Given({"input_ids": ids.repeat_interleave(codebooks, 0)}, "tokens of codebooks")
    return Given({"input_ids": ids, "attention_mask": (ids != 0).long()})


def _beside_padded(shown: Given) -> Given | None:
    """Return a batch of a prompt with an image, and the same without its first two tokens."""
    if "attention_mask" not in shown.arguments:
        return None
    both = twice(shown.arguments)
    both["input_ids"][1, :2] = both["attention_mask"][1, :2] = 0
    return Given(both, shown.what)


def _answer(model: Any, arguments: dict[str, Any]) -> list[list[int]] | None:
    """Return what a model writes, None where it fails."""
    try:
        answer: list[list[int]] = model.generate(**arguments, max_new_tokens=ANSWER, do_sample=False).tolist()
    except Exception:
        return None
    return answer


def _shown(model: Any) -> Iterator[Given]:
    """Yield a prompt with an image, and one with a sound, of those that run and whose answer another image or sound makes another."""
    for make, what in ((with_image, "image"), (with_sound, "audio")):
        pairs = zip(make(model, 5), list(make(model, 6)), strict=True)
        found = (one for one, other in pairs if (answer := _answer(model, one)) and answer != _answer(model, other))
        if (arguments := next(found, None)) is not None:
            yield Given(arguments, what)
