"""The grammar engines that ship with accelplug, registered like anybody's."""

from __future__ import annotations

from accelplug.hooks import GrammarEngine
from accelplug.hooks.specs import Register, hookimpl


@hookimpl
def register_grammars(register: Register[GrammarEngine]) -> None:
    """Offer the built-in engines; each imports its package when a grammar is compiled."""
    register("auto", "accelplug.constrained.auto:Auto")
    register("llguidance", "accelplug.constrained.auto:llguidance")
    register("xgrammar", "accelplug.constrained.auto:xgrammar")
    register("outlines", "accelplug.constrained.auto:outlines")
