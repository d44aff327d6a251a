"""Token-wise verification: keep a drafted token with probability min(1, target / draft).

Paper      Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318
Output     unchanged under greedy decoding; unchanged in distribution under sampling
Needs      the probability row of every sampled draft node
Hosts      transformers, vllm
Devices    cpu, cuda
Cost       one softmax per verified position
Good for   everything: it is the default
Poor for   long sampled drafts, where judging the block as a whole accepts a little more
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accelplug.hooks.verifying import VerifierTraits, VerifyView

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenWise:
    """Speculative sampling's rule.

    Over siblings, the host's default residual makes it recursive rejection sampling (Yang et al. 2024, arXiv 2402.14160; SpecInfer,
    arXiv 2305.09781): each is judged against what the rejected ones before it left of the target, which is exact for siblings chosen
    deterministically, drawn independently or without replacement, and for any mix of them.
    """

    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless="sampling", standard=True)

    def accept(self, view: VerifyView) -> Tensor:
        """Return min(1, q(x) / p(x)) for each candidate, with p(x) = 1 for deterministic ones; [n]."""
        return (view.target_at_tokens() / view.draft_at_tokens()).clamp(max=1.0)
