"""What accelplug's worker holds on to, and what it asks of it in every step."""

from __future__ import annotations

from typing import Any, Protocol

from accelplug._errors import HostError
from accelplug.hosts.vllm.board import Counters


class Attachment(Protocol):
    """A runner's drafter seam, from the worker's side."""

    @property
    def quiet(self) -> bool:
        """Whether the last step changed no counter but the seconds spent."""

    def begin_step(self, scheduler_output: Any) -> None:
        """Learn which requests begin and end, before the engine runs the step."""

    def end_step(self, output: Any) -> None:
        """Finish what the step left open; `output` is what the runner returned."""

    def trim(self, drafts: Any) -> Any:
        """Return vLLM's DraftTokenIds without the tokens that the drafter did not draft."""

    def verify(self) -> None:
        """Refuse to serve if the runner asks somebody else; called once vLLM has warmed up.

        :raises HostError: naming who is asked instead.
        """

    def status(self) -> dict[str, Any]:
        """Return what runs and what came of it, as plain JSON values."""

    def counters(self) -> list[Counters]:
        """Return every technique's counters, the same ones each time; may wait for the device."""


class NoDrafts:
    """The attachment of a pipeline-parallel rank other than the last, where vLLM asks for no drafts."""

    quiet = True

    def begin_step(self, scheduler_output: Any) -> None:
        """Do nothing."""

    def end_step(self, output: Any) -> None:
        """Do nothing."""

    def trim(self, drafts: Any) -> Any:
        """Return them as they are."""
        return drafts

    def verify(self) -> None:
        """Do nothing: there is no drafter on this rank."""

    def status(self) -> dict[str, Any]:
        """Say that the last rank drafts."""
        return {"drafter": None, "verifier": None, "stats": None, "seams": []}

    def counters(self) -> list[Counters]:
        """Return none."""
        return []


def require_in_effect(found: object, expected: object, where: str) -> None:
    """Refuse to serve if somebody took the place of what accelplug put there.

    :raises HostError: naming who sits there.
    """
    if found is not expected:
        raise HostError(f"accelplug is not in effect: {where} is a {type(found).__name__}; remove whatever replaced it")


def trims(config: Any) -> bool:
    """Whether the V2 runner can verify fewer drafts than it expects.

    Full CUDA graphs replay decodes of one length only, and under asynchronous scheduling the next step is laid out
    before this one's drafts are known.
    """
    return not config.scheduler_config.async_scheduling and not config.compilation_config.cudagraph_mode.has_full_cudagraphs()
