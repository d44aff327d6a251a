"""Greedy verification: keep a drafted token if it is the target model's most likely one.

Paper      Stern et al. 2018, arXiv 1811.03115, section 3
Output     unchanged under greedy decoding; refused for sampling
Needs      nothing
Hosts      transformers, vllm
Devices    cpu, cuda
Cost       one argmax per verified position
Good for   temperature 0
Poor for   sampling: use token_wise
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accelplug.hooks.verifying import VerifierTraits, VerifyView

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Greedy:
    """Accept exactly the most likely token."""

    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless="greedy", standard=True)

    def accept(self, view: VerifyView) -> Tensor:
        """Return 1 where the candidate is the argmax of the processed scores, else 0; [n]."""
        return (view.logits.argmax(-1) == view.tokens).to(view.target.dtype)
