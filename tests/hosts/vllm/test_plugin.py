"""Registering: one wrap, cheap, idempotent, removable, and found by vLLM under its entry point."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

IMPORT = """
import sys
from accelplug.hosts.vllm.plugin import register, unregister
register(); register()
assert not {"torch", "vllm", "transformers"} & set(sys.modules), "registering imports an engine"
finders = [type(finder).__name__ for finder in sys.meta_path]
assert finders.count("_WrapOnImport") == 1
unregister()
assert "_WrapOnImport" not in [type(finder).__name__ for finder in sys.meta_path]
"""


def test_entry_point() -> None:
    (entry_point,) = (found for found in metadata.entry_points(group="vllm.general_plugins") if found.name == "accelplug")
    assert entry_point.value == "accelplug.hosts.vllm.plugin:register"
    assert not [found for found in metadata.entry_points(group="vllm.logits_processors") if found.dist and found.dist.name == "accelplug"]


def test_registering_imports_no_engine() -> None:
    subprocess.run([sys.executable, "-c", IMPORT], check=True, timeout=60)
