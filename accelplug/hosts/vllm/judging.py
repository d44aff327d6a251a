"""Verification rules of plugins on a batch of chains: tensors in, accepted prefixes and one more token out.

The same for both runners. vLLM lays a request's rows of scores one after the other: the first follows the last committed
token, row j + 1 follows draft j, so that a request has one row more than drafts. A rule for one candidate at a time is
asked once for the whole batch, without waiting for the device; a rule for whole drafts once per request.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from accelplug._errors import PluginError
from accelplug.hooks.capabilities import judges_paths, verifier_traits
from accelplug.hooks.drafting import ROOT, NodeKind
from accelplug.hooks.registry import Technique
from accelplug.hooks.verifying import PathView, VerifyView, normalised, residual
from accelplug.hosts.choices import choose, probabilities
from accelplug.hosts.vllm.log import LOG


class Chance(Protocol):
    """Where a runner's random numbers come from: each request's own seed, where it has one."""

    def uniforms(self, batch: Judged) -> Tensor:
        """Return one number of [0, 1) per draft, [num_drafts]."""

    def stream(self, request: int) -> Iterator[float]:
        """Return numbers of [0, 1) for one request, as many as it takes."""

    def draw(self, rest: Tensor) -> Tensor:
        """Draw one token for every request from its row of probabilities [num_reqs, vocab_size]; [num_reqs] int64."""


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

    def target(self) -> Tensor:
        """Return the probabilities that tokens would be sampled from, one-hot for greedy requests; as `scores`."""
        if self.all_greedy or self.all_random:
            return probabilities(self.scores, greedy=self.all_greedy)
        counts = self.ends - self.begins
        greedy = self.greedy.repeat_interleave(counts, output_size=len(self.scores)).unsqueeze(1)
        return probabilities(self.scores, greedy=True).where(greedy, probabilities(self.scores, greedy=False))


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


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a step's drafts.

    :param tokens: [num_reqs, width + 1] int64; the accepted prefix and one more token, the rest is `filler`.
    :param kept: how many drafts each request keeps, [num_reqs] int64.
    """

    tokens: Tensor
    kept: Tensor


