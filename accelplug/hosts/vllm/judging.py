"""Verification rules of plugins on a batch of chains: tensors in, accepted prefixes and one more token out.

The same for both runners. A rule is asked once for the whole batch, without waiting for the device; one for whole drafts that has no form
on the device once per request, in host memory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from accelplug._errors import PluginError
from accelplug.hooks.capabilities import judges_chains, judges_paths, verifier_traits
from accelplug.hooks.registry import Technique
from accelplug.hooks.verifying import VerifyView, residual
from accelplug.hosts.choices import choose_on_device, left_by, rest_of
from accelplug.hosts.vllm.host_rules import choose_in_host_memory
from accelplug.hosts.vllm.judged import Chance, Judged
from accelplug.hosts.vllm.log import LOG

Decision = tuple[Tensor, Tensor, Tensor]
"""How many drafts of each request are kept, [num_reqs], what the token behind them is drawn from, [num_reqs, vocab_size], and which or how many
of them a lossless rule would have rejected, to be summed."""


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
        self._decide = self._chains if judges_chains(rule) else self._paths if judges_paths(rule) else self._candidates
        self._residual = getattr(rule.instance, "residual", residual)
        self._totals = torch.zeros(4, dtype=torch.int64, device=device)  # drafts, judged, accepted, lossy
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
            kept, rest, lossy = self._decide(batch, chance, width) if len(batch.tokens) else _nothing(batch)
            took = time.perf_counter() - began
        except Exception as exc:  # a plugin that fails must not take the server with it
            if self.stops and not self.serving:
                raise _named(self.rule, exc) from exc
            self._switch_off(exc)
            return None
        if self.serving:
            self.seconds += took
            judged = batch.tokens >= 0
            drafts = (judged & (batch.places[1] == 0)).sum()  # what is no padding stands first
            self._totals += torch.stack([drafts, judged.sum(), kept.sum(), lossy.sum()])
        return Verdict(_lay_out(batch, kept, chance.draw(rest), width, filler), kept)

    def counts(self) -> tuple[int, int, int, int]:
        """Return how many drafts were judged, how many tokens of them, how many of those were accepted, and how many of these against the
        lossless rule; waits for the device.
        """
        drafts, judged, accepted, lossy = self._totals.tolist()
        return drafts, judged, accepted, lossy

    def _candidates(self, batch: Judged, chance: Chance, width: int) -> Decision:
        """Ask a rule for single candidates."""
        view, uniforms = batch.chains(chance, width), chance.uniforms(batch)
        drafts = view.drafts
        possible = drafts.logits.gather(1, drafts.tokens.unsqueeze(1)).squeeze(1) > -torch.inf
        accepted = possible & (uniforms < self._ask(drafts))
        kept = view.padded(accepted).long().cumprod(1).sum(1)
        rest = rest_of(left_by(self.rule, self._residual, drafts.at(view.following(kept))), kept < view.counts, *batch.behind(kept))
        if not self.lossy:
            return kept, rest, kept[:0]
        return kept, rest, (view.places < kept[view.requests]) & (uniforms >= drafts.target_at_tokens() / drafts.draft_at_tokens())

    def _ask(self, view: VerifyView) -> Tensor:
        found = self.rule.call(self.rule.instance.accept, view)
        if not isinstance(found, Tensor) or found.shape != view.tokens.shape:
            raise PluginError(f"{self.rule} returned acceptance probabilities that are no tensor {list(view.tokens.shape)}; return one per candidate")
        if found.device.type == "cpu" and len(found) and not (found.min() >= 0 and found.max() <= 1):
            raise PluginError(f"{self.rule} returned acceptance probabilities from {found.min():.4g} to {found.max():.4g}; they lie between 0 and 1")
        return found

    def _chains(self, batch: Judged, chance: Chance, width: int) -> Decision:
        """Ask a rule for whole drafts, on the device."""
        return choose_on_device(self.rule, batch.chains(chance, width), batch.behind, lossless=not self.lossy)

    def _paths(self, batch: Judged, chance: Chance, width: int) -> Decision:
        """Ask a rule for whole drafts, in host memory."""
        del width
        return choose_in_host_memory(self.rule, batch, chance.seeds(batch), lossless=not self.lossy)

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


def _nothing(batch: Judged) -> Decision:
    """Return the decision of a step without drafts."""
    none = torch.zeros_like(batch.ends)
    return none, batch.target, none


def _lay_out(batch: Judged, kept: Tensor, last: Tensor, width: int, filler: int) -> Tensor:
    """Return the accepted prefixes, each with the token behind it, [num_reqs, width + 1]."""
    requests, places, _ = batch.places
    laid = torch.full((len(batch.ends), width + 1), filler, dtype=torch.int64, device=batch.tokens.device)
    laid[requests, places] = torch.where(places < kept[requests], batch.tokens, filler)
    return laid.scatter_(1, kept.unsqueeze(1), last.unsqueeze(1))
