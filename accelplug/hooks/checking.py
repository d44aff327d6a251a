"""Check what a drafter returned, in every step, before a host spends a forward pass on it.

Plain chains of DELTA nodes take the short way.
"""

from __future__ import annotations

import itertools
from operator import gt
from typing import Final

import numpy as np

from accelplug._errors import PluginError
from accelplug.hooks.drafting import ROOT, DrafterTraits, Drafts, IntArray, NodeKind
from accelplug.hooks.registry import Technique

_REQUIRED: Final = ("offsets", "tokens")
_ARRAYS: Final = (*_REQUIRED, "parents", "kinds", "row_ids", "sources")
_FEW: Final = 64


def check_drafts(who: Technique, drafts: Drafts, budgets: IntArray, vocab_size: int, traits: DrafterTraits | None = None) -> None:
    """Refuse drafts that no host could verify.

    :param budgets: [num_reqs], the most nodes allowed.
    :param traits: what the drafter says it returns; None compares nothing with them.
    :raises PluginError: naming the drafter and what is wrong: arrays, budget, token ids, parents, kinds or rows.
    """
    if not isinstance(drafts, Drafts):
        raise PluginError(f"{who} returned a {type(drafts).__name__}; return accelplug.hooks.Drafts")
    _check_arrays(who, drafts)
    bounds, num_nodes = drafts.offsets.tolist(), len(drafts.tokens)
    if len(bounds) != len(budgets) + 1 or bounds[0] != 0 or bounds[-1] != num_nodes:
        raise PluginError(f"{who} returned offsets {bounds} for {len(budgets)} requests and {num_nodes} nodes")
    if not any(bounds):
        return
    counts = [end - begin for begin, end in itertools.pairwise(bounds)]
    if not all(0 <= count <= most for count, most in zip(counts, budgets.tolist(), strict=True)):
        raise PluginError(f"{who} drafted {counts} nodes where {budgets.tolist()} were allowed; look at view.budgets")
    lowest, highest = _range(drafts.tokens)
    if lowest < 0 or highest >= vocab_size:
        raise PluginError(f"{who} drafted token ids from {lowest} to {highest}, outside 0 .. {vocab_size - 1}")
    if drafts.parents is not None:
        _check_parents(who, drafts.parents.tolist(), bounds, traits)
    if drafts.kinds is not None or (traits is not None and NodeKind.DELTA not in traits.kinds):
        _check_kinds(who, drafts, vocab_size, traits)


def _range(ids: IntArray) -> tuple[int, int]:
    """Return the lowest and the highest; for as few as most steps draft, NumPy takes several times as long as Python."""
    if len(ids) > _FEW:
        return int(ids.min()), int(ids.max())
    few = ids.tolist()
    return min(few), max(few)


def _check_arrays(who: Technique, drafts: Drafts) -> None:
    """Refuse arrays that NumPy would fail on later, or worse, would not."""
    arrays = (drafts.offsets, drafts.tokens, drafts.parents, drafts.kinds, drafts.row_ids, drafts.sources)
    for name, array in zip(_ARRAYS, arrays, strict=True):
        if array is None and name not in _REQUIRED:
            continue
        if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu":
            raise PluginError(f"{who} returned {name} as {_described(array)}; make it a NumPy array of integers with one dimension")
        if name != "offsets" and len(array) != len(drafts.tokens):
            raise PluginError(f"{who} returned {len(array)} {name} for {len(drafts.tokens)} nodes; give every node one")


def _described(array: object) -> str:
    if isinstance(array, np.ndarray):
        return f"{array.dtype} {list(array.shape)}"
    return f"a {type(array).__name__}"


def _check_parents(who: Technique, parents: list[int], bounds: list[int], traits: DrafterTraits | None) -> None:
    each = [parents[begin:end] for begin, end in itertools.pairwise(bounds)]  # of each request
    for own in each:
        if own and not (min(own) >= ROOT and all(map(gt, itertools.count(), own))):
            raise PluginError(f"{who} returned parents {own}; a parent comes before its children, the root is -1")
    if traits is not None and traits.shape == "chain" and any(own != list(range(ROOT, len(own) - 1)) for own in each):
        raise PluginError(f"{who} drafted a tree, its traits say chain; declare traits = DrafterTraits(shape='tree')")


def _check_kinds(who: Technique, drafts: Drafts, vocab_size: int, traits: DrafterTraits | None) -> None:
    drawn = {int(NodeKind.DELTA)} if drafts.kinds is None else set(drafts.kinds.tolist())
    if unknown := drawn - set(NodeKind):
        raise PluginError(f"{who} returned node kinds {sorted(unknown)}; the kinds are {', '.join(f'NodeKind.{kind.name}' for kind in NodeKind)}")
    if traits is not None and drawn - traits.kinds:
        found, declared = _names(drawn), _names(traits.kinds) or "none"
        wanted = ", ".join(f"NodeKind.{NodeKind(kind).name}" for kind in sorted(drawn | traits.kinds))
        raise PluginError(f"{who} drafted {found} nodes, its traits say {declared}; declare traits = DrafterTraits(kinds={{{wanted}}})")
    if drawn - {NodeKind.DELTA}:
        _check_rows(who, drafts, vocab_size)


def _names(kinds: frozenset[NodeKind] | set[int]) -> str:
    return ", ".join(NodeKind(kind).name.lower() for kind in sorted(kinds))


def _check_rows(who: Technique, drafts: Drafts, vocab_size: int) -> None:
    drawn = drafts.kinds != NodeKind.DELTA
    if drafts.rows is None or drafts.row_ids is None or (drafts.row_ids[drawn] < 0).any():
        raise PluginError(f"{who} drafted sampled nodes without their probability rows; fill rows and row_ids, or draft DELTA nodes")
    from torch import Tensor

    if not isinstance(drafts.rows, Tensor):
        raise PluginError(f"{who} returned probability rows as a {type(drafts.rows).__name__}; make them a torch.Tensor [num_rows, {vocab_size}]")
    shape = list(drafts.rows.shape)
    if len(shape) != 2 or shape[1] != vocab_size:
        raise PluginError(f"{who} returned probability rows {shape}; make them [num_rows, {vocab_size}], one entry per token of the vocabulary")
    if (drafts.row_ids >= shape[0]).any():
        raise PluginError(f"{who} points at row {drafts.row_ids.max()} of {shape[0]} probability rows")
