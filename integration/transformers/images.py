"""Prompts with an image for tiny models: pixels of the shape that the configuration asks for, and the tokens that stand for what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Tensor]
PATCHES = 4
"""How many patches an image has each way; tiny configurations are of this size."""


def with_image(model: Any, seed: int) -> Iterator[Inputs]:
    """Yield what may be a prompt with an image of the right shape, most likely first; nothing for a model that reads none."""
    torch.manual_seed(seed)
    own = OWN.get(model.config.model_type)
    if own is None and not {"pixel_values", "pixel_values_images"} & set(signature(model.forward).parameters):
        return
    for pixels in _common(model) if own is None else [own(model)]:
        if "input_ids" in pixels:
            yield {"attention_mask": torch.ones_like(pixels["input_ids"]), **pixels}
            continue
        yield from _behind_placeholders(model, pixels)
        yield from _behind_queries(model, pixels)
        yield {**pixels, **prompt(7, 1)}
        yield pixels


def prompt(token: int, count: int) -> Inputs:
    """Return a prompt with a token that stands for an image this many times."""
    ids = torch.tensor([[5, 11, *[token] * count, 17, 33, 6]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def twice(given: Inputs) -> Inputs:
    """Return a prompt and its image twice, as rows of a batch."""
    along = {"pixel_values": -1} if "target_sizes" in given else {}
    return {name: torch.cat([of, of.clone()], along.get(name, 0)) for name, of in given.items()}


def vision(config: Any) -> Any:
    """Return the configuration of what reads images."""
    return next((part for name in ("vision_config", "encoder") if (part := getattr(config, name, None)) is not None), config)


def side(config: Any) -> tuple[int, int]:
    """Return how many pixels images and their patches have each way."""
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    patch = patch[0] if isinstance(patch, list | tuple) else patch or 14
    return size[0] if isinstance(size, list | tuple) else size or PATCHES * patch, patch


def square(config: Any) -> Tensor:
    """Return an image, [1, channels, side, side]."""
    return torch.randn(1, getattr(config, "num_channels", None) or 3, *[side(config)[0]] * 2)


def flat(config: Any) -> Tensor:
    """Return an image's patches one by one, [patches, numbers]."""
    patch = side(config)[1]
    times = getattr(config, "temporal_patch_size", None) or getattr(config, "patch_temporal", None) or 1
    return torch.randn(PATCHES**2, 3 * times * patch * patch)


def _common(model: Any) -> Iterator[Inputs]:
    """Yield images as most models take them."""
    part = vision(model.config)
    image, sizes = square(part), torch.tensor([[side(part)[0]] * 2])
    grid = torch.tensor([[1, PATCHES, PATCHES]])
    yield {"pixel_values": image}
    yield {"pixel_values": image, "image_sizes": sizes}
    yield {"pixel_values": image[None], "image_sizes": sizes}
    yield {"pixel_values": image[None]}
    yield {"pixel_values": image.repeat(2, 1, 1, 1)[None], "image_sizes": sizes}
    yield {"pixel_values_images": image}
    yield {"pixel_values": flat(part), "image_grid_thw": grid}
    yield {"pixel_values": flat(part).unflatten(1, (3, side(part)[1], -1)), "image_grid_thw": grid}


def _behind_placeholders(model: Any, pixels: Inputs) -> Iterator[Inputs]:
    """Yield a prompt with as many tokens that stand for the image as the model makes of it."""
    token, count = placeholder(model), vectors(model, pixels, "image")
    if token is None or not count:
        return
    text = prompt(token, count)
    kinds = (text["input_ids"] == token).long()
    taken = signature(model.forward).parameters
    yield {**text, **{name: kinds for name in ("mm_token_type_ids", "token_type_ids") if name in taken}, **pixels}


def placeholder(model: Any) -> int | None:
    """Return the token that stands for an image."""
    of_words = getattr(getattr(model, "model", None), "vocabulary_mapping", None)
    names = ("image_token_id", "image_token_index")
    found = (getattr(part, name, None) for part in (model.config, of_words, vision(model.config)) for name in names)
    return next((token for token in found if isinstance(token, int)), None)


