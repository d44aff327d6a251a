"""Probabilities that drafts were drawn from, from a drafter in host memory to vLLM's rejection sampler in the step that verifies them.

V1 is handed one row for every draft of a step (its `_get_spec_decode_draft_probs`); V2 keeps logits by slot and place (`draft_logits` of its
speculator), which it divides by each request's temperature. A draft that was chosen and not drawn has all probability on itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from vllm.utils.torch_utils import async_tensor_h2d

from accelplug.hooks.drafting import ROOT, Drafts, IntArray


class Drawn:
    """The rows of each request's last drafts, kept until those are verified.

    Under a grammar there are none: which drafts stay depends on what was drawn, so those that stay have another distribution than the
    drafter's. As chosen ones they are verified exactly, whatever they came from.

    :ivar rows: request id -> [num_drafts, vocab_size], of requests with a drawn draft.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.rows: dict[str, Tensor] = {}
        self._under_grammars: set[str] = set()

    def begin(self, req_id: str, params: Any) -> None:
        """Look whether a request has a grammar.

        :param params: vLLM's SamplingParams.
        """
        if getattr(params, "structured_outputs", None) is not None:
            self._under_grammars.add(req_id)

    def end(self, req_ids: set[str]) -> None:
        """Forget requests; unknown ones are passed over."""
        self._forget(req_ids)
        self._under_grammars -= req_ids

    def keep(self, req_ids: Sequence[str], drafts: Drafts | None) -> None:
        """Remember what these requests' drafts were drawn from, and forget what was before; None: nothing was drafted."""
        self._forget(req_ids)
        if drafts is None or drafts.rows is None or drafts.row_ids is None:
            return
        for req_id, (begin, end) in zip(req_ids, itertools.pairwise(drafts.offsets.tolist()), strict=True):
            row_ids = drafts.row_ids[begin:end]
            if req_id not in self._under_grammars and (row_ids != ROOT).any():
                self.rows[req_id] = _of_each(drafts.tokens[begin:end], row_ids, drafts.rows)

    def of_step(self, req_ids: Sequence[str], tokens: Tensor, counts: Sequence[int]) -> Tensor | None:
        """Return the rows of a step's drafts, [num_drafts, vocab_size]; None where none was drawn.

        :param tokens: the drafts of all requests in one row, [num_drafts].
        :param counts: how many of them are each request's, fewer than it drafted where the engine left some out.
        """
        if not any(counts) or self.rows.keys().isdisjoint(req_ids):
            return None
        found = one_hot(tokens.long(), self.vocab_size).float()
        begin = 0
        for req_id, count in zip(req_ids, counts, strict=False):
            if (rows := self.rows.get(req_id)) is not None:
                found[begin : begin + count].copy_(rows[:count], non_blocking=True)
            begin += count
        return found

    def rows_at(self, req_ids: Sequence[str]) -> dict[int, Tensor]:
        """Return the rows of those of the requests that have any, by their place."""
        return {i: self.rows[req_id] for i, req_id in enumerate(req_ids) if req_id in self.rows}

    def _forget(self, req_ids: Iterable[str]) -> None:
        for req_id in req_ids:
            self.rows.pop(req_id, None)


def _of_each(tokens: IntArray, row_ids: IntArray, rows: Tensor) -> Tensor:
    """Return a row for each of a chain's drafts, [num_drafts, vocab_size], without waiting for the device that `rows` are on."""
    found = rows[async_tensor_h2d(row_ids.clip(min=0), rows.device)].float()
    if len(chosen := np.flatnonzero(row_ids == ROOT)):
        places, likely = async_tensor_h2d(np.stack([chosen, tokens[chosen]]), rows.device)
        found.index_fill_(0, places, 0.0)
        found[places, likely] = 1.0
    return found


def hand_over(runner: Any, drawn: Drawn) -> None:
    """Have V1's runner take a plugin's rows for those of its drafts."""

    def probabilities(spec_decode_metadata: Any) -> Tensor | None:
        return drawn.of_step(runner.input_batch.req_ids, spec_decode_metadata.draft_token_ids, spec_decode_metadata.num_draft_tokens)

    runner._get_spec_decode_draft_probs = probabilities


class DraftLogits:
    """What V2 reads: the logits from which, at each request's temperature, its drafts have their probabilities.

    :ivar tensor: [num_slots, num_tokens, vocab_size] float32.
    :ivar temperature: of every slot, [num_slots]; 0 for greedy requests, whose drafts are only compared.
    """

    def __init__(self, num_slots: int, num_tokens: int, vocab_size: int, temperature: Tensor) -> None:
        self.temperature = temperature
        self.tensor = torch.zeros(num_slots, num_tokens, vocab_size, device=temperature.device)
        self._places = torch.arange(num_tokens, device=temperature.device)

    def lay(self, slots: Tensor, tokens: Tensor, rows: Mapping[int, Tensor]) -> None:
        """Write what these slots' drafts have: those of `rows` what they were drawn from, all others all probability.

        :param slots: [num_reqs] int64.
        :param tokens: [num_reqs, num_tokens] int64, with padding.
        :param rows: place in `slots` -> [num_drafts, vocab_size], of its first drafts.
        """
        self.choose(slots, tokens)
        if rows:
            self._draw(slots, rows)

    def choose(self, slots: Tensor, tokens: Tensor) -> None:
        """Give each of these slots' drafts all probability; parameters as for `lay`."""
        self.tensor.index_fill_(0, slots, -torch.inf)
        self.tensor[slots.unsqueeze(1), self._places, tokens] = 0.0

    def _draw(self, slots: Tensor, rows: Mapping[int, Tensor]) -> None:
        device = self.tensor.device
        counts = [(place, draft) for place, own in rows.items() for draft in range(len(own))]
        places, drafts = async_tensor_h2d(np.array(counts, dtype=np.int64).T.copy(), device)
        at = slots[places]
        scale = self.temperature[at].unsqueeze(1)
        given = torch.cat([own.to(device, non_blocking=True) for own in rows.values()])
        self.tensor[at, drafts] = given.log() * scale.where(scale > 0, 1.0)
