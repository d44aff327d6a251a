"""A dynamic cache whose rows grow apart: one row per slot, columns that are a token in some rows and nothing in others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from accelplug.hosts.hf.layers import await_layers, filled

# Columns are taken out when they are more than a share of the cache, and worth a copy of it.
_SHARE, _FEW = 0.25, 64


class Columns:
    """A cache, and which of its columns each row has.

    :param cache: of layers that drop nothing; by default a new one.
    :ivar valid: bool [num_rows, num_columns].
    :ivar positions: int64 [num_rows, num_columns], undefined where a row has no column.
    """

    def __init__(self, device: torch.device, cache: Cache | None = None) -> None:
        # Without a config, so that no layer drops what lies behind its window.
        self.cache = DynamicCache() if cache is None else cache
        self.valid = torch.zeros(0, 0, dtype=torch.bool, device=device)
        self.positions = torch.zeros(0, 0, dtype=torch.long, device=device)

    def __len__(self) -> int:
        return self.valid.shape[1]

    def add_rows(self, count: int) -> None:
        """Append rows that have no columns."""
        self.valid = torch.cat([self.valid, self.valid.new_zeros(count, len(self))])
        self.positions = torch.cat([self.positions, self.positions.new_zeros(count, len(self))])
        self._replace(lambda states: torch.cat([states, states.new_zeros(count, *states.shape[1:])]))

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        chosen = torch.tensor(rows, dtype=torch.long, device=self.valid.device)
        self.valid, self.positions = self.valid[chosen], self.positions[chosen]
        self._replace(lambda states: states[chosen.to(states.device)])

    def append(self, valid: Tensor, positions: Tensor) -> None:
        """Add columns, [num_rows, width] each; their keys and values are what the next forward pass adds to the cache."""
        self.valid = torch.cat([self.valid, valid.to(self.valid.device)], 1)
        self.positions = torch.cat([self.positions, positions.to(self.valid.device)], 1)

    def crop(self, count: int) -> None:
        """Keep the first `count` columns."""
        if count < len(self):
            self.valid, self.positions = self.valid[:, :count], self.positions[:, :count]
            self._replace(lambda states: states[:, :, :count])

    def close_holes(self, longest: int) -> bool:
        """Move every row's tokens to the right end, where there are holes enough; return whether there were.

        :param longest: the most columns that any row has.
        """
        holes = len(self) - longest
        if holes <= max(_FEW, len(self) * _SHARE):
            return False
        order = self.valid.byte().sort(dim=1, stable=True).indices[:, holes:]  # [num_rows, longest], each row's tokens last
        self.valid, self.positions = self.valid.gather(1, order), self.positions.gather(1, order)
        index = order[:, None, :, None]
        self._replace(lambda states: states.gather(2, index.to(states.device).expand(-1, states.shape[1], -1, states.shape[3])))
        return True

    def _replace(self, made: Callable[[Tensor], Tensor]) -> None:
        await_layers(self.cache)
        for layer in filled(self.cache):
            layer.keys, layer.values = made(layer.keys), made(layer.values)
