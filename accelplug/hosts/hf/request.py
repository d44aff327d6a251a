"""The rows of one ``generate()`` call: their committed tokens, and the conditions that stop them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList

from accelplug._errors import HostError
from accelplug.hooks.drafting import IntArray
from accelplug.hosts.hf.device import upload
from accelplug.hosts.hf.tree import Tree

if TYPE_CHECKING:
    from accelplug.hosts.hf.verify import Verdict, Walk


class Requests:
    """Committed tokens, in host memory for drafters and on the device for processors and stopping criteria.

    Rows advance together, as in plain ``generate()``: one length for all, finished rows go on with padding.
    """

    def __init__(self, input_ids: Tensor, criteria: StoppingCriteriaList, *, max_length: int, pad_token_id: int, on_device: bool) -> None:
        self.count, self.prompt_length = input_ids.shape
        self.numbers = range(self.count)  # which rows of the call these are
        self.length = self.prompt_length
        self.max_length, self.pad_token_id = max_length, pad_token_id
        self.room = max_length  # how many tokens a row and its drafts may come to, one more from the target included
        self.most_drafts: int | None = None  # how many drafts the cache can take back, None for any number
        self.has_doubling_widths = False  # whether steps are padded to powers of two
        fast = (EosTokenCriteria, MaxLengthCriteria)
        self.others = StoppingCriteriaList([criterion for criterion in criteria if type(criterion) not in fast])
        self.eos = {token for c in criteria if type(c) is EosTokenCriteria for token in c.eos_token_id.flatten().tolist()}
        self.is_padded = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
        self.finished = [False] * self.count
        self.num_finished = 0
        self.generated = 0  # tokens committed, without padding
        self.inputs: list[IntArray] | None = None  # what an encoder was given, [count] of [length]
        self.own: npt.NDArray[np.bool_] | None = None  # which of the prompts' tokens are no padding; None: all
        self.tokens = np.zeros((self.count, max(max_length, self.length) + 1), dtype=np.int64)
        self.tokens[:, : self.length] = input_ids.cpu().numpy()
        shared = torch.from_numpy(self.tokens)
        self.device = input_ids.device
        self.is_shared = self.device.type == "cpu"
        self.buffer = shared if self.is_shared else shared.to(self.device) if on_device or self.others else None

    def ids(self) -> Tensor:
        """Return the committed tokens, [count, length], on the device."""
        assert self.buffer is not None
        return self.buffer[:, : self.length]

    def last(self) -> list[int]:
        """Return every row's last committed token."""
        tokens: list[int] = self.tokens[:, self.length - 1].tolist()
        return tokens

    @property
    def active(self) -> list[int]:
        """The rows that are not over."""
        return [row for row in range(self.count) if not self.is_over(row)]

    def places(self, rows: IntArray) -> IntArray:
        """Return which rows of the last forward pass's logits are these rows', [num_rows]."""
        return rows

    def with_padding(self, trees: list[Tree]) -> list[Tree]:
        """Draft padding for the rows that are over, as long as the longest draft, so that they hold up nobody."""
        if self.num_over:
            padding = Tree([self.pad_token_id] * max(map(len, trees)))
            trees = [padding if self.is_over(row) else tree for row, tree in enumerate(trees)]
        return trees

    def lengths(self, _rows: IntArray) -> IntArray | int:
        """Return how many tokens these rows have, [num_rows], or one number where all have the same."""
        return self.length

    def check_room(self) -> None:
        """Refuse to go on where a cache of fixed size is full, which Transformers leaves to the layer that overflows.

        :raises HostError: naming its size.
        """
        if self.length >= self.room:
            raise HostError(
                f"the static cache is full: it has {self.room - 1} slots, and prompt and answer need more; make it as long as both may become, "
                "or lower max_new_tokens"
            )

    def budgets(self, _lengths: IntArray | int) -> IntArray | int:
        """Return how many nodes fit behind rows of these lengths. One less than the room left, since the target model
        adds a token itself: no cache row that plain decoding lacks.
        """
        budget = self.room - self.length - 1
        if self.most_drafts is not None:
            budget = min(budget, self.most_drafts)
        # Padded to a power of two, the step must still fit.
        return (1 << (budget + 1).bit_length() - 1) - 1 if self.has_doubling_widths and budget > 0 else budget

    def verify(self, walk: Walk, logits: Tensor, trees: Sequence[Tree]) -> Verdict:
        """Commit what the step's `logits` [count, 1 + num_nodes, vocab_size] allow, the same number of tokens in every row."""
        return walk(logits, trees, self)

    def apart(self) -> list[Requests]:
        """Return every row as a batch of its own, in the same memory."""
        rows = [copy.copy(self) for _ in range(self.count)]
        for i, row in enumerate(rows):
            row.count, row.numbers, row.finished, row.tokens = 1, range(i, i + 1), [False], self.tokens[i : i + 1]
            row.buffer = None if self.buffer is None else self.buffer[i : i + 1]
        return rows

    def is_over(self, row: int) -> bool:
        """Whether the row only goes on as padding."""
        return self.is_padded and self.finished[row]

    @property
    def num_over(self) -> int:
        """How many rows only go on as padding."""
        return self.num_finished if self.is_padded else 0

    def append(self, tokens: Sequence[int], scores: Any) -> bool:
        """Commit one token per row, padding for finished ones; return whether every row is finished."""
        self.tokens[:, self.length] = tokens
        self.generated += self.count - self.num_over
        if self.num_over:
            self.tokens[self.finished, self.length] = self.pad_token_id
        if self.buffer is not None and not self.is_shared:
            self.buffer[:, self.length] = upload(torch.from_numpy(self.tokens[:, self.length]), self.device)
        self.length += 1
        if not self.eos.isdisjoint(tokens):
            self._finish([token in self.eos for token in tokens])
        if self.others:
            self._finish(self.others(self.ids(), None if scores is None else tuple(scores)).tolist())
        return self.length >= self.max_length or self.num_finished == self.count

    def _finish(self, stopped: Sequence[bool]) -> None:
        self.finished = [over or stop for over, stop in zip(self.finished, stopped, strict=True)]
        self.num_finished = sum(self.finished)

    def sequences(self) -> Tensor:
        """Return prompts and outputs as ``generate()`` returns them, [count, length]."""
        return torch.from_numpy(self.tokens[:, : self.length].copy()).to(self.device)


