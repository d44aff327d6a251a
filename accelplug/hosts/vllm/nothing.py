"""The drafter of an engine in which a grammar drafts alone: it drafts nothing, and the scheduler puts forced tokens behind that."""

from __future__ import annotations

from accelplug._version import __version__
from accelplug.hooks.drafting import Drafts, DraftView
from accelplug.hooks.registry import Owner, Technique
from accelplug.hosts.vllm.settings import Settings


class Nothing:
    """Drafts nothing."""

    def propose(self, view: DraftView) -> Drafts:
        """Return an empty chain for every request."""
        return Drafts.chains([[]] * len(view.slots))


def nothing(settings: Settings) -> Technique | None:
    """Return the drafter; None where vLLM's own drafts."""
    return Technique("drafter", "nothing", Owner("accelplug", "accelplug", __version__), Nothing(), Nothing, "nothing") if settings.drafts else None
