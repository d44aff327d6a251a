"""Token-wise decisions about all chains of a batch at once, for rules that are, or fall back to, that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelplug.hooks.verifying import ChainsChoice, ChainsView, residual

if TYPE_CHECKING:
    from torch import Tensor


def accepted(view: ChainsView) -> Tensor:
    """Return which drafts speculative sampling would accept, each for itself, [num_reqs, width] bool; none of the padding."""
    drafts = view.drafts
    return view.below(view.padded((drafts.target_at_tokens() / drafts.draft_at_tokens()).clamp(max=1.0)))


def up_to_first_rejection(view: ChainsView, stands: Tensor, lossy: Tensor | None = None) -> ChainsChoice:
    """Return the choice of every chain up to its first draft that does not stand, with the residual there.

    :param stands: [num_reqs, width] bool.
    :param lossy: as in the choice.
    """
    kept = stands.long().cumprod(1).sum(1)
    return ChainsChoice(kept, residual(view.drafts.at(view.following(kept))), lossy)
