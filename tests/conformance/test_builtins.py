"""Every built-in technique passes the classes that third parties use; a new one is covered as soon as it is registered."""

from __future__ import annotations

from typing import Any

from accelplug.hooks import load_registry
from accelplug.hooks.registry import HOOKS
from accelplug.testing import DrafterConformance, GrammarConformance, VerifierConformance
from accelplug.testing.models import looping_llama

CLASSES = {"drafter": DrafterConformance, "verifier": VerifierConformance, "grammar": GrammarConformance}
BUILT_IN = [entry for entry in load_registry(entry_points=False) if entry.kind in CLASSES]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
EXAMPLES = [
    ({"regex": "aa[bc]|x"}, ["aab", "x"], ["aa", "xx", ""]),
    ({"choice": ["a", "aa", "yes"]}, ["a", "aa", "yes"], ["aaa", "ye", ""]),
    ({"json_schema": SCHEMA, "whitespace": "compact"}, ['{"a":1}', '{"a":-20}'], ['{"a":1.5}', '{"b":1}', '{"a":1,"a":1.5}', "1"]),
]
GIVEN: dict[str, dict[str, Any]] = {
    "draft_model": {"technique": {"name": "draft_model", "model": looping_llama(2), "num_tokens": 3}},
    **{name: {"examples": EXAMPLES} for name in ("auto", "llguidance", "xgrammar", "outlines")},
}
"""What a class says beside the name."""


def _class_of(entry: Any) -> type:
    """Return the contract class for one technique, as its author would write it."""
    return type(f"Test{entry.name.title().replace('_', '')}", (CLASSES[entry.kind],), {"technique": entry.name, **GIVEN.get(entry.name, {})})


for _entry in BUILT_IN:
    _class = _class_of(_entry)
    globals()[_class.__name__] = _class


def test_every_hook_that_a_host_runs_has_a_class_and_a_technique_that_passes_it():
    untested = {"kv_compressor", "vision_reducer"}  # which every host refuses
    assert CLASSES.keys() == HOOKS.keys() - untested
    assert {entry.kind for entry in load_registry(entry_points=False)} == CLASSES.keys()


def test_every_built_in_is_covered():
    assert {f"Test{entry.name.title().replace('_', '')}" for entry in BUILT_IN} <= set(globals())
    assert len(BUILT_IN) >= 3
