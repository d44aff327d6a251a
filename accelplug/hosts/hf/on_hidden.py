"""Transformers' candidate generators that read the target's hidden states (MTP, DFlash), told what Transformers' own loop would tell them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import takewhile
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from accelplug._errors import HostError
from accelplug.hooks.drafting import IntArray
from accelplug.hosts.hf.loading import loaded_beside


class OnHidden:
    """Makes such generators: one for each request, with a cache of its own and the draft model's weights in common.

    :param unused: a generator that has drafted nothing yet.
    :ivar layers: the target's layers whose hidden states they read, counted from 0, -1 for the last.
    """

    def __init__(self, unused: Any) -> None:
        self.unused = unused
        wanted = getattr(unused, "target_layer_ids", None)
        if wanted is None:
            self.places = {-1: -1}
        else:  # releases that pass on what it asks for as its layers do not count the embeddings before them
            begin = 0 if unused.model_kwargs_overrides["output_hidden_states"] == wanted else 1
            self.places = {layer: begin + layer for layer in wanted}
        self.layers = frozenset(self.places)

    def __call__(self, _ids: Tensor) -> Reading:
        """Return a generator for one request."""
        shared = {id(part): part for part in vars(self.unused).values() if isinstance(part, nn.Module)}
        return Reading(copy.deepcopy(self.unused, shared), self.places)


class Reading:
    """One request's generator, and what it has not been told yet.

    :param places: layer -> where the generator looks for it among a forward pass's hidden states.
    """

    def __init__(self, generator: Any, places: Mapping[int, int]) -> None:
        self.generator, self.places = generator, places
        self.depth = int(getattr(generator, "num_mtp_layers", 1))  # layers whose caches hold what the ones before them drafted
        self.num_read = 0
        self.unread: list[Mapping[int, Tensor]] = []
        self.drafted: list[int] = []
        self.came: list[int] = []  # in place of what it drafted

    def read(self, history: IntArray, states: Mapping[int, Tensor]) -> None:
        """Take in the request's tokens, [length], and the hidden states of those that were committed, layer -> [num_read, hidden_size].

        The generator is told of them when it is to draft.
        """
        self.unread.append(states)
        self.came = history[self.num_read + 1 :].tolist() if self.num_read else []

    def get_candidates(self, ids: Tensor) -> tuple[Tensor, None]:
        """Return the request's tokens, [1, length], with the candidates behind them, in host memory."""
        candidates, end = ids, ids.shape[1] - 1
        if self.num_read or end >= self.depth:  # with fewer, what was drafted wrongly could not be taken back
            states = {place: torch.cat([told[layer] for told in self.unread]) for layer, place in self.places.items()}
            for count in list(self._counts(end - self.num_read)):
                candidates = self._ask(ids, states, count, end)
            self.unread = []
        candidates = candidates.cpu()
        self.drafted = candidates[0, end + 1 :].tolist()
        return candidates, None

    def _counts(self, unread: int) -> Iterator[int]:
        """Yield how many tokens to tell the generator of at a time: first those it drafted itself and the next one.

        Of others it had drafted something else, so they come in so few that it takes its drafts for rejected.
        """
        if not self.num_read or self.depth == 1:
            yield unread
            return
        right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.drafted, self.came, strict=False)))
        first = min(right + 1, unread)
        yield first
        yield from (min(self.depth - 1, unread - told) for told in range(first, unread, self.depth - 1))

    def _ask(self, ids: Tensor, states: Mapping[int, Tensor], count: int, end: int) -> Tensor:
        """Tell the generator of the next `count` of the tokens before `end`, and of the one behind them; return its candidates behind that."""
        begin = next(iter(states.values())).shape[0] - (end - self.num_read)
        self.num_read += count
        text = ids[:, : self.num_read + 1]
        given = {"position_ids": torch.arange(text.shape[1], device=ids.device)[None], "attention_mask": torch.ones_like(text)}
        outputs = SimpleNamespace(hidden_states={place: rows[None, begin : begin + count] for place, rows in states.items()})
        candidates: Tensor = self.generator.get_candidates(
            text, model_kwargs=given, model_outputs=outputs, is_first_iteration=False, n_last_matches=count - 1
        )[0]
        return candidates


def check_made(model: Any, name: str, make: Any) -> Any:
    """Return the generator that `make` makes.

    :raises HostError: the model has none of this name, or Transformers does not.
    """
    if name == "mtp" and getattr(model.config.get_text_config(), "num_mtp_layers", None) and not model.config.name_or_path:
        raise HostError(f"MTP layers are read from the checkpoint, and this {type(model).__name__} was not loaded from one; load it by from_pretrained()")
    try:
        made = make()
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as exc:
        reason = " ".join(str(exc).split()).rstrip(".")
        raise HostError(f"Transformers makes no {name!r} generator for {type(model).__name__}: {reason:.300}; use another drafter") from exc
    if not getattr(made, "requires_model_outputs", False):
        raise HostError(f"this release of Transformers has no {name!r} generator; use a later one, or another drafter")
    return made


def dflash_model(given: Any, target: Any) -> Any:
    """Return the draft model of DFlash, loaded in the target's dtype and to its device if it is a folder or a name on the hub.

    :raises HostError: it cannot be loaded, is no such model, or is one for another target.
    """
    model = loaded_beside(target, AutoModel, given, "DFlash drafter") if isinstance(given, str) else given
    config: Any = getattr(model, "config", None)
    text = target.config.get_text_config(decoder=True)
    if missing := [name for name in ("target_layer_ids", "block_size", "mask_token_id") if not hasattr(config, name)]:
        raise HostError(f"generator='dflash' drafts with a model whose config has {missing[0]}, got {given!r:.60}; give model= a DFlash drafter")
    if config.hidden_size != text.hidden_size or config.mask_token_id >= text.vocab_size:
        raise HostError(
            f"the DFlash drafter {type(model).__name__} has hidden size {config.hidden_size} and mask token {config.mask_token_id}, and "
            f"{type(target).__name__} has hidden size {text.hidden_size} and {text.vocab_size} tokens; use the drafter that was made for this model"
        )
    return model