class Judge:
    """Applies one rule, counts what it did, and steps aside for vLLM's own sampler if it fails.

    :param rule: a built verifier that is not vLLM's own.
    :param stops: whether a rule that fails while vLLM warms up stops the start.
    """

    def __init__(self, rule: Technique, device: torch.device, *, stops: bool = True) -> None:
        self.rule, self.traits = rule, verifier_traits(rule)
        self.lossy = self.traits.lossless is None
        self._decide = self._paths if judges_paths(rule) else self._candidates
        self._residual = getattr(rule.instance, "residual", residual)
        self._totals = torch.zeros(3, dtype=torch.int64, device=device)  # judged, accepted, lossy
        self.serving, self.stops = False, stops
        self.seconds = 0.0
        self.switched_off: str | None = None

    def __call__(self, batch: Judged, chance: Chance, width: int, filler: int) -> Verdict | None:
        """Judge a step's drafts.

        :param width: the most drafts of a request.
        :param filler: stands behind the last token of each request.
        :returns: None where the rule failed while serving, now or earlier; while vLLM warms up, its error is raised.
        :raises PluginError: naming the rule.
        """
        if self.switched_off is not None:
            return None
        try:
            began = time.perf_counter()
            kept, rest, lossy = self._decide(batch, chance, width)
            took = time.perf_counter() - began
        except Exception as exc:  # a plugin that fails must not take the server with it
            if self.stops and not self.serving:
                raise _named(self.rule, exc) from exc
            self._switch_off(exc)
            return None
        if self.serving:
            self.seconds += took
            self._totals += torch.stack([(batch.tokens >= 0).sum(), kept.sum(), lossy.sum()])
        return Verdict(_lay_out(batch, kept, chance.draw(rest), width, filler), kept)

    def counts(self) -> tuple[int, int, int]:
        """Return how many drafts were judged, accepted, and accepted against the lossless rule; waits for the device."""
        judged, accepted, lossy = self._totals.tolist()
        return judged, accepted, lossy

    def _candidates(self, batch: Judged, chance: Chance, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ask a rule for single candidates; return how many drafts are kept, what the next token is drawn from, and how many were lossy."""
        target, (requests, places, rows) = batch.target(), batch.places
        tokens = batch.tokens.clamp(min=0)
        kinds = torch.where(batch.greedy[requests] | (batch.draft is None), int(NodeKind.DELTA), int(NodeKind.SAMPLED))
        parameters = {name: values[requests] for name, values in batch.parameters.items()}
        view = VerifyView(tokens, kinds, target[rows], batch.scores[rows], batch.draft, parameters)
        possible = (batch.tokens >= 0) & (view.logits.gather(1, tokens.unsqueeze(1)).squeeze(1) > -torch.inf)
        uniforms = chance.uniforms(batch)
        accepted = possible & (uniforms < self._ask(view))
        standing = torch.zeros(len(batch.ends), width + 1, dtype=torch.int64, device=tokens.device)
        standing[requests, places] = accepted.long()
        kept = standing.cumprod(1).sum(1)
        overruled = accepted & (places < kept[requests]) & (uniforms >= view.target_at_tokens() / view.draft_at_tokens())
        return kept, self._rest(batch, view, target, kept), overruled if self.lossy else overruled[:0]

    def _rest(self, batch: Judged, view: VerifyView, target: Tensor, kept: Tensor) -> Tensor:
        """Return what the token behind every request's accepted drafts is drawn from, [num_reqs, vocab_size]."""
        rows = batch.begins + kept
        follow, allowed = target[rows], batch.scores[rows] > -torch.inf
        if not len(batch.tokens):
            return follow
        # Requests that kept everything show some other candidate here; what the rule says of it is not used.
        at = (rows - torch.arange(len(rows), device=rows.device)).clamp(max=len(batch.tokens) - 1)
        shown = VerifyView(
            view.tokens[at], view.kinds[at], view.target[at], view.logits[at],
            None if view.draft is None else view.draft[at], {name: values[at] for name, values in view.parameters.items()},
        )  # fmt: skip
        left = self.rule.call(self._residual, shown)
        if not isinstance(left, Tensor) or left.shape != follow.shape:
            raise PluginError(f"{self.rule} returned a residual that is no tensor {list(follow.shape)}; return one distribution per candidate")
        rejected = (rows + 1 < batch.ends) & (batch.tokens[at] >= 0)
        return normalised(torch.where(rejected.unsqueeze(1), left, follow).where(allowed, 0.0), follow)

    def _ask(self, view: VerifyView) -> Tensor:
        found = self.rule.call(self.rule.instance.accept, view)
        if not isinstance(found, Tensor) or found.shape != view.tokens.shape:
            raise PluginError(f"{self.rule} returned acceptance probabilities that are no tensor {list(view.tokens.shape)}; return one per candidate")
        if found.device.type == "cpu" and len(found) and not (found.min() >= 0 and found.max() <= 1):
            raise PluginError(f"{self.rule} returned acceptance probabilities from {found.min():.4g} to {found.max():.4g}; they lie between 0 and 1")
        return found

    def _paths(self, batch: Judged, chance: Chance, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ask a rule for whole drafts, one request after the other; the same answers."""
        del width
        target, tokens, ends = batch.target(), batch.tokens.tolist(), batch.ends.tolist()
        greedy = batch.greedy.tolist()
        kept, lossy, rests, begin = [], [], [], 0
        for request, end in enumerate(ends):
            first = begin - request  # of its drafts
            drafts = _valid(tokens[first : end - request - 1])
            span = slice(begin, begin + len(drafts) + 1)
            draft = None if batch.draft is None or greedy[request] else batch.draft[first : first + len(drafts)]
            parameters = {name: float(values[request]) for name, values in batch.parameters.items()}
            number, rest, overruled = self._choose(drafts, target[span], batch.scores[span], draft, chance.stream(request), parameters)
            kept.append(number)
            lossy.append(overruled)
            rests.append(rest)
            begin = end
        return batch.ends.new_tensor(kept), torch.stack(rests), batch.ends.new_tensor(lossy)

    def _choose(
        self, drafts: list[int], target: Tensor, scores: Tensor, draft: Tensor | None, stream: Iterator[float], parameters: Mapping[str, float]
    ) -> tuple[int, Tensor, int]:
        """Return how many drafts of a request are kept, the distribution of the token behind them, and how many were lossy."""
        if not drafts:
            return 0, target[0], 0
        kind = NodeKind.DELTA if draft is None else NodeKind.SAMPLED
        view = PathView(
            tokens=drafts, parents=range(ROOT, len(drafts) - 1), kinds=[kind] * len(drafts), target=target, logits=scores,
            below=lambda probability: next(stream) < probability,
            rows=draft, row_ids=None if draft is None else range(len(drafts)), parameters=parameters,
        )  # fmt: skip
        choice = choose(self.rule, view, lossless=not self.lossy)
        return len(choice.path), choice.rest, len(choice.lossy)

    def _switch_off(self, exc: Exception) -> None:
        self.switched_off = f"raised {type(exc).__name__}: {exc}"
        LOG.error(
            "%s %s; it is switched off and the engine goes on with vLLM's own rejection sampler; report it to %s",
            self.rule, self.switched_off, self.rule.owner.distribution, exc_info=exc,
        )  # fmt: skip


def _named(rule: Technique, exc: Exception) -> PluginError:
    """Return an error that names the rule; the exception itself where it does so already."""
    if isinstance(exc, PluginError):
        return exc
    said = " ".join(str(exc).split())
    return PluginError(f"{rule} failed on the drafts with which vLLM warms up: {type(exc).__name__}: {said}; report it to {rule.owner.distribution}")


def _valid(drafts: list[int]) -> list[int]:
    """Return a chain up to the first draft that must not be accepted."""
    bad = [i for i, token in enumerate(drafts) if token < 0]
    return drafts[: bad[0]] if bad else drafts


def _lay_out(batch: Judged, kept: Tensor, last: Tensor, width: int, filler: int) -> Tensor:
    """Return the accepted prefixes, each with the token behind it, [num_reqs, width + 1]."""
    requests, places, _ = batch.places
    laid = torch.full((len(batch.ends), width + 1), filler, dtype=torch.int64, device=batch.tokens.device)
    laid[requests, places] = torch.where(places < kept[requests], batch.tokens, filler)
    return laid.scatter_(1, kept.unsqueeze(1), last.unsqueeze(1))
