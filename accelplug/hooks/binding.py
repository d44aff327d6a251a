"""Bind a built drafter's methods once, so that a step calls plain functions and checks what comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelplug._errors import PluginError
from accelplug.hooks.capabilities import drafter_traits
from accelplug.hooks.checking import check_drafts
from accelplug.hooks.drafting import CommitView, DeviceDrafts, DeviceView, DrafterTraits, Drafts, DraftView, IntArray
from accelplug.hooks.registry import Technique

__all__ = ["BoundDrafter", "bind_drafter", "check_drafts"]


def _nothing(_: Any) -> None:
    """Stand in for an optional method."""


@dataclass(frozen=True, slots=True)
class BoundDrafter:
    """A drafter's methods, looked up once; optional ones do nothing where the drafter has none."""

    technique: Technique
    traits: DrafterTraits
    propose: Callable[[DraftView], Drafts]
    observe: Callable[[CommitView], None]
    start: Callable[[IntArray], None]
    finish: Callable[[IntArray], None]
    propose_on_device: Callable[[DeviceView], DeviceDrafts] | None

    @property
    def is_device_only(self) -> bool:
        """Whether it cannot be asked in host memory."""
        return not any(hasattr(self.technique.instance, method) for method in ("propose", "propose_one"))

    def ask(self, view: DraftView, vocab_size: int) -> Drafts:
        """Return the drafts for a view, checked; what goes wrong is noted to be the drafter's.

        :raises PluginError: as `check`.
        """
        drafts = self.technique.call(self.propose, view)
        self.check(drafts, view.budgets, vocab_size)
        return drafts

    def check(self, drafts: Drafts, budgets: IntArray, vocab_size: int) -> None:
        """Refuse drafts that no host could verify, or that the drafter's traits did not announce.

        :param budgets: [num_reqs], the most nodes allowed.
        :raises PluginError: naming the drafter and what is wrong.
        """
        check_drafts(self.technique, drafts, budgets, vocab_size, self.traits)


def bind_drafter(technique: Technique) -> BoundDrafter:
    """Look up the drafter's methods and its traits.

    :raises PluginError: it has none of the three ways to propose, or something else under the name of a method.
    :raises HostError: its traits are no DrafterTraits.
    """
    propose, one, on_device = (_method(technique, name) for name in ("propose", "propose_one", "propose_on_device"))
    if propose is None and one is not None:
        propose = _batched(technique, one)
    if propose is None and on_device is None:
        raise PluginError(f"{technique} has no propose(view), propose_one(tokens, budget) or propose_on_device(view); give it one")
    return BoundDrafter(
        technique,
        drafter_traits(technique),
        propose or _device_only(technique),
        _method(technique, "observe") or _nothing,
        _method(technique, "start") or _nothing,
        _method(technique, "finish") or _nothing,
        on_device,
    )


def _method(technique: Technique, name: str) -> Callable[..., Any] | None:
    method: Any = getattr(technique.instance, name, None)
    if method is not None and not callable(method):
        raise PluginError(f"{technique} has a {name} that is a {type(method).__name__}; make it a method")
    return method  # type: ignore[no-any-return]


def _batched(technique: Technique, propose_one: Callable[[IntArray, int], Any]) -> Callable[[DraftView], Drafts]:
    def propose(view: DraftView) -> Drafts:
        budgets = view.budgets
        guesses = [propose_one(view.history(i), int(budgets[i])) if budgets[i] > 0 else () for i in range(len(budgets))]
        try:
            return Drafts.chains(guesses)
        except TypeError as exc:
            raise PluginError(f"{technique}: propose_one(tokens, budget) returned no guess: {exc}") from exc

    return propose


def _device_only(technique: Technique) -> Callable[[DraftView], Drafts]:
    def propose(_: DraftView) -> Drafts:
        raise PluginError(f"{technique} drafts on the device only, and this host asks in host memory; give it propose(view)")

    return propose
