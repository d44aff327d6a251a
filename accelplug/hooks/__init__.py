"""The contract between plugins and hosts, version 1. Importing it loads neither torch nor an engine."""

from accelplug.hooks.context import API_VERSION, BuildContext
from accelplug.hooks.discovery import load_registry
from accelplug.hooks.drafting import (
    ROOT,
    CommitView,
    DeviceDrafter,
    DeviceDrafts,
    DeviceView,
    Drafter,
    DrafterTraits,
    Drafts,
    DraftView,
    IntArray,
    NodeKind,
    RequestDrafter,
    Verified,
)
from accelplug.hooks.later import KVCompressor, VisionReducer
from accelplug.hooks.masking import CompiledGrammar, CompileLimits, GrammarEngine, GrammarSpec, GrammarStatement, Matcher, Vocabulary
from accelplug.hooks.models import SecondModel
from accelplug.hooks.options import option
from accelplug.hooks.registry import Entry, Owner, Registry, Technique, registry
from accelplug.hooks.specs import Register, hookimpl, hookspec
from accelplug.hooks.spelling import Spec, parse_spec
from accelplug.hooks.verifying import (
    ChainsChoice,
    ChainsView,
    Choice,
    PathVerifier,
    PathView,
    Verifier,
    VerifierTraits,
    VerifyView,
    residual,
)

__all__ = [
    "API_VERSION",
    "ROOT",
    "BuildContext",
    "ChainsChoice",
    "ChainsView",
    "Choice",
    "CommitView",
    "CompileLimits",
    "CompiledGrammar",
    "DeviceDrafter",
    "DeviceDrafts",
    "DeviceView",
    "DraftView",
    "Drafter",
    "DrafterTraits",
    "Drafts",
    "Entry",
    "GrammarEngine",
    "GrammarSpec",
    "GrammarStatement",
    "IntArray",
    "KVCompressor",
    "Matcher",
    "NodeKind",
    "Owner",
    "PathVerifier",
    "PathView",
    "Register",
    "Registry",
    "RequestDrafter",
    "SecondModel",
    "Spec",
    "Technique",
    "Verified",
    "Verifier",
    "VerifierTraits",
    "VerifyView",
    "VisionReducer",
    "Vocabulary",
    "hookimpl",
    "hookspec",
    "load_registry",
    "option",
    "parse_spec",
    "registry",
    "residual",
]
