"""The drafters and verifiers that ship with accelplug, registered like anybody's."""

from __future__ import annotations

from accelplug.hooks.drafting import Drafter
from accelplug.hooks.specs import Register, hookimpl
from accelplug.hooks.verifying import PathVerifier, Verifier


@hookimpl
def register_drafters(register: Register[Drafter]) -> None:
    """Offer the built-in drafters."""
    register("adaptive", "accelplug.spec.adaptive:Adaptive")
    register("draft_model", "accelplug.spec.draft_model:DraftModel")
    register("fusion", "accelplug.spec.fusion:Fusion")
    register("input_copy", "accelplug.spec.input_copy:InputCopy")
    register("prompt_lookup", "accelplug.spec.prompt_lookup:PromptLookup")
    register("suffix", "accelplug.spec.suffix:Suffix")
    register("token_recycling", "accelplug.spec.token_recycling:TokenRecycling")
    register("transformers_candidates", "accelplug.spec.transformers_candidates:TransformersCandidates")


@hookimpl
def register_verifiers(register: Register[Verifier | PathVerifier]) -> None:
    """Offer the built-in verifiers."""
    register("block", "accelplug.spec.block:Block")
    register("fly", "accelplug.spec.fly:Fly")
    register("greedy", "accelplug.spec.greedy:Greedy")
    register("k_seq", "accelplug.spec.k_seq:KSeq")
    register("token_wise", "accelplug.spec.token_wise:TokenWise")
    register("traversal", "accelplug.spec.traversal:Traversal")
    register("typical", "accelplug.spec.typical:Typical")