def own_tokens(input_ids: Tensor, mask: Tensor | None) -> npt.NDArray[np.bool_] | None:
    """Return which of the prompts' tokens are no padding, bool [count, prompt length]; None where all are.

    :param mask: [count, length], 0 where padded; it may begin with a cache's tokens, and without ids it is of embeddings.
    """
    if mask is None or mask.ndim != 2 or not 0 < input_ids.shape[1] <= mask.shape[1]:
        return None
    own: npt.NDArray[np.bool_] = mask[:, -input_ids.shape[1] :].bool().cpu().numpy()
    return None if own.all() else own


def encoder_tokens(inputs: Tensor | None, mask: Tensor | None, count: int) -> list[IntArray] | None:
    """Return the tokens that an encoder was given for each of `count` rows, without padding; None where it reads no tokens.

    :param inputs: [num_prompts, length]; each prompt has `count` / `num_prompts` rows, one after the other.
    :param mask: [count, length], 0 where padded.
    """
    if inputs is None or inputs.ndim != 2 or inputs.is_floating_point() or (inputs < 0).any():
        return None  # generate() stands in -100 for a prompt that was encoded before
    ids = inputs.repeat_interleave(count // len(inputs), 0).cpu()
    kept = torch.ones_like(ids) if mask is None else mask.cpu()
    return [row[keep.bool()].numpy() for row, keep in zip(ids, kept, strict=True)]
