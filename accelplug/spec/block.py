"""Block verification: judge a chain's tokens by their joint probability, so that a likely token makes up for an unlikely one.

Paper      Sun et al. 2024, "Block Verification Accelerates Speculative Decoding", arXiv 2403.10444, algorithm 2
Output     unchanged under greedy decoding; unchanged in distribution under sampling
Needs      the probability row of every sampled draft node
Hosts      transformers, vllm
Devices    cpu, cuda
Cost       one softmax and one subtraction per drafted position, two waits for the device a step
Good for   sampled chains: never fewer tokens a step than token_wise
Poor for   deterministic drafts, where token_wise accepts as much; trees: use traversal
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from accelplug.hooks.verifying import Choice, PathView, VerifierTraits


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
