"""The worker: a subclass of the one vLLM chose, named in ``worker_cls``, vLLM's own setting for that.

``worker_cls`` travels with the configuration into every process, so no class of vLLM is patched anywhere. vLLM imports
it by name, and the name says which class to put the subclass on::

    accelplug.hosts.vllm.worker.vllm:v1:worker:gpu_worker:Worker
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

from accelplug._errors import HostError
from accelplug.hosts.vllm.attachment import Attachment, NoDrafts
from accelplug.hosts.vllm.building import build_session
from accelplug.hosts.vllm.compat import RunnerName, require_worker
from accelplug.hosts.vllm.log import LOG
from accelplug.hosts.vllm.plugin import KEY
from accelplug.hosts.vllm.settings import read_settings

METHODS = ("load_model", "compile_or_warm_up_model", "execute_model", "sample_tokens", "take_draft_token_ids")


def attached(worker_cls: str) -> str:
    """Return the name of accelplug's subclass of a worker class.

    :param worker_cls: ``"package.module.Class"``.
    """
    return f"{__name__}.{worker_cls.replace('.', ':')}"


def __getattr__(name: str) -> type:
    if ":" not in name:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _subclass(name.replace(":", "."))


@functools.cache
def _subclass(worker_cls: str) -> type:
    module, _, name = worker_cls.rpartition(".")
    base = getattr(import_module(module), name)
    missing = [method for method in METHODS if not hasattr(base, method)]
    if missing:
        raise HostError(f"worker_cls {worker_cls} has no {', '.join(missing)}; accelplug needs a subclass of vllm.v1.worker.gpu_worker.Worker")
    return type(f"Attached{name}", (AttachedWorker, base), {})


class AttachedWorker:
    """What accelplug adds to a worker. It stands before vLLM's class in the order of inheritance."""

    model_runner: Any
    use_v2_model_runner: bool
    accelplug: Attachment

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then put the drafter in place: before vLLM profiles, compiles or captures anything."""
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        self.accelplug = attach(self.model_runner, v2=self.use_v2_model_runner)

    def compile_or_warm_up_model(self) -> Any:
        """Warm up, then see that nobody took the drafter's place."""
        times = super().compile_or_warm_up_model()  # type: ignore[misc]
        self.accelplug.verify()
        return times

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run the target model."""
        self.accelplug.begin_step(scheduler_output)
        return super().execute_model(scheduler_output)  # type: ignore[misc]

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Verify, and draft for the next step."""
        output = super().sample_tokens(grammar_output)  # type: ignore[misc]
        self.accelplug.end_step(output)
        return output

    def take_draft_token_ids(self) -> Any:
        """Hand the drafts to the scheduler."""
        return self.accelplug.trim(super().take_draft_token_ids())  # type: ignore[misc]

    def accelplug_status(self) -> dict[str, Any]:
        """Return what runs and what came of it: ``llm.collective_rpc("accelplug_status")``."""
        return self.accelplug.status()


def attach(runner: Any, *, v2: bool) -> Attachment:
    """Build the drafter and put it into a model runner.

    :param runner: vLLM's model runner, its model loaded.
    :raises AccelplugError: it cannot be built, or vLLM cannot run it.
    """
    from vllm.distributed.parallel_state import get_pp_group

    if not get_pp_group().is_last_rank:
        LOG.info("accelplug: the last pipeline rank drafts, this one does not")
        return NoDrafts()
    name: RunnerName = "V2" if v2 else "V1"
    require_worker(name)
    session = build_session(runner, name, read_settings(runner.vllm_config.additional_config[KEY]))
    if v2:
        from accelplug.hosts.vllm.v2 import V2Attachment

        return V2Attachment(runner, session)
    from accelplug.hosts.vllm.v1 import V1Attachment

    return V1Attachment(runner, session)
