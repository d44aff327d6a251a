"""Typical acceptance: keep a drafted token that the target model finds likely enough for how sure it is. Lossy.

Paper      Cai et al. 2024, "Medusa", arXiv 2401.10774, section 2.3.1
Output     changed under sampling, towards what the drafter guesses; unchanged under greedy decoding, where nothing but the best token is typical
Needs      allow_lossy=True; no draft rows
Hosts      transformers, vllm
Devices    cpu, cuda
Cost       one softmax and one entropy per candidate
Good for   sampling at a high temperature from deterministic drafts, where an exact rule rejects good guesses by chance
Poor for   anything that relies on the target model's distribution
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accelplug.hooks.options import option
from accelplug.hooks.verifying import VerifierTraits, VerifyView

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Typical:
    """Accept x if q(x) > min(epsilon, delta exp(-H(q))), H being the entropy of the target q.

    Medusa looks at all paths of its tree and takes the longest that is typical throughout; here siblings are judged in
    drawing order and the first typical one is followed, so on a chain the two agree, and in a tree this one may end sooner.
    What follows the path is drawn from the target itself, as after any rule.
    """

    epsilon: float = option(0.09, ge=0.0, le=1.0, per_request=True, help="a token above this probability is always typical")
    delta: float = option(0.3, ge=0.0, le=1.0, per_request=True, help="lowers the bar where the target is unsure")

    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless=None)

    def accept(self, view: VerifyView) -> Tensor:
        """Return 1 for typical candidates, else 0; [n]."""
        import torch

        entropy = torch.special.entr(view.target).sum(-1)
        epsilon, delta = view.parameters.get("epsilon", self.epsilon), view.parameters.get("delta", self.delta)
        bar = (delta * torch.exp(-entropy)).clamp(max=epsilon)
        return (view.target_at_tokens() > bar).to(view.target.dtype)

    def residual(self, view: VerifyView) -> Tensor:
        """Return the target as it is: the rejection of an untypical token says nothing of the others; [n, vocab_size]."""
        return view.target
