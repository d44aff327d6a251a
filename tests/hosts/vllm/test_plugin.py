"""Registering: one wrap, cheap, idempotent, removable, and found by vLLM under its entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata

import pytest

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


REPLACE = """
import os, sys
from prometheus_client import REGISTRY
from vllm.engine import arg_utils
from vllm.v1.engine import async_llm, input_processor, llm_engine
from vllm.v1.sample import rejection_sampler
from accelplug.hosts.vllm import audit, cpu_expand, grammar_front, metrics, plugin

places = [
    (arg_utils.EngineArgs, "create_engine_config"), (input_processor.InputProcessor, "_validate_params"),
    (async_llm.AsyncLLM, "add_request"), (async_llm.AsyncLLM, "generate"),
    (llm_engine.LLMEngine, "add_request"), (llm_engine.LLMEngine, "abort_request"), (llm_engine.LLMEngine, "step"),
    (rejection_sampler, "expand_batch_to_tokens"),
]

def state():
    return [getattr(*place) for place in places], dict(os.environ), set(REGISTRY._collector_to_names), list(sys.meta_path)

def install():
    plugin.register()
    plugin.check_requests()
    grammar_front.compile_ahead()
    audit.install()
    metrics.expose()
    assert cpu_expand.repair(), "no CPU build of vLLM has had a kernel that is right"
    return state()

plugin.unregister()  # what vLLM's entry point did
before = state()
for _ in range(2):
    first = install()
    assert all(a is not b for a, b in zip(first[0], before[0], strict=True))
    assert install() == first, "once more changes nothing"
    assert len(plugin.wrapped()) == len(places) - 1
    folder = os.environ[metrics.FOLDER]
    metrics.tell_refused("it cannot")
    assert REGISTRY.get_sample_value("accelplug_refused_info", {"reason": "it cannot"}) == 1
    for _ in range(2):
        plugin.unregister()
        assert state() == before
        assert not os.path.exists(folder) and plugin.wrapped() == []
metrics.count("accelplug_audited_requests")  # of a request that somebody's own wrap still brings

class Others:
    def step(self):
        return 1

plugin.wrap(sys.modules["__main__"], "Others", "step", lambda self, original: original(self) + 1)
ours = Others.step
Others.step = lambda self: ours(self) + 10
plugin.unregister()
assert Others().step() == 12, "what somebody put on top stays"
"""


def test_whatever_is_replaced_is_put_back() -> None:
    pytest.importorskip("vllm")
    environment = {name: value for name, value in os.environ.items() if name not in {"ACCELPLUG_METRICS_DIR", "PROMETHEUS_MULTIPROC_DIR"}}
    done = subprocess.run([sys.executable, "-c", REPLACE], env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