def vectors(model: Any, given: Inputs, kind: str) -> int:
    """Return how many vectors the model makes of an image or of audio, 0 where it does not read it."""
    method = f"get_{kind}_features"
    encode = next((getattr(of, method) for of in (model, model.base_model) if hasattr(of, method)), None)
    if encode is None:
        return 0
    takes = signature(getattr(model.base_model, method, encode)).parameters
    try:
        found = encode(**{name: of for name, of in given.items() if name in takes})
    except Exception:
        return 0
    parts = getattr(found, "pooler_output", None)
    parts = found.last_hidden_state if parts is None else parts
    return sum(part.numel() for part in parts) // int(model.get_input_embeddings().weight.shape[-1])


def _behind_queries(model: Any, pixels: Inputs) -> Iterator[Inputs]:
    """Yield a prompt with as many tokens for the image as the model has queries (BLIP-2, Kosmos-2)."""
    count = getattr(model.config, "num_query_tokens", getattr(model.config, "latent_query_num", None))
    if not count:
        return
    text = prompt(getattr(model.config, "image_token_index", None) or 7, count)
    ids = text["input_ids"]
    places = torch.zeros_like(ids)
    places[:, 2 : 2 + count] = 1
    own = {"image_embeds_position_mask": places, "qformer_input_ids": ids[:, :2], "qformer_attention_mask": torch.ones_like(ids[:, :2])}
    taken = signature(model.forward).parameters
    yield {**text, **{name: of for name, of in own.items() if name in taken}, **pixels}


def _fuyu(model: Any) -> Inputs:
    """Patches are embedded like words."""
    return {"image_patches": torch.randn(1, PATCHES**2, 3 * model.config.patch_size**2), **prompt(model.config.image_token_id, PATCHES**2)}


def _gemma4(model: Any) -> Inputs:
    """Patches come with their places, of which some are pooled together."""
    part = model.config.vision_config
    wide = getattr(part, "model_patch_size", part.patch_size)
    both = torch.cartesian_prod(torch.arange(6), torch.arange(6)).flip(1)[None]
    return {"pixel_values": torch.randn(1, 36, 3 * wide * wide), "image_position_ids": both}


def _phi4(model: Any) -> Inputs:
    """An image is given whole and in crops, here one; rows of either end with a vector of their own."""
    part = model.config.vision_config
    crops = {"image_pixel_values": square(part).repeat(2, 1, 1, 1)[None], "image_attention_mask": torch.ones(1, 2, PATCHES, PATCHES)}
    wide = PATCHES // 2
    return {**crops, "image_sizes": torch.tensor([[side(part)[0]] * 2]), **prompt(part.image_token_id, 2 * wide * (wide + 1) + 1)}


def _t5gemma2(model: Any) -> Inputs:
    part = model.config.encoder
    return {"pixel_values": square(part.vision_config), **prompt(part.image_token_index, part.mm_tokens_per_image)}


def _granite4(model: Any) -> Inputs:
    """An image is given whole and in crops, here one, each made a quarter as many; rows of the crops end with a vector of their own."""
    part, wide = model.config.vision_config, PATCHES // 2
    crops = {"pixel_values": square(part).repeat(2, 1, 1, 1)[None], "image_sizes": torch.tensor([[side(part)[0]] * 2])}
    return {**crops, **prompt(model.config.image_token_index, wide * wide + wide * (wide + 1))}


def _hybrid(model: Any) -> Inputs:
    """An image is given in two sizes."""
    return {"pixel_values": square(model.config.vision_config), "high_res_pixel_values": square(model.config.high_res_vision_config)}


def _deepseek_ocr2(model: Any) -> Inputs:
    return {"pixel_values": square(model.config.vision_config.sam_config)}


def _emu3(model: Any) -> Inputs:
    wide = 4 * model.model.vqmodel.vision_spatial_factor
    return {"pixel_values": torch.randn(1, 3, wide, wide), "image_sizes": torch.tensor([[wide, wide]])}


def _chameleon(model: Any) -> Inputs:
    part = model.config.vq_config
    return {"pixel_values": torch.randn(1, 3, part.resolution, part.resolution)}


