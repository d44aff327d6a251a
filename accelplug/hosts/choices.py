"""The check of what rules for whole drafts answer, the same on every host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accelplug._errors import PluginError
from accelplug.hooks.drafting import ROOT
from accelplug.hooks.registry import Technique
from accelplug.hooks.verifying import Choice, PathView

_TOLERANCE = 1e-3  # how far a distribution's sum may lie from 1


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
