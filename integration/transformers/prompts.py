"""What a tiny model is given: a prompt, a padded batch of three, and a prompt with an image, or a sound, where it reads one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from images import twice, with_image
from tiny import HIDDEN

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
    """Return one row, a batch and, where it can be made, one row with an image, for a model; those alone where it takes no text."""
    text = {"row": _text(model, ROWS[:1]), "batch": _text(model, ROWS)}
    shown = _shown(model)
    if shown is None:
        return text
    if _answer(model, text["row"].arguments):
        both = _beside_padded(shown)
        return {**text, shown.what: shown} | ({f"{shown.what}, batch": both} if both is not None and _answer(model, both.arguments) else {})
    return {"row": shown, "batch": Given({name: torch.cat([of] * 3) for name, of in shown.arguments.items()}, shown.what)}


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


def _shown(model: Any) -> Given | None:
    """Return a sound, or a prompt with an image that makes a difference to the answer, where one is found that runs."""
    main = model.main_input_name
    if main in ("input_features", "input_values"):
        torch.manual_seed(5)
        sounds = [Given({main: torch.randn(shape)}, "audio") for shape in _sounds(model, main)]
        return next((sound for sound in sounds if _answer(model, sound.arguments)), None)
    pairs = zip(with_image(model, 5), list(with_image(model, 6)), strict=True)
    found = (one for one, other in pairs if (answer := _answer(model, one)) and answer != _answer(model, other))
    return next((Given(one, "image") for one in found), None)


def _sounds(model: Any, main: str) -> list[tuple[int, ...]]:
    bins = getattr(model.config, "num_mel_bins", getattr(model.config, "input_feat_per_channel", 80))
    places = 2 * getattr(model.config, "max_source_positions", 32)
    return [(1, 4000)] if main == "input_values" else [(1, bins, places), (1, 64, bins), (1, 64, 2 * bins), (1, 64, HIDDEN)]
