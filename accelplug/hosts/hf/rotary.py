"""Rotary positions whose frequencies depend on how far a forward pass reads: drafts read further than plain ``generate()`` has come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelplug._errors import HostError


def check_rotary(model: Any, config: Any, model_kwargs: dict[str, Any]) -> None:
    """Refuse a call on whose way the frequencies change; Phi-3 drops its cache there besides.

    :raises HostError: naming the length at which they do.
    """
    positions = model_kwargs.get("position_ids")
    prompt = 0 if positions is None or not positions.numel() else int(positions.max()) + 1
    for kind, length in _changing(model):
        # The last token is not read. Behind that length "longrope" changes once, "dynamic" with each token.
        if config.max_length - 1 > length and (kind == "dynamic" or prompt <= length):
            raise HostError(
                f"{type(model).__name__} changes its rotary positions ({kind}) behind {length} tokens, for all that a forward pass reads, "
                f"so that drafts change its output; ask for at most {length} tokens, prompt and answer together"
            )


def _changing(model: Any) -> Iterator[tuple[str, int]]:
    """Yield the kinds of rotary positions that change, and behind how many tokens."""
    for module in model.modules():
        kinds, given = getattr(module, "rope_type", None), getattr(getattr(module, "config", None), "rope_parameters", None)
        if not isinstance(given, dict):
            continue
        pairs: list[tuple[Any, Any]] = [(kind, given.get(layer)) for layer, kind in kinds.items()] if isinstance(kinds, dict) else [(kinds, given)]
        for kind, own in pairs:
            if kind == "longrope":
                yield kind, int(own["original_max_position_embeddings"])
            elif kind == "dynamic":
                yield kind, int(module.original_max_seq_len)
