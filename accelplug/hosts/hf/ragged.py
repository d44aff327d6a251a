"""Batches whose rows advance apart: each keeps what it accepted itself, and leaves when it is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, StopStringCriteria

from accelplug._errors import HostError
from accelplug.hooks.drafting import IntArray
from accelplug.hosts.hf.columns import Columns
from accelplug.hosts.hf.compat import cache_argument, cache_name
from accelplug.hosts.hf.forward import Forward
from accelplug.hosts.hf.given import PER_STEP, PREFILL, has_virtual_tokens
from accelplug.hosts.hf.layers import growing, is_recurrent
from accelplug.hosts.hf.masks import unfit_for_own_masks
from accelplug.hosts.hf.processors import is_prefix_pure
from accelplug.hosts.hf.request import Requests
from accelplug.hosts.hf.tree import Tree
from accelplug.hosts.hf.verify import Verdict, Walk

if TYPE_CHECKING:
    from accelplug.hosts.hf.session import Session

_STOPS = (EosTokenCriteria, MaxLengthCriteria, StopStringCriteria)
_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)


def obstacle_to_ragged(model: Any, processors: Any, criteria: Any, model_kwargs: dict[str, Any], *, whole: bool) -> str | None:
    """Return what in a ``generate()`` call would come out otherwise if its rows advanced apart, or None.

    :param whole: the model reads the whole text at every step.
    """
    strange = [thing for thing in processors if not is_prefix_pure(thing)] + [thing for thing in criteria if type(thing) not in _STOPS]
    if strange:
        return f"{type(strange[0]).__name__}, which may look at the batch as a whole"
    kinds = {type(thing) for thing in criteria}
    if StopStringCriteria in kinds and EosTokenCriteria not in kinds:
        return "stop strings without an EOS token, since rows that stopped then go on until all have"
    for_all = {name for name, value in model_kwargs.items() if isinstance(value, Tensor) and name not in PER_STEP - {"token_type_ids"}}
    if whole:
        for_all |= {name for name in PREFILL if model_kwargs.get(name) is not None}
    if for_all:
        return f"{min(for_all)}, which the model is given for all rows at once"
    if has_virtual_tokens(model):
        return "virtual tokens before the prompts, which PEFT counts for all rows at once"
    if model.config.is_encoder_decoder:
        return "an encoder-decoder model"
    return None if whole else _unfit_for_holes(model, model_kwargs)


def _unfit_for_holes(model: Any, model_kwargs: dict[str, Any]) -> str | None:
    """Return why rows cannot share a cache in which each has columns of its own, or None where they can."""
    cache: Any = model_kwargs.get(cache_argument(model))
    if unfit := unfit_for_own_masks(model):
        return unfit
    if is_recurrent(model, cache):
        return "recurrent layers, whose state has no room for what a row rejected while another kept it"
    if not all(type(layer) in _LAYERS for layer in cache.layers):
        return "a cache that is not dynamic"
    return "positions that the model counts itself" if model_kwargs.get("position_ids") is None else None


def has_windows_to_keep(cache: Any, max_length: int) -> bool:
    """Whether a layer would drop what lies behind its window, and so save memory, before `max_length` tokens."""
    return cache is not None and any(layer.is_sliding and layer.sliding_window < max_length for layer in growing(cache).layers)


def choose_batches(session: Session, requests: Requests, obstacle: str | None, drawback: str | None) -> Requests | Rows:
    """Decide how the rows of a call advance, and say so in the session's statistics.

    :param obstacle: what forbids that they advance apart.
    :param drawback: what speaks against it where the user has not asked for it.
    :raises HostError: the user asked for what is forbidden.
    """
    if requests.count == 1:
        return requests
    if session.batches == "ragged" and obstacle:
        raise HostError(f"batches='ragged' does not run with {obstacle}; leave batches at 'auto'")
    if session.batches == "lockstep":
        obstacle = "batches='lockstep'"
    elif session.batches == "auto" and not obstacle:
        obstacle = drawback
    session.stats.batches = "lockstep" if obstacle else "ragged"
    session.stats.lockstep_because = obstacle
    return requests if obstacle else Rows(requests)


class Rows:
    """The rows of one call, each a batch of its own with its own length, in the memory of all."""

    def __init__(self, whole: Requests) -> None:
        self.whole, self.parts = whole, whole.apart()
        self.count, self.tokens = whole.count, whole.tokens
        self.room, self.inputs, self.own = whole.room, whole.inputs, whole.own
        self.passed = self.active = list(range(whole.count))  # in the last forward pass, and not over

    @property
    def num_over(self) -> int:
        """How many rows are over."""
        return self.count - len(self.active)

    @property
    def generated(self) -> int:
        """How many tokens all rows have committed."""
        return sum(part.generated for part in self.parts)

    def is_over(self, row: int) -> bool:
        """Whether the row has stopped."""
        return row not in self.active

    def lengths(self, rows: IntArray) -> IntArray:
        """Return how many tokens these rows have, [num_rows]."""
        return np.array([self.parts[row].length for row in rows.tolist()])

    def budgets(self, lengths: IntArray | int) -> IntArray | int:
        """Return how many nodes fit behind rows of these lengths, the target model's own token left room."""
        return self.room - lengths - 1

    def places(self, rows: IntArray) -> IntArray:
        """Return which rows of the last forward pass's logits are these rows', [num_rows]."""
        return np.searchsorted(self.passed, rows)

    def with_padding(self, trees: list[Tree]) -> list[Tree]:
        """Return the trees: rows that are over need no padding."""
        return trees

    def last(self) -> list[int]:
        """Return every row's last committed token."""
        return [int(part.tokens[0, part.length - 1]) for part in self.parts]

    def verify(self, walk: Walk, logits: Tensor, trees: Sequence[Tree]) -> Verdict:
        """Commit what the step's `logits` [active rows, 1 + num_nodes, vocab_size] allow, row by row."""
        verdicts = walk.apart(logits, [trees[row] for row in self.active], [self.parts[row] for row in self.active])
        decided = dict(zip(self.active, verdicts, strict=True))
        self.passed = self.active
        self.active = [row for row, verdict in decided.items() if not verdict.done]
        return Verdict(
            [decided[row].paths[0] if row in decided else [] for row in range(self.count)],
            emitted=max(verdict.emitted for verdict in verdicts),
            lossy=sum(verdict.lossy for verdict in verdicts),
            done=not self.active,
        )

    def sequences(self) -> Tensor:
        """Return prompts and outputs as ``generate()`` returns them, padded behind rows that ended early, [count, length]."""
        length = max(part.length for part in self.parts)
        for part in self.parts:
            part.tokens[0, part.length : length] = self.whole.pad_token_id
        return torch.from_numpy(self.tokens[:, :length].copy()).to(self.whole.device)


