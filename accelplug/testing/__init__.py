"""For authors: a drafter that knows the answer, and vLLM on both runners without a GPU. Importing this loads no engine."""

from accelplug.testing.oracle import Oracle
from accelplug.testing.vllm_processes import vllm_environment

__all__ = ["Oracle", "vllm_environment"]
