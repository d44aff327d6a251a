"""A second model beside the target, for drafters: its own cache, chains and trees of drafts, one forward pass a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accelplug._errors import PluginError
from accelplug.hooks.drafting import ROOT, IntArray
from accelplug.hosts.hf.columns import Columns
from accelplug.hosts.hf.compat import cache_name
from accelplug.hosts.hf.device import upload
from accelplug.hosts.hf.masks import Attention

_CHUNK = 512  # columns read at once: a mask has as many rows


class Second:
    """A causal language model as `accelplug.hooks.SecondModel`.

    :param vocab_size: the target's; logits that the model lacks are -inf, further ones are cut.
    :param device: where logits go.
    :ivar forwards: forward passes so far.
    """

    def __init__(self, model: Any, vocab_size: int, device: torch.device) -> None:
        self.model, self.vocab_size, self.device = model, vocab_size, device
        self.attention = Attention(model)
        self.forwards = 0
        self._empty()

    def _empty(self) -> None:
        self.columns = Columns(self.model.device)
        self.rows: dict[int, int] = {}  # slot -> row of the cache
        self.read: list[int] = []  # tokens read, per row
        self.ahead: dict[int, IntArray] = {}  # slot -> those among them, at the end, that were not committed then
        self._forget()

    def _forget(self) -> None:
        self.committed = len(self.columns)
        self.asked: list[int] = []  # per request of the last extend: its row
        self.paths: list[list[int]] = []  # per draft node: the columns of its ancestors and its own

    def start(self, slots: IntArray) -> None:
        """Give each slot an empty row."""
        self.finish(slots)
        self.rows |= {slot: len(self.read) + i for i, slot in enumerate(slots.tolist())}
        self.read += [0] * len(slots)
        self.columns.add_rows(len(slots))

    def finish(self, slots: IntArray) -> None:
        """Take each slot's row out of the cache."""
        leaving = set(slots.tolist())
        staying = {slot: row for slot, row in self.rows.items() if slot not in leaving}
        for slot in leaving:
            self.ahead.pop(slot, None)
        if not staying:
            self._empty()
        elif len(staying) < len(self.rows):
            self.read = [self.read[row] for row in staying.values()]
            self.rows = {slot: row for row, slot in enumerate(staying)}
            self.columns.crop(self.committed)
            self.columns.keep_rows(list(staying.values()))
            self._forget()

    def extend(self, slots: IntArray, histories: Sequence[IntArray], ahead: Sequence[int] | None = None) -> Tensor:
        """Read what was committed since, and what is ahead of it; return logits [num_reqs, vocab_size]."""
        self.columns.crop(self.committed)
        for slot, history in zip(slots.tolist(), histories, strict=True):
            self._settle(slot, history)
        self.columns.close_holes(max(self.read))
        rows = [self.rows[slot] for slot in slots.tolist()]
        fresh = [history[self.read[row] :] for row, history in zip(rows, histories, strict=True)]
        if not min(map(len, fresh)):
            raise PluginError("extend(slots, histories) was given a text that has not grown since; call it once per step")
        logits = self._read(rows, fresh)
        for row, new in zip(rows, fresh, strict=True):
            self.read[row] += len(new)
        self.ahead |= {
            slot: history[-count:].copy() for slot, history, count in zip(slots.tolist(), histories, ahead or (), strict=False) if count
        }
        self._forget()
        self.asked = rows
        return self._fitted(logits[upload(rows, logits.device), -1])

    def _settle(self, slot: int, history: IntArray) -> None:
        """Forget what was read ahead of a request's text and did not come; its last token is read anew in any case, for its logits."""
        if (ahead := self.ahead.pop(slot, None)) is None:
            return
        begin = self.read[self.rows[slot]] - len(ahead)
        came = history[begin : begin + len(ahead)]
        same = int((ahead[: len(came)] == came).cumprod().sum())
        self.forget(slot, min(begin + same, len(history) - 1))

    def forget(self, slot: int, keep: int) -> None:
        """Take all but the first `keep` tokens out of what was read of a request, for `extend` to read others."""
        row = self.rows[slot]
        if keep < self.read[row]:
            valid = self.columns.valid[row]
            valid &= valid.cumsum(0) <= keep
            self.read[row] = keep

    def spelled(self, tokens: Sequence[int]) -> list[int]:
        """Return the target's tokens of own ones: they are the same."""
        return list(tokens)

    def _read(self, rows: Sequence[int], fresh: Sequence[IntArray]) -> Tensor:
        """Append committed tokens; return the last column's logits, [num_rows, 1, model's vocabulary]."""
        width = max(map(len, fresh))
        tokens = torch.zeros(len(self.read), width, dtype=torch.long)
        real = torch.zeros(len(self.read), width, dtype=torch.bool)
        for row, new in zip(rows, fresh, strict=True):  # to the right, so that every row's last token is in the last column
            tokens[row, width - len(new) :], real[row, width - len(new) :] = torch.from_numpy(new.astype(np.int64)), True
        positions = (torch.tensor(self.read).unsqueeze(1) + real.cumsum(1) - 1).clamp(min=0)
        tokens, real, positions = (upload(values, self.model.device) for values in (tokens, real, positions))
        logits = torch.empty(0)
        for begin in range(0, width, _CHUNK):
            chunk = slice(begin, begin + _CHUNK)
            self.columns.append(real[:, chunk], positions[:, chunk])
            causal = torch.ones(tokens[:, chunk].shape[1], len(self.columns), dtype=torch.bool, device=self.model.device)
            seen = self.columns.valid.unsqueeze(1) & causal.tril_(causal.shape[1] - causal.shape[0])
            logits = self._forward(tokens[:, chunk], seen, keep=1)
        return logits

    def expand(self, requests: Sequence[int], tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Read draft nodes; return logits [num_nodes, vocab_size]."""
        places, begin = self._place([self.asked[request] for request in requests], parents)
        width = 1 + max(column for _, column in places)
        ids, positions = (torch.zeros(len(self.read), width, dtype=torch.long) for _ in range(2))
        seen = torch.zeros(len(self.read), width, begin + width, dtype=torch.bool)
        for place, token, path in zip(places, tokens, self.paths[-len(places) :], strict=True):
            ids[place], positions[place] = token, self.read[place[0]] + len(path) - 1
            seen[place][path] = True
        ids, positions, seen = (upload(values, self.model.device) for values in (ids, positions, seen))
        seen[:, :, : self.committed] |= self.columns.valid[:, : self.committed].unsqueeze(1)
        self.columns.append(torch.zeros_like(ids, dtype=torch.bool), positions)
        logits = self._forward(ids, seen, keep=0)
        chosen = upload(places, logits.device)
        return self._fitted(logits[chosen[:, 0], chosen[:, 1]])

    def _place(self, rows: Sequence[int], parents: Sequence[int]) -> tuple[list[tuple[int, int]], int]:
        """Give every node the next free column of its row; return (row, column) pairs, and what the columns follow."""
        begin, filled, places = len(self.columns), [0] * len(self.read), []
        for row, parent in zip(rows, parents, strict=True):
            places.append((row, filled[row]))
            self.paths.append([*(self.paths[parent] if parent != ROOT else ()), begin + filled[row]])
            filled[row] += 1
        return places, begin

    @torch.no_grad()
    def _forward(self, tokens: Tensor, seen: Tensor, keep: int) -> Tensor:
        """Run the columns that were appended last; `seen` is bool [num_rows, width, num_columns]."""
        (width, columns), positions = seen.shape[1:], self.columns.positions
        own = torch.arange(width, device=seen.device)
        # A column that is nothing in a row attends to itself: a softmax over nothing would poison its keys and values.
        seen[:, own, columns - width + own] = True
        outputs = self.model(
            input_ids=tokens,
            position_ids=positions[:, -width:],
            attention_mask=self.attention.windowed(seen, positions, positions[:, -width:]),
            **{cache_name(): self.columns.cache},
            use_cache=True,
            logits_to_keep=keep,
        )
        self.forwards += 1
        logits: Tensor = outputs.logits
        return logits

    def _fitted(self, logits: Tensor) -> Tensor:
        """Return logits as wide as the target's."""
        missing = self.vocab_size - logits.shape[-1]
        logits = logits[..., : self.vocab_size] if missing <= 0 else torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
        return logits.to(self.device)
