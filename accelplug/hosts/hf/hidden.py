"""The target's hidden states, for drafters that read them: asked of each forward pass, and shown once for each committed token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from accelplug._errors import HostError
from accelplug.hosts.hf.compat import counts_embeddings
from accelplug.hosts.hf.device import upload
from accelplug.hosts.hf.forward import is_compiled
from accelplug.hosts.hf.whole import reads_whole

if TYPE_CHECKING:
    from accelplug.hooks.registry import Technique


class Hidden:
    """What one session's drafter is shown of the model's layers.

    :param layers: as the drafter's traits name them.
    :raises HostError: the model has no such layers, or its decoder is not the whole of it.
    """

    def __init__(self, who: Technique, layers: Collection[int], model: Any) -> None:
        self.who, self.name, self.count = who, type(model).__name__, int(model.config.get_text_config(decoder=True).num_hidden_layers)
        if model.config.is_encoder_decoder:
            raise HostError(f"{who} reads the target's hidden states, and {self.name} is an encoder-decoder model; use another drafter")
        if wrong := [layer for layer in layers if not -self.count <= layer < self.count]:
            raise HostError(f"{who} reads the hidden states of layer {wrong[0]}, and {self.name} has the layers 0 to {self.count - 1}; name others")
        # Passes return all layers or some, the embeddings before them or not, and the last layer last.
        self.places = {layer: layer % self.count - self.count for layer in layers}

    def ask(self, model: Any, config: Any, model_kwargs: dict[str, Any]) -> None:
        """Have the forward passes of a call return the layers' hidden states. Where the caller wants all, they do already.

        :raises HostError: they would not, or not of each token once.
        """
        if reads_whole(model, model_kwargs):
            raise HostError(f"{self.who} reads the target's hidden states, which a model without a cache makes anew with each token; leave use_cache on")
        if is_compiled(model, config, model_kwargs):
            raise HostError(f"{self.who} reads the target's hidden states, which a compiled forward pass does not return; pass disable_compile=True")
        if not model_kwargs.get("output_hidden_states"):
            model_kwargs["output_hidden_states"] = sorted(place + self.count + counts_embeddings() for place in set(self.places.values()))

    def check(self, outputs: Any, length: int) -> None:
        """Refuse what the prefill returned if it has not every token's states.

        :param length: of the prompt.
        :raises HostError: they are missing, or of a part of the prompt.
        """
        every = outputs.get("hidden_states") or ()
        states = [every[place] if -place <= len(every) else None for place in self.places.values()]
        if not all(isinstance(found, Tensor) and found.ndim == 3 for found in states):
            raise HostError(f"{self.who} reads the target's hidden states, which {self.name} does not return as one vector for each token; use another drafter")
        if any(found is not None and found.shape[1] != length for found in states):
            raise HostError(
                f"{self.who} reads the hidden states of the whole prompt, which this call reads in parts, behind a cache or as embeddings; "
                "leave out prefill_chunk_size, the cache, inputs_embeds and prompt tuning"
            )

    def shown(self, outputs: Any, width: int | None, places: Sequence[int], slots: Sequence[Sequence[int]]) -> list[dict[int, Tensor]]:
        """Return each request's states by layer, [num_read, hidden_size], of the last forward pass.

        :param width: how many of the pass's last slots are its own tokens, None for a prompt's, which are all.
        :param places: [num_reqs], the requests' rows in the pass.
        :param slots: of each request, those of its committed tokens, ascending.
        """
        layers = {layer: outputs["hidden_states"][place] for layer, place in self.places.items()}
        before = {layer: 0 if width is None else states.shape[1] - width for layer, states in layers.items()}  # read again in front of a step
        return [
            {layer: _taken(states[row], before[layer], own) for layer, states in layers.items()} for row, own in zip(places, slots, strict=True)
        ]


def _taken(states: Tensor, before: int, slots: Sequence[int]) -> Tensor:
    """Return the states, [width, hidden_size], of some slots behind the first `before`: without a copy where they lie side by side."""
    first, last = slots[0], slots[-1]
    if last - first == len(slots) - 1:
        return states[before + first : before + last + 1]
    return states.index_select(0, upload([before + slot for slot in slots], states.device))
