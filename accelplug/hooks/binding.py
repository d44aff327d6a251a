"""Bind a built drafter's methods once, so that a step calls plain functions and checks what comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from accelplug._errors import PluginError
from accelplug.hooks.drafting import CommitView, DeviceDrafts, DeviceView, Drafts, DraftView, IntArray, NodeKind
from accelplug.hooks.registry import Technique


def _nothing(_: Any) -> None:
    """Stand in for an optional method."""


@dataclass(frozen=True, slots=True)
class BoundDrafter:
    """A drafter's methods, looked up once; optional ones do nothing where the drafter has none."""

    technique: Technique
    propose: Callable[[DraftView], Drafts]
    observe: Callable[[CommitView], None]
    start: Callable[[IntArray], None]
    finish: Callable[[IntArray], None]
    propose_on_device: Callable[[DeviceView], DeviceDrafts] | None


def bind_drafter(technique: Technique) -> BoundDrafter:
    """Look up the drafter's methods.

    :raises PluginError: it has none of the three ways to propose.
    """
    instance = technique.instance
    propose = getattr(instance, "propose", None)
    on_device = getattr(instance, "propose_on_device", None)
    if propose is None and (one := getattr(instance, "propose_one", None)) is not None:
        propose = _batched(one)
    if propose is None and on_device is None:
        raise PluginError(f"{technique} has no propose(view), propose_one(tokens, budget) or propose_on_device(view); give it one")
    return BoundDrafter(
        technique,
        propose or _device_only(technique),
        getattr(instance, "observe", _nothing),
        getattr(instance, "start", _nothing),
        getattr(instance, "finish", _nothing),
        on_device,
    )


def _batched(propose_one: Callable[[IntArray, int], Any]) -> Callable[[DraftView], Drafts]:
    def propose(view: DraftView) -> Drafts:
        budgets = view.budgets
        return Drafts.chains([propose_one(view.history(i), int(budgets[i])) if budgets[i] > 0 else () for i in range(len(budgets))])

    return propose


def _device_only(technique: Technique) -> Callable[[DraftView], Drafts]:
    def propose(_: DraftView) -> Drafts:
        raise PluginError(f"{technique} drafts on the device only, and this host asks in host memory; give it propose(view)")

    return propose


def check_drafts(who: Technique, drafts: Drafts, budgets: IntArray, vocab_size: int) -> None:
    """Refuse drafts that no host could verify.

    :raises PluginError: naming the drafter and what is wrong: shapes, budget, token ids, parents, or a missing row.
    """
    if not isinstance(drafts, Drafts):
        raise PluginError(f"{who} returned a {type(drafts).__name__}; return accelplug.hooks.Drafts")
    offsets, tokens = drafts.offsets, drafts.tokens
    if len(offsets) != len(budgets) + 1 or offsets[-1] != len(tokens):
        raise PluginError(f"{who} returned offsets {offsets.tolist()} for {len(budgets)} requests and {len(tokens)} nodes")
    if len(tokens) == 0:
        return
    counts = np.diff(offsets)
    if (counts > budgets).any() or (counts < 0).any():
        raise PluginError(f"{who} drafted {counts.tolist()} nodes where {budgets.tolist()} were allowed; look at view.budgets")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise PluginError(f"{who} drafted token ids from {tokens.min()} to {tokens.max()}, outside 0 .. {vocab_size - 1}")
    if drafts.parents is not None:
        _check_parents(who, drafts.parents, offsets)
    if drafts.kinds is not None and (drafts.kinds != NodeKind.DELTA).any():
        _check_rows(who, drafts)


def _check_parents(who: Technique, parents: IntArray, offsets: IntArray) -> None:
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        own = parents[begin:end]
        if len(own) and ((own < -1).any() or (own >= np.arange(len(own))).any()):
            raise PluginError(f"{who} returned parents {own.tolist()}; a parent comes before its children, the root is -1")


def _check_rows(who: Technique, drafts: Drafts) -> None:
    drawn = drafts.kinds != NodeKind.DELTA
    if drafts.rows is None or drafts.row_ids is None or (drafts.row_ids[drawn] < 0).any():
        raise PluginError(f"{who} drafted sampled nodes without their probability rows; fill rows and row_ids, or draft DELTA nodes")
    if (drafts.row_ids >= len(drafts.rows)).any():
        raise PluginError(f"{who} points at row {drafts.row_ids.max()} of {len(drafts.rows)} probability rows")
