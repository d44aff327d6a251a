"""What third parties may import, word for word. A change here is a change of the contract."""

from __future__ import annotations

import subprocess
import sys

import pytest

import accelplug
from accelplug import hooks

ACCELPLUG = [
    "AccelplugError",
    "ConstraintError",
    "Grammar",
    "HostError",
    "OptionError",
    "PluginError",
    "Session",
    "UnknownTechniqueError",
    "__version__",
    "attach",
    "generate",
    "grammar",
    "hookimpl",
    "load_config",
    "load_registry",
    "option",
    "registry",
]
HOOKS = [
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
HEAVY = ("torch", "transformers", "vllm", "rich", "accelplug.hosts")


@pytest.mark.parametrize(("module", "names"), [(accelplug, ACCELPLUG), (hooks, HOOKS)], ids=["accelplug", "accelplug.hooks"])
def test_the_public_names_are_these(module, names):
    assert module.__all__ == names


def test_every_public_name_of_the_contract_is_there():
    assert [name for name in HOOKS if not hasattr(hooks, name)] == []


def test_dir_lists_the_public_names_and_nothing_else():
    assert dir(accelplug) == sorted(ACCELPLUG)


def test_a_name_that_is_none_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'accelplug' has no attribute 'generat'"):
        accelplug.generat  # noqa: B018


@pytest.mark.parametrize("statement", ["import accelplug", "import accelplug.hooks", "import accelplug; accelplug.registry()"])
def test_importing_and_discovering_load_no_engine(statement):
    code = f"import sys; {statement}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_error_is_an_accelplug_error():
    errors = [getattr(accelplug, name) for name in ACCELPLUG if name.endswith("Error")]
    assert len(errors) == 6
    assert all(issubclass(error, accelplug.AccelplugError) for error in errors)
    assert issubclass(accelplug.OptionError, ValueError)
