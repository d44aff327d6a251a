"""The shapes of the three kinds that no host runs yet. Their hooks exist so that names are settled; nothing else is.

Selecting a technique of one of these kinds is refused by every host, with that reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Matcher(Protocol):
    """One request's position in a grammar."""

    def fill(self, mask_row: Tensor) -> None:
        """Write the allowed tokens into one bit row, [ceil(vocab_size / 32)] int32."""

    def accept(self, tokens: Sequence[int]) -> int:
        """Advance over `tokens`; return how many were legal."""

    def rollback(self, count: int) -> None:
        """Take the last `count` tokens back."""


class GrammarEngine(Protocol):
    """Compiles a schema, expression or grammar; the compiled object makes matchers."""

    def compile(self, specification: str) -> Matcher:
        """Return a fresh matcher, or raise ConstraintError naming what cannot be enforced."""


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
