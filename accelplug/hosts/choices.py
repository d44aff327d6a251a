"""What rules are shown and what becomes of their answers, the same on every host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accelplug._errors import PluginError
from accelplug.hooks.drafting import ROOT
from accelplug.hooks.registry import Technique
from accelplug.hooks.verifying import Choice, PathView, normalised

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
    total, least = torch.stack([rest.sum(), rest.min()]).tolist()
    if not (least >= 0 and abs(total - 1) < _TOLERANCE):
        raise PluginError(f"{rule} returned a rest that sums to {total:.4g} with a least entry of {least:.4g}; return a distribution")
