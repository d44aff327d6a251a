"""Attentions and hidden states that a caller of ``generate()`` asks for, one entry for each generated token as in plain decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer, StaticLayer

if TYPE_CHECKING:
    from accelplug.hosts.hf.forward import Forward
    from accelplug.hosts.hf.whole import Whole


class Inside:
    """What a call is to return of the model's inside, by the name of the model's output; nothing where it asks for nothing."""

    def __init__(self, config: Any, *, is_encoder_decoder: bool) -> None:
        side = "decoder_" if is_encoder_decoder else ""
        wanted = config.return_dict_in_generate
        of_attention = [f"{side}attentions", *(["cross_attentions"] if side else [])]
        names = [*(of_attention if config.output_attentions else []), *([f"{side}hidden_states"] if config.output_hidden_states else [])]
        self.found: dict[str, list[Any]] = {name: [] for name in (names if wanted else [])}

    def add(self, forward: Forward | Whole, paths: Sequence[Sequence[int]], count: int, *, is_prompt: bool) -> None:
        """Add the last forward pass's entries: one of the whole prompt, or one for each of the `count` tokens committed of it."""
        outputs = forward.outputs
        if not self.found or outputs is None:
            return
        slots = torch.tensor(forward.slots(paths, count - 1))
        for name, entries in self.found.items():
            layers = outputs.get(name)
            if is_prompt or layers is None:
                entries.extend([layers] * (1 if is_prompt else count))
                continue
            entries.extend(forward.inside(name, layers, slots[:, :end]) for end in range(slots.shape[1] - count + 1, slots.shape[1] + 1))

    def returned(self, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return what goes into the output of ``generate()``; an encoder's were made before the prompt was read."""
        result: dict[str, Any] = {name: tuple(entries) for name, entries in self.found.items()}
        encoded = model_kwargs.get("encoder_outputs") or {}
        for name in [name for name in result if name.startswith("decoder_")]:
            result[name.replace("decoder_", "encoder_")] = encoded.get(name.removeprefix("decoder_"))
        return result


def of_token(name: str, states: Tensor | None, layer: Any, slots: Tensor, cached: int) -> Tensor | None:
    """Return what one layer has of the token in each row's last slot, as if it had been read alone behind those in the slots before.

    :param states: [count, width, size], or of attention [count, heads, width, length].
    :param layer: the part of the cache that the attention has read.
    :param slots: int64 [count, tokens read].
    """
    if states is None:
        return None
    slots = slots.to(states.device)
    rows = torch.arange(len(slots), device=states.device)
    if states.ndim == 3:
        return states[rows, slots[:, -1]].unsqueeze(1)
    weights = states[rows, :, slots[:, -1]]  # [count, heads, length]
    if name == "cross_attentions":
        return weights.unsqueeze(2)
    width, length = states.shape[2:]
    room = layer.max_cache_len if isinstance(layer, StaticLayer) else 0  # a static layer has columns for tokens that are to come
    window = room or (layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else length)
    past = cached if cached + width <= room else length - width
    columns = torch.cat([torch.arange(past, device=states.device).expand(len(slots), -1), past + slots], 1)
    columns = columns[:, -window:].unsqueeze(1).expand(-1, weights.shape[1], -1)
    return torch.nn.functional.pad(weights.gather(2, columns), (0, max(0, room - columns.shape[2]))).unsqueeze(2)


def of_text(name: str, states: Tensor | None, slots: Tensor, length: int) -> Tensor | None:
    """Return what one layer has of the text and of each row's slots behind it, as if a forward pass had ended there.

    :param states: of a pass over the text and all its slots, [count, length + width, size], or of attention [count, heads, length + width, keys].
    :param slots: int64 [count, tokens read], counted from behind the text.
    :param length: of the text.
    """
    if states is None:
        return None
    slots = slots.to(states.device)
    places = torch.cat([torch.arange(length, device=states.device).expand(len(slots), -1), length + slots], 1)
    if states.ndim == 3:
        return states.gather(1, places.unsqueeze(2).expand(-1, -1, states.shape[2]))
    rows = states.gather(2, places[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))
    return rows if name == "cross_attentions" else rows.gather(3, places[:, None, None].expand(-1, *rows.shape[1:3], -1))
