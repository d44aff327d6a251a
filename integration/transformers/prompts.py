"""What a tiny model is given: a prompt, a padded batch of three, and an image or sound where a way to make one fits any model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

ROWS = [[5, 9, 17, 33, 6, 9], [11, 12, 13], [21, 8, 40, 41, 42, 7, 8, 40, 50]]


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
    shown = next((given for given in _shown(model) if _runs(model, given)), None)
    if shown is None:
        return text
    if _runs(model, text["row"]):
        both = _beside_padded(shown)
        return {**text, shown.what: shown} | ({f"{shown.what}, batch": both} if both is not None and _runs(model, both) else {})
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
    both = {name: torch.cat([of, of.clone()]) for name, of in shown.arguments.items()}
    both["input_ids"][1, :2] = both["attention_mask"][1, :2] = 0
    return Given(both, shown.what)


def _runs(model: Any, given: Given) -> bool:
    try:
        model.generate(**given.arguments, max_new_tokens=2, do_sample=False)
    except Exception:
        return False
    return True


def _shown(model: Any) -> Iterator[Given]:
    """Yield what may be an image or sound of the right shape, most likely first."""
    torch.manual_seed(5)
    main = model.main_input_name
    if main in ("input_features", "input_values"):
        for shape in _sounds(model, main):
            yield Given({main: torch.randn(shape)}, "audio")
    elif main == "flattened_patches":
        width = model.config.vision_config.patch_embed_hidden_size
        patches = torch.cat([torch.arange(1.0, 9.0).repeat(2, 1).T, torch.randn(8, width)], 1)
        yield Given({main: patches[None], "attention_mask": torch.ones(1, 8)}, "image")
    elif {"pixel_values", "pixel_values_images"} & set(signature(model.forward).parameters):
        yield from _images(model)


def _sounds(model: Any, main: str) -> list[tuple[int, ...]]:
    bins = getattr(model.config, "num_mel_bins", getattr(model.config, "input_feat_per_channel", 80))
    places = 2 * getattr(model.config, "max_source_positions", 32)
    return [(1, 4000)] if main == "input_values" else [(1, bins, places), (1, 64, bins), (1, 64, 2 * bins), (1, 64, HIDDEN)]


HIDDEN = 64


def _images(model: Any) -> Iterator[Given]:
    vision = next((getattr(model.config, name) for name in ("vision_config", "encoder") if hasattr(model.config, name)), model.config)
    size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    patch = patch[0] if isinstance(patch, list | tuple) else patch or 14
    size = size[0] if isinstance(size, list | tuple) else size or 4 * patch
    square = torch.randn(1, getattr(vision, "num_channels", None) or 3, size, size)
    volume = 3 * patch * patch * (getattr(vision, "temporal_patch_size", None) or 1)
    for pixels in (
        {"pixel_values": square},
        {"pixel_values": square, "image_sizes": torch.tensor([[size, size]])},
        {"pixel_values": square[None], "image_sizes": torch.tensor([[size, size]])},
        {"pixel_values": square[None]},
        {"pixel_values": square.repeat(2, 1, 1, 1)[None], "image_sizes": torch.tensor([[size, size]])},
        {"pixel_values_images": square},
        {"pixel_values": torch.randn(16, volume), "image_grid_thw": torch.tensor([[1, 4, 4]])},
    ):
        yield from _behind_placeholders(model, pixels)
        yield from _behind_queries(model, pixels)
        yield Given({**pixels, **_text(model, ROWS[:1]).arguments}, "image")
        yield Given(pixels, "image")


def _behind_placeholders(model: Any, pixels: dict[str, Tensor]) -> Iterator[Given]:
    """Yield a prompt with as many tokens that stand for the image as the model makes of it."""
    token = getattr(model.config, "image_token_id", None) or getattr(model.config, "image_token_index", None)
    try:
        takes = signature(model.get_image_features).parameters
        found = model.get_image_features(**{name: of for name, of in pixels.items() if name in takes})
        parts = found.pooler_output
        width = model.get_input_embeddings().weight.shape[-1]
        count = sum(part.numel() for part in parts) // width
    except Exception:
        return
    if token is None or not count:
        return
    ids = torch.tensor([[5, 9, *[token] * count, 17, 33, 6]])
    kinds = (ids == token).long()
    own = {name: kinds for name in ("mm_token_type_ids", "token_type_ids") if name in signature(model.forward).parameters}
    yield Given({"input_ids": ids, "attention_mask": torch.ones_like(ids), **own, **pixels}, "image")


def _behind_queries(model: Any, pixels: dict[str, Tensor]) -> Iterator[Given]:
    """Yield a prompt with as many tokens for the image as the model has queries (BLIP-2, Kosmos-2)."""
    count = getattr(model.config, "num_query_tokens", getattr(model.config, "latent_query_num", None))
    if not count:
        return
    token = getattr(model.config, "image_token_index", None) or 9
    ids = torch.tensor([[5, 6, *[token] * count, 17, 33, 8]])
    places = (ids == token).long()
    own = {"image_embeds_position_mask": places, "qformer_input_ids": ids[:, :2], "qformer_attention_mask": torch.ones_like(ids[:, :2])}
    taken = signature(model.forward).parameters
    yield Given({"input_ids": ids, "attention_mask": torch.ones_like(ids), **{name: of for name, of in own.items() if name in taken}, **pixels}, "image")