class Ragged(Forward):
    """The target model with a cache whose columns are other positions in every row.

    A step adds the same columns to all rows. What a row did not accept while another did stays as a hole that no token
    attends to, until enough holes are closed at once. Layers with windows keep everything and are masked instead.
    """

    def __init__(self, model: Any, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any], rows: Rows) -> None:
        if any(layer.is_sliding for layer in model_kwargs[cache_name()].layers):
            model_kwargs[cache_name()] = DynamicCache(offloading=model_kwargs[cache_name()].offloading)
        super().__init__(model, input_ids, generation_config, model_kwargs)
        self.rows, self.batch = rows, list(range(rows.count))  # the rows in the cache, in its order
        self.columns = Columns(self.device, self.cache)
        self.columns.positions = torch.arange(self.cached, device=self.device).expand(rows.count, -1)
        padding = self.masks.padding
        self.columns.valid = torch.ones_like(self.columns.positions, dtype=torch.bool) if padding is None else padding.bool()
        self.used: list[int] = self.columns.valid.sum(1).tolist()  # columns that each row has
        self.ends = [self.cached] * rows.count  # the position of each row's next token, left padding counted

    def step(self, last_tokens: Sequence[int], trees: Sequence[Tree]) -> Tensor:
        """Run the active rows' last committed tokens and draft nodes; return logits [active rows, 1 + most nodes, vocab_size]."""
        self._leave()
        own = [trees[row] for row in self.batch]
        # Padding behind a row's drafts lies one ahead: further on it could pass the end of a learned table of positions.
        self.ahead = self._next() + self._depths(own, 1 + max(map(len, own)))
        return super().step([last_tokens[row] for row in self.batch], own)

    def _mask(self, trees: Sequence[Tree], _width: int, _depths: Tensor | None) -> Any:
        return self.masks.holed(trees, self.columns, self.ahead)

    def _positions(self, _width: int, _depths: Tensor | None) -> dict[str, Tensor]:
        assert self.position_offset is not None
        return {"position_ids": self.position_offset + self.ahead}

    def _next(self) -> Tensor:
        return torch.tensor(self.ends, device=self.device).unsqueeze(1)

    def commit(self, trees: Sequence[Tree], paths: Sequence[Sequence[int]], kept: int) -> None:
        """Keep the last committed token and each active row's accepted path; drop the rest, and the rows that are over."""
        width = 1 + max(len(trees[row]) for row in self.batch)
        self._leave()
        if not self.batch:
            return
        slots = [[0, *(node + 1 for node in paths[row][:kept])] for row in self.batch]
        most = max(map(len, slots))
        if any(own != list(range(len(own))) for own in slots):
            self._gather([own + [0] * (most - len(own)) for own in slots], width)
        self._crop(width - most)
        sizes, new = torch.tensor([[len(own)] for own in slots], device=self.device), torch.arange(most, device=self.device)
        self.columns.append(new < sizes, self._next() + new)
        self.used = [used + len(own) for used, own in zip(self.used, slots, strict=True)]
        self.ends = [end + len(own) for end, own in zip(self.ends, slots, strict=True)]
        self.columns.close_holes(max(self.used))

    def _leave(self) -> None:
        """Take the rows that are over out of the cache: from here on they cost nothing."""
        if len(self.batch) == len(self.rows.active):
            return
        stay = [i for i, row in enumerate(self.batch) if not self.rows.is_over(row)]
        self.batch, self.used, self.ends = ([old[i] for i in stay] for old in (self.batch, self.used, self.ends))
        self.columns.keep_rows(stay)
        if self.position_offset is not None and self.position_offset.shape[-2] > 1:
            self.position_offset = self.position_offset.index_select(-2, torch.tensor(stay, dtype=torch.long, device=self.device))
