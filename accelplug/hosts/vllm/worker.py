"""The worker: a subclass of the one vLLM chose, named in ``worker_cls``, vLLM's own setting for that.

``worker_cls`` travels with the configuration into every process, so no class of vLLM is patched anywhere. vLLM imports
it by name, and the name says which class to put the subclass on::

    accelplug.hosts.vllm.worker.vllm:v1:worker:gpu_worker:Worker
"""

from __future__ import annotations

from typing import Any, Final

from accelplug._errors import AccelplugError, HostError
from accelplug.hooks.registry import Technique
from accelplug.hosts.vllm.attachment import Attachment, NoDrafts
from accelplug.hosts.vllm.board import Board, board_of
from accelplug.hosts.vllm.building import build_session
from accelplug.hosts.vllm.compat import RunnerName, require_worker
from accelplug.hosts.vllm.forced import lay
from accelplug.hosts.vllm.judging import Judge
from accelplug.hosts.vllm.log import LOG
from accelplug.hosts.vllm.plugin import KEY
from accelplug.hosts.vllm.requests import RequestOptions
from accelplug.hosts.vllm.session import Session
from accelplug.hosts.vllm.settings import Settings, read_settings
from accelplug.hosts.vllm.subclasses import Subclasses

METHODS = ("load_model", "compile_or_warm_up_model", "execute_model", "sample_tokens", "take_draft_token_ids")


def attached(worker_cls: str) -> str:
    """Return the name of accelplug's subclass of a worker class.

    :param worker_cls: ``"package.module.Class"``.
    """
    return _SUBCLASSES.name_of(worker_cls)


def __getattr__(name: str) -> type:
    return _SUBCLASSES(name)


def _subclass(base: type, worker_cls: str) -> type:
    missing = [method for method in METHODS if not hasattr(base, method)]
    if missing:
        raise HostError(f"worker_cls {worker_cls} has no {', '.join(missing)}; accelplug needs a subclass of vllm.v1.worker.gpu_worker.Worker")
    return type(f"Attached{base.__name__}", (AttachedWorker, base), {})


_SUBCLASSES: Final = Subclasses(__name__, _subclass)


class AttachedWorker:
    """What accelplug adds to a worker. It stands before vLLM's class in the order of inheritance."""

    model_runner: Any
    use_v2_model_runner: bool
    accelplug: Attachment
    accelplug_board: Board | None

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then put the drafter in place: before vLLM profiles, compiles or captures anything."""
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        self.accelplug = attach(self.model_runner, v2=self.use_v2_model_runner)
        self.accelplug_board = board_of(self.accelplug, self.model_runner.vllm_config, self.model_runner.device)

    def compile_or_warm_up_model(self) -> Any:
        """Warm up, then see that nobody took the drafter's place."""
        times = super().compile_or_warm_up_model()  # type: ignore[misc]
        self.accelplug.verify()
        for seam in self.accelplug.status()["seams"]:
            LOG.info("accelplug: in effect in vLLM's model runner: %s", seam)
        return times

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run the target model."""
        if self.use_v2_model_runner:
            lay(self.model_runner.req_states, scheduler_output)
        self.accelplug.begin_step(scheduler_output)
        return super().execute_model(scheduler_output)  # type: ignore[misc]

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Verify, and draft for the next step."""
        output = super().sample_tokens(grammar_output)  # type: ignore[misc]
        self.accelplug.end_step(output)
        if self.accelplug_board is not None:
            self.accelplug_board.write(self.accelplug, quiet=self.accelplug.quiet)
        return output

    def take_draft_token_ids(self) -> Any:
        """Hand the drafts to the scheduler."""
        return self.accelplug.trim(super().take_draft_token_ids())  # type: ignore[misc]

    def accelplug_status(self) -> dict[str, Any]:
        """Return what runs and what came of it: ``llm.collective_rpc("accelplug_status")``.

        Grammars are compiled elsewhere, in the engine's scheduler, so that of those only the engine is named; their counters are on /metrics.
        """
        grammar = read_settings(self.model_runner.vllm_config.additional_config[KEY]).grammar
        return {**self.accelplug.status(), "grammar": None if grammar is None else str(grammar)}


def attach(runner: Any, *, v2: bool) -> Attachment:
    """Build the drafter and put it into a model runner.

    :param runner: vLLM's model runner, its model loaded.
    :raises AccelplugError: it cannot be built, or vLLM cannot run it.
    """
    from vllm.distributed.parallel_state import get_pp_group

    if not get_pp_group().is_last_rank:
        LOG.info("accelplug: the last pipeline rank judges drafts, this one does not")
        return NoDrafts()
    settings = read_settings(runner.vllm_config.additional_config[KEY])
    try:
        return _attach(runner, settings, v2=v2)
    except AccelplugError as exc:
        if settings.on_refused == "stop":
            raise
        from accelplug.hosts.vllm.refused import Refused

        return Refused(runner, exc, v2=v2, drafts=settings.drafts)


def _attach(runner: Any, settings: Settings, *, v2: bool) -> Attachment:
    name: RunnerName = "V2" if v2 else "V1"
    require_worker(name)
    built = build_session(runner, name, settings)
    if not isinstance(built, Session):
        return _attach_rule(runner, *built, v2=v2)
    if v2:
        from accelplug.hosts.vllm.v2 import V2Attachment

        return V2Attachment(runner, built)
    from accelplug.hosts.vllm.v1 import V1Attachment

    return V1Attachment(runner, built)


def _attach_rule(runner: Any, rule: Technique, judge: Judge | None, *, v2: bool) -> Attachment:
    """Put a rule behind a drafter of vLLM's own."""
    from accelplug.hosts.vllm.seat import Seat
    from accelplug.hosts.vllm.verifier_only import VerifierOnly

    repaired = []
    if not v2:
        from accelplug.hosts.vllm.v1 import repair

        repaired = repair(runner)
    seat = None if judge is None else Seat(runner, judge, RequestOptions(), v2=v2)
    return VerifierOnly(runner, rule, seat, v2=v2, repaired=repaired)
