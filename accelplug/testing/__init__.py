"""For authors: contract classes to subclass, a drafter that knows the answer, and vLLM on both runners without a GPU.

Importing this loads no engine, and neither pytest nor its plugins.
"""

from accelplug.testing.drafters import DrafterConformance
from accelplug.testing.grammars import GrammarConformance
from accelplug.testing.oracle import Oracle
from accelplug.testing.verifiers import VerifierConformance
from accelplug.testing.vllm_processes import vllm_environment

__all__ = ["DrafterConformance", "GrammarConformance", "Oracle", "VerifierConformance", "vllm_environment"]
