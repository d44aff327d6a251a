"""What rules are shown and what becomes of their answers, the same on every host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from accelplug._errors import PluginError
from accelplug.hooks.drafting import ROOT
from accelplug.hooks.registry import Technique
from accelplug.hooks.verifying import ChainsChoice, ChainsView, Choice, PathView, VerifyView, normalised

_TOLERANCE = 1e-3  # how far a distribution's sum may lie from 1


def probabilities(scores: Tensor, *, greedy: bool) -> Tensor:
    """Return what tokens are sampled from, one-hot for greedy decoding; [n, vocab_size], as `scores`."""
    if not greedy:
        return scores.softmax(-1)
    return torch.zeros_like(scores).scatter_(1, scores.argmax(-1, keepdim=True), 1.0)


def choose(rule: Technique, view: PathView, *, lossless: bool) -> Choice:
    """Ask a rule for whole drafts, and hold its answer to what every host promises.

    :param lossless: such a rule's tokens are never counted as lossy.
    :returns: the path up to its first masked token, a rest in which no token is masked, and among the lossy nodes also those
        of the path that the target itself would never have followed.
    :raises PluginError: as `check_choice`.
    """
    choice: Choice = rule.call(rule.instance.choose, view)
    check_choice(rule, choice, view)
    path, device = list(choice.path), view.target.device
    rows = torch.tensor([ROOT, *path][: len(path)], dtype=torch.long, device=device) + 1
    tokens = torch.tensor([view.tokens[node] for node in path], dtype=torch.long, device=device)
    masked, never = torch.stack([view.logits[rows, tokens] == -torch.inf, view.target[rows, tokens] <= 0]).tolist()
    kept = path[: masked.index(True)] if True in masked else path
    last = kept[-1] + 1 if kept else 0
    rest = view.target[last]
    if len(kept) == len(path):
        rest = normalised(choice.rest.masked_fill(view.logits[last] == -torch.inf, 0.0), rest)
    lossy = () if lossless else [node for node, impossible in zip(kept, never, strict=False) if impossible or node in choice.lossy]
    return Choice(kept, rest, lossy)


def check_choice(rule: Technique, choice: Any, view: PathView) -> None:
    """Refuse an answer that no draft allows.

    :raises PluginError: naming the rule: it is no Choice, its path leaves the tree, or its rest is no distribution.
    """
    if not isinstance(choice, Choice):
        raise PluginError(f"{rule} returned a {type(choice).__name__}; return accelplug.hooks.Choice")
    path, above = list(choice.path), ROOT
    for node in path:
        if node not in range(len(view.tokens)) or view.parents[node] != above:
            raise PluginError(f"{rule} chose the path {path} where the parents are {list(view.parents)}; go from the root down")
        above = node
    if not set(choice.lossy) <= set(path):
        raise PluginError(f"{rule} counts the nodes {sorted(choice.lossy)} as lossy, its path is {path}; name nodes of the path")
    rest: Any = choice.rest
    width = view.target.shape[1]
    if not isinstance(rest, Tensor) or rest.shape != (width,):
        raise PluginError(f"{rule} returned a rest that is no tensor [{width}]; return one probability per token of the vocabulary")
    check_distribution(rule, "rest", rest)


def check_distribution(rule: Technique, what: str, row: Tensor) -> None:
    """Refuse what nothing can be drawn from; waits for the device.

    :raises PluginError: naming the rule, and `what` it returned.
    """
    total, least = torch.stack([row.sum(), row.min()]).tolist()
    if not (least >= 0 and abs(total - 1) < _TOLERANCE):
        raise PluginError(f"{rule} returned a {what} that sums to {total:.4g} with a least entry of {least:.4g}; return a distribution")


def left_by(rule: Technique, residual: Callable[[VerifyView], Any], view: VerifyView) -> Tensor:
    """Return what the rejection of each candidate leaves, [n, vocab_size].

    :raises PluginError: the rule returned no tensor of that shape.
    """
    left = rule.call(residual, view)
    if not isinstance(left, Tensor) or left.shape != view.target.shape:
        raise PluginError(f"{rule} returned a residual that is no tensor {list(view.target.shape)}; return one distribution per candidate")
    return left


Rows = Callable[[Tensor], tuple[Tensor, Tensor]]
"""What the target says behind the first `kept` [num_reqs] drafts of each request: probabilities and scores, [num_reqs, vocab_size] each."""


def choose_on_device(rule: Technique, view: ChainsView, behind: Rows, *, lossless: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Ask a rule about the chains of a batch, and hold its answer to what every host promises, without waiting for the device.

    :param behind: the rows of the target that follow the drafts.
    :returns: how many drafts of each request are kept, [num_reqs], what the token behind them is drawn from, [num_reqs, vocab_size], and how
        many of them are lossy, [num_reqs]; all as in `choose`.
    :raises PluginError: as `check_chains`.
    """
    drafts = view.drafts
    choice: ChainsChoice = rule.call(rule.instance.choose_on_device, view)
    check_chains(rule, choice, view)
    possible = drafts.logits.gather(1, drafts.tokens.unsqueeze(1)).squeeze(1) > -torch.inf
    most = view.padded(possible).long().cumprod(1).sum(1)  # a chain ends before its first masked token
    kept = torch.minimum(choice.kept, most)
    rest = rest_of(choice.rest, (kept == choice.kept) & (kept < view.counts), *behind(kept))
    if lossless:
        return kept, rest, torch.zeros_like(kept)
    never = view.padded(drafts.target_at_tokens() <= 0)
    named = never if choice.lossy is None else never | choice.lossy
    return kept, rest, (named & (torch.arange(view.width, device=kept.device) < kept.unsqueeze(1))).sum(1)