def _idefics(model: Any) -> Inputs:
    """Every token says which images it sees."""
    text = prompt(7, 1)
    seen = torch.ones(*text["input_ids"].shape, 1, dtype=torch.long)
    return {**text, "pixel_values": square(model.config.vision_config)[None], "image_attention_mask": seen}


def _mllama(model: Any) -> Inputs:
    """Every token says which tiles of which images it sees; those before the image none."""
    part = model.config.vision_config
    text = prompt(model.config.image_token_index, 1)
    seen = torch.ones(*text["input_ids"].shape, 1, part.max_num_tiles, dtype=torch.long)
    seen[:, :2] = 0
    tiles = torch.tensor([[[1] + [0] * (part.max_num_tiles - 1)]])
    pixels = {"pixel_values": square(part).repeat(part.max_num_tiles, 1, 1, 1)[None, None], "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long)}
    return {**text, **pixels, "aspect_ratio_mask": tiles, "cross_attention_mask": seen}


def _udop(model: Any) -> Inputs:
    """Every token has a box of its own on the page."""
    text = prompt(7, 1)
    corners = torch.arange(text["input_ids"].shape[1])[None, :, None] / 10
    return {**text, "bbox": torch.cat([corners, corners, corners + 0.2, corners + 0.1], -1), "pixel_values": square(model.config)}


def _inkling(model: Any) -> Inputs:
    part = model.config.vision_config
    return {"pixel_values": torch.randn(PATCHES, part.temporal_patch_size, part.patch_size, part.patch_size, part.num_channels)}


def _kosmos(model: Any) -> Inputs:
    """Patches have their row and column before them."""
    places = torch.cartesian_prod(torch.arange(1.0, 1.0 + PATCHES), torch.arange(1.0, 1.0 + PATCHES))
    numbers = torch.randn(PATCHES**2, model.config.vision_config.patch_embed_hidden_size)
    return {"flattened_patches": torch.cat([places, numbers], 1)[None]}


def _pix2struct(model: Any) -> Inputs:
    """The mask is of patches; the decoder writes from its first token on."""
    return {**_kosmos(model), "attention_mask": torch.ones(1, PATCHES**2)}


def _lfm2(model: Any) -> Inputs:
    return {
        "pixel_values": flat(model.config.vision_config)[None],
        "spatial_shapes": torch.tensor([[PATCHES, PATCHES]]),
        "pixel_attention_mask": torch.ones(1, PATCHES**2, dtype=torch.long),
    }


def _minicpm(model: Any) -> Inputs:
    """Patches stand side by side, of which 4 by 4 become one token."""
    patch, wide = side(model.config.vision_config)[1], 2 * PATCHES
    return {"pixel_values": torch.randn(1, 3, patch, wide * wide * patch), "target_sizes": torch.tensor([[wide, wide]], dtype=torch.int32)}


def _nemotron(model: Any) -> Inputs:
    return {"pixel_values": flat(model.config.vision_config), "image_grid_hw": torch.tensor([[PATCHES, PATCHES]])}


def _video_llama(model: Any) -> Inputs:
    grid = {"image_grid_thw": torch.tensor([[1, PATCHES, PATCHES]]), "image_merge_sizes": torch.tensor([2])}
    return {"pixel_values": flat(model.config.vision_config), **grid}


OWN: dict[str, Callable[[Any], Inputs]] = {
    "chameleon": _chameleon,
    "deepseek_ocr2": _deepseek_ocr2,
    "deepseek_vl_hybrid": _hybrid,
    "emu3": _emu3,
    "fuyu": _fuyu,
    "gemma4": _gemma4,
    "gemma4_unified": _gemma4,
    "granite4_vision": _granite4,
    "idefics": _idefics,
    "inkling_mm_model": _inkling,
    "kosmos-2.5": _kosmos,
    "lfm2_vl": _lfm2,
    "minicpmv4_6": _minicpm,
    "minicpmv4_7": _minicpm,
    "mllama": _mllama,
    "nemotron_h_omni": _nemotron,
    "phi4_multimodal": _phi4,
    "pix2struct": _pix2struct,
    "t5gemma2": _t5gemma2,
    "udop": _udop,
    "video_llama_3": _video_llama,
}
"""What else a model's images need, by its type; a prompt too where what stands beside the image is of the prompt's length."""
