"""What tiny models that read sounds are given: a sound alone, or one in a prompt, where as many tokens stand for it as the model makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from typing import Any

import torch
from images import Inputs, prompt, vectors
from tiny import HIDDEN

FRAMES = 200


def with_sound(model: Any, seed: int) -> Iterator[Inputs]:
    """Yield what may be a sound of the right shape, in a prompt where the model reads text beside it; most likely first."""
    torch.manual_seed(seed)
    main = model.main_input_name
    if main in ("input_features", "input_values"):
        yield from ({main: torch.randn(shape)} for shape in _alone(model, main))
    elif (token := getattr(model.config, "audio_token_id", None) or getattr(model.config, "audio_token_index", None)) is not None:
        for sound in _beside_text(model):
            if count := vectors(model, sound, "audio") or sum(of.shape[1] for name, of in sound.items() if "mask" in name) // 4:
                yield {**prompt(token, count), **sound}


def _alone(model: Any, main: str) -> list[tuple[int, ...]]:
    bins = getattr(model.config, "num_mel_bins", getattr(model.config, "input_feat_per_channel", 80))
    places = 2 * getattr(model.config, "max_source_positions", 32)
    return [(1, 4000)] if main == "input_values" else [(1, bins, places), (1, 64, bins), (1, 64, 2 * bins), (1, 64, HIDDEN)]


def _beside_text(model: Any) -> Iterator[Inputs]:
    """Yield sounds, with masks of their frames and without."""
    taken = signature(model.forward).parameters
    if "input_values" in taken:
        yield {"input_values": torch.randn(1, 1, 8 * model.config.acoustic_tokenizer_encoder_config.hop_length)}
        return
    if "audio_input_ids" in taken:
        part = model.config.audio_config
        yield {"audio_input_ids": torch.randint(0, part.mel_vocab_size, (1, 8, part.n_mel_bins))}
        return
    part = next((getattr(model.config, name) for name in ("audio_config", "encoder_config") if hasattr(model.config, name)), None)
    if part is None or "input_features" not in taken:
        return
    bins, most = getattr(part, "num_mel_bins", getattr(part, "input_dim", 80)), 2 * getattr(part, "max_source_positions", FRAMES)
    stacked = bins * getattr(part, "num_stacked_frames", 1)
    masks = [name for name in ("input_features_mask", "feature_attention_mask") if name in taken]
    for frames, shape in ((most, (1, bins, most)), (FRAMES, (1, bins, FRAMES)), (FRAMES, (1, FRAMES, stacked))):
        for names in (masks, []):
            yield {"input_features": torch.randn(shape), **{name: torch.ones(1, frames, dtype=torch.long) for name in names}}