def rest_of(left: Tensor, rejected: Tensor, target: Tensor, scores: Tensor) -> Tensor:
    """Return what each request's next token is drawn from, no token masked, [num_reqs, vocab_size].

    :param left: what a rejection leaves, [num_reqs, vocab_size].
    :param rejected: whether a draft was rejected there, [num_reqs] bool; the target is taken where none was.
    :param target: [num_reqs, vocab_size].
    :param scores: as `target`, -inf for masked tokens.
    """
    return normalised(torch.where(rejected.unsqueeze(1), left, target).masked_fill(scores == -torch.inf, 0.0), target)


def check_chains(rule: Technique, choice: Any, view: ChainsView) -> None:
    """Refuse an answer of a wrong shape and, where looking waits for no device, one that no draft allows.

    :raises PluginError: naming the rule and what is wrong.
    """
    if not isinstance(choice, ChainsChoice):
        raise PluginError(f"{rule} returned a {type(choice).__name__}; return accelplug.hooks.ChainsChoice")
    num_reqs, vocab_size = len(view.counts), view.drafts.target.shape[1]
    wanted = {"kept": (num_reqs,), "rest": (num_reqs, vocab_size), "lossy": (num_reqs, view.width)}
    for name, shape in wanted.items():
        found: Any = getattr(choice, name)
        if not (name == "lossy" and found is None) and (not isinstance(found, Tensor) or tuple(found.shape) != shape):
            raise PluginError(f"{rule} returned a {name} that is no tensor {list(shape)}; return one entry per request")
    if choice.kept.is_floating_point() or choice.kept.dtype == torch.bool:
        raise PluginError(f"{rule} returned a kept of {choice.kept.dtype}; it counts drafts, in int64")
    if choice.kept.device.type == "cpu":
        _check_values(rule, choice, view.counts)


def _check_values(rule: Technique, choice: ChainsChoice, counts: Tensor) -> None:
    kept, rejected = choice.kept, choice.kept < counts
    if bool(((kept < 0) | (kept > counts)).any()):
        raise PluginError(f"{rule} keeps {kept.tolist()} drafts of chains of {counts.tolist()}; keep no more than view.counts")
    rest = choice.rest[rejected]
    totals = rest.sum(-1)
    if not bool((rest >= 0).all() & ((totals - 1).abs() < _TOLERANCE).all()):
        worst = totals[(totals - 1).abs().argmax()]
        raise PluginError(f"{rule} returned a rest that sums to {worst:.4g} with a least entry of {rest.min():.4g}; return distributions")
