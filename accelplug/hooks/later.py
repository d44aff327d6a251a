"""The shapes of the two kinds that no host runs yet. Their hooks exist so that names are settled; nothing else is.

Selecting a technique of one of these kinds is refused by every host, with that reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class KVCompressor(Protocol):
    """Scores cached positions; the host keeps the highest and moves the memory."""

    def score(self, keys: Tensor, values: Tensor) -> Tensor:
        """Return [num_reqs, num_kv_heads, num_positions]; higher stays."""


class VisionReducer(Protocol):
    """Scores vision tokens; the count to keep depends on their number alone."""

    def count(self, num_tokens: int) -> int:
        """Return how many of `num_tokens` stay."""

    def score(self, features: Tensor) -> Tensor:
        """Return [num_tokens]; higher stays."""
