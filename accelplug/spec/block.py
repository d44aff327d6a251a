"""Block verification: judge a chain's tokens by their joint probability, so that a likely token makes up for an unlikely one.

Paper      Sun et al. 2024, "Block Verification Accelerates Speculative Decoding", arXiv 2403.10444, algorithm 2
Output     unchanged under greedy decoding; unchanged in distribution under sampling
Needs      the probability row of every sampled draft node
Hosts      transformers, vllm
Devices    cpu, cuda
Cost       one softmax and one subtraction per drafted position; on transformers two waits for the device a step, on vllm none
Good for   sampled chains: never fewer tokens a step than token_wise
Poor for   deterministic drafts, where token_wise accepts as much; trees: use traversal
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accelplug.hooks.verifying import ChainsChoice, ChainsView, Choice, PathView, VerifierTraits, normalised

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """Keep the longest prefix of a chain whose joint probability passes; a deterministic node is a point mass."""

    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless="sampling", shape="chain")

    def choose(self, view: PathView) -> Choice:
        """Return the longest prefix accepted, tried from the longest down, and what the joint probabilities left to draw from."""
        import torch

        count = len(view.tokens)
        drawn = torch.stack([view.drawn_from(node) for node in range(count)])
        at_tokens = torch.tensor([view.tokens], device=drawn.device).T
        ratios = view.target[:-1].gather(1, at_tokens) / drawn.gather(1, at_tokens).clamp(min=torch.finfo(drawn.dtype).tiny)
        joint = [1.0]  # of each prefix: the probability with which it has to be kept
        for ratio in ratios.squeeze(1).tolist():
            joint.append(min(1.0, joint[-1] * ratio))
        left = (view.target.new_tensor(joint[:-1]).unsqueeze(1) * view.target[:-1] - drawn).clamp(min=0)
        totals = left.sum(-1).tolist()
        if view.below(joint[count]):
            return Choice(range(count), view.target[count])
        for length in range(count - 1, -1, -1):
            total, failed = totals[length], totals[length] + 1.0 - joint[length]
            if length == 0 or (failed > 0 and view.below(total / failed)):
                return Choice(range(length), left[length] / total if total > 0 else view.target[length])
        raise AssertionError("the empty prefix is always accepted")

    def choose_on_device(self, view: ChainsView) -> ChainsChoice:
        """Return the same of every chain: all prefixes are tried at once, and the longest one that passes stays."""
        import torch

        drafts = view.drafts
        tiny = torch.finfo(drafts.target.dtype).tiny
        joint = _joint(view.padded(drafts.target_at_tokens() / drafts.draft_at_tokens().clamp(min=tiny)))
        before = joint[view.requests, view.places].to(drafts.target)  # of the drafts before each draft
        left = (before.unsqueeze(1) * drafts.target - drafts.drawn()).clamp(min=0)
        # Place i stands for the prefix that ends with draft i, which is kept for what it leaves to draft i + 1, if there is one.
        total = torch.nn.functional.pad(view.padded(left.sum(-1).double())[:, 1:], (0, 1))
        passes, whole = joint[:, 1:], torch.arange(1, view.width + 1, device=joint.device) == view.counts.unsqueeze(1)
        failed = (total + 1.0 - passes).clamp(min=torch.finfo(torch.float64).tiny)
        kept = view.below(torch.where(whole, passes, total / failed).where(view.there(), 0.0))
        lengths = torch.where(kept, torch.arange(1, view.width + 1, device=joint.device), 0).amax(1)
        at = view.following(lengths)
        return ChainsChoice(lengths, normalised(left[at], drafts.target[at]))


def _joint(ratios: Tensor) -> Tensor:
    """Return the probability with which each prefix has to be kept, [num_reqs, width + 1], the empty one first: min(1, that of the shorter * ratio).

    In logarithms it is a walk that is held back at 0, which is how far its sum lies below the greatest sum so far.

    :param ratios: target by draft probability of each drafted token, [num_reqs, width].
    """
    import torch

    walk = torch.nn.functional.pad(ratios.double().log().cumsum(1), (1, 0))
    return (walk - walk.cummax(1).values).exp()
