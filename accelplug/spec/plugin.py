"""The drafters and verifiers that ship with accelplug, registered like anybody's."""

from __future__ import annotations

from accelplug.hooks.drafting import Drafter
from accelplug.hooks.specs import Register, hookimpl
from accelplug.hooks.verifying import Verifier


@hookimpl
def register_drafters(register: Register[Drafter]) -> None:
    """Offer the built-in drafters."""
    register("prompt_lookup", "accelplug.spec.prompt_lookup:PromptLookup")


@hookimpl
def register_verifiers(register: Register[Verifier]) -> None:
    """Offer the built-in verifiers."""
    register("greedy", "accelplug.spec.greedy:Greedy")
    register("token_wise", "accelplug.spec.token_wise:TokenWise")
