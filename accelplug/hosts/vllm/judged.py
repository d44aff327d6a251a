"""A step's drafts as vLLM lays them out for verification, the same for both runners, and what rules are shown of them.

A request's rows of scores stand one after the other: the first follows the last committed token, row j + 1 follows draft j, so
that a request has one row more than drafts.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from accelplug.hooks.drafting import NodeKind
from accelplug.hooks.verifying import ChainsView, VerifyView
from accelplug.hosts.choices import probabilities


@dataclass(frozen=True)
class Judged:
    """What a step verifies, the drafts of all requests in one row.

    :param scores: [num_drafts + num_reqs, vocab_size] after grammar, processors, temperature, top-k and top-p.
    :param ends: where each request's rows of `scores` end, [num_reqs] int64.
    :param tokens: the drafts, [num_drafts] int64; below 0 what must never be accepted, such as padding.
    :param greedy: whether a request takes the likeliest token, [num_reqs] bool.
    :param draft: the probabilities that the drafts were drawn from, [num_drafts, vocab_size], if they were.
    :param parameters: options that requests set for themselves, name -> [num_reqs].
    :param all_greedy: known on the host: every request is greedy, and nothing need be drawn.
    :param all_random: known on the host: no request is.
    """

    scores: Tensor
    ends: Tensor
    tokens: Tensor
    greedy: Tensor
    draft: Tensor | None = None
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    all_greedy: bool = False
    all_random: bool = False

    @functools.cached_property
    def begins(self) -> Tensor:
        """Each request's first row, [num_reqs]."""
        return begins_of(self.ends)

    @functools.cached_property
    def places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where the drafts stand, as `places_of` says."""
        return places_of(self.ends, len(self.tokens))

    @functools.cached_property
    def target(self) -> Tensor:
        """The probabilities that tokens would be sampled from, one-hot for greedy requests; as `scores`."""
        if self.all_greedy or self.all_random:
            return probabilities(self.scores, greedy=self.all_greedy)
        counts = self.ends - self.begins
        greedy = self.greedy.repeat_interleave(counts, output_size=len(self.scores)).unsqueeze(1)
        return probabilities(self.scores, greedy=True).where(greedy, probabilities(self.scores, greedy=False))

    def behind(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of the target and of the scores that follow the first `kept` [num_reqs] drafts of each request."""
        rows = self.begins + kept
        return self.target[rows], self.scores[rows]

    def chains(self, chance: Chance, width: int) -> ChainsView:
        """Return what a rule is shown.

        :param width: the most drafts of a request.
        """
        requests, places, rows = self.places
        drawn = int(NodeKind.DELTA if self.draft is None else NodeKind.SAMPLED)
        kinds = torch.where(self.greedy[requests], int(NodeKind.DELTA), drawn)
        parameters = {name: values[requests] for name, values in self.parameters.items()}
        drafts = VerifyView(self.tokens.clamp(min=0), kinds, self.target[rows], self.scores[rows], self.draft, parameters)
        valid = self.tokens.new_zeros(len(self.ends), width)
        valid[requests, places] = (self.tokens >= 0).long()
        counts = valid.cumprod(1).sum(1)
        view = ChainsView(drafts, requests, places, counts, width, lambda probabilities: below(view, chance.uniforms(self), probabilities))
        return view


class Chance(Protocol):
    """Where a runner's random numbers come from: each request's own seed, where it has one."""

    def uniforms(self, batch: Judged) -> Tensor:
        """Return one number of [0, 1) per draft, [num_drafts]; others in every call."""

    def seeds(self, batch: Judged) -> Tensor:
        """Return one number of 64 bits per request, [num_reqs] int64, which no two steps share."""

    def draw(self, rest: Tensor) -> Tensor:
        """Draw one token for every request from its row of probabilities [num_reqs, vocab_size]; [num_reqs] int64."""


def below(view: ChainsView, uniforms: Tensor, probabilities: Tensor) -> Tensor:
    """Return whether each draft's number lies below its probability, never for padding; all [num_reqs, width] but the numbers, [num_drafts]."""
    if probabilities.shape != (len(view.counts), view.width):
        raise ValueError(f"view.below takes one probability per request and place, {[len(view.counts), view.width]}, got {list(probabilities.shape)}")
    return view.padded(uniforms, 1.0) < probabilities


def begins_of(ends: Tensor) -> Tensor:
    """Return each request's first row, [num_reqs]."""
    return torch.cat([ends.new_zeros(1), ends[:-1]])


def places_of(ends: Tensor, num_drafts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return every draft's request, its place in the chain, and the row of scores that it is judged by; [num_drafts] each.

    :param ends: where each request's rows of scores end, [num_reqs] int64.
    """
    order = torch.arange(num_drafts, device=ends.device)
    num_reqs = torch.arange(1, len(ends) + 1, device=ends.device)
    requests = torch.searchsorted(ends - num_reqs, order, right=True)
    rows = order + requests
    return requests, rows - begins_of(ends)[requests], rows
