"""Loose verification (FLy): keep a mismatch where the target is unsure, if the target agrees with what follows it. Lossy.

Paper      Li et al. 2025, "Training-Free Loosely Speculative Decoding", arXiv 2511.22972
Output     changed, under greedy decoding too
Needs      allow_lossy=True; chains longer than the window; the probability row of every sampled draft node
Hosts      transformers, vllm
Devices    cpu, cuda
Cost       one top-k per step beside token_wise, on vllm without a wait for the device; every drafted token is judged, not only the first ones
Good for   long drafts of a good draft model that words the same thing differently
Poor for   drafts no longer than the window, where it is token_wise; text in which one token matters, such as numbers
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accelplug.hooks.options import option
from accelplug.hooks.verifying import ChainsChoice, ChainsView, Choice, PathView, VerifierTraits
from accelplug.spec import chains

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Fly:
    """Token-wise verification that overlooks a rejection if the top-k entropy there reaches a threshold, and none of the next `window`
    drafted tokens would be rejected. A rejection that no whole window follows is never overlooked, nor a token that cannot be sampled.
    """

    window: int = option(6, ge=1, le=64, per_request=True, help="drafted tokens that must be accepted behind an overlooked one")
    entropy: float = option(0.3, ge=0.0, per_request=True, help="least entropy of the target's likeliest tokens, in nats")
    top_k: int = option(3, ge=2, le=64, help="how many of the likeliest tokens the entropy is taken over")

    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless=None, shape="chain")

    def choose(self, view: PathView) -> Choice:
        """Return the tokens up to the first rejection that is not overlooked, and the residual there."""
        window = int(view.parameters.get("window", self.window))
        accepted = [view.below(probability) for probability in _acceptance(view)]
        entropy = view.parameters.get("entropy", self.entropy)
        unsure = self._unsure(view.logits[:-1], _at_tokens(view.logits[:-1], view), entropy).tolist()
        overlooked = []
        for node, kept in enumerate(accepted):
            behind = accepted[node + 1 : node + 1 + window]
            if kept:
                continue
            if unsure[node] and len(behind) == window and all(behind):
                overlooked.append(node)
                continue
            left = (view.target[node] - view.drawn_from(node)).clamp(min=0)
            total = float(left.sum())
            return Choice(range(node), left / total if total > 0 else view.target[node], overlooked)
        return Choice(range(len(accepted)), view.target[-1], overlooked)

    def choose_on_device(self, view: ChainsView) -> ChainsChoice:
        """Return the same of every chain."""
        import torch

        drafts = view.drafts
        own = drafts.parameters.get("window")
        window = self.window if own is None else view.padded(own)
        accepted = chains.accepted(view)
        so_far = torch.nn.functional.pad(accepted.long().cumsum(1), (1, 0))  # [num_reqs, width + 1] of the first so many drafts
        ends = torch.arange(1, view.width + 1, device=so_far.device) + window
        behind = so_far.gather(1, ends.clamp(max=view.width).expand(accepted.shape)) - so_far[:, 1:]
        scores = drafts.logits.gather(1, drafts.tokens.unsqueeze(1)).squeeze(1)
        unsure = view.padded(self._unsure(drafts.logits, scores, drafts.parameters.get("entropy", self.entropy)))
        overlooked = ~accepted & unsure & (behind == window) & view.there()
        return chains.up_to_first_rejection(view, accepted | overlooked, overlooked)

    def _unsure(self, logits: Tensor, at_tokens: Tensor, entropy: float | Tensor) -> Tensor:
        """Return for each draft whether the target was unsure before it and gives it a chance at all, [num_drafts] bool.

        :param logits: scores that it is judged by, [num_drafts, vocab_size].
        :param at_tokens: those of the drafts, [num_drafts].
        :param entropy: the least one.
        """
        import torch

        likely = logits.topk(min(self.top_k, logits.shape[1])).values.softmax(-1)
        unsure: Tensor = torch.special.entr(likely).sum(-1) >= entropy
        return unsure & (at_tokens > -torch.inf)


def _acceptance(view: PathView) -> list[float]:
    """Return min(1, q(x) / p(x)) for each node, as token_wise does."""
    import torch

    drawn = torch.stack([view.drawn_from(node)[token] for node, token in enumerate(view.tokens)])
    ratios: list[float] = (_at_tokens(view.target[:-1], view) / drawn).clamp(max=1.0).tolist()
    return ratios


def _at_tokens(rows: Tensor, view: PathView) -> Tensor:
    """Return each row's entry at the token that was drafted behind it, [num_nodes]."""
    import torch

    return rows.gather(1, torch.tensor([view.tokens], device=rows.device).T).squeeze(1)
