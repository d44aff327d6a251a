"""The scheduler of a server with a grammar's engine: a subclass of the one vLLM chose, named in ``scheduler_cls``, vLLM's own setting.

vLLM makes its structured outputs' manager in the engine core, without a setting of its own, and hands it to the scheduler. This one
changes that one manager, puts what grammars force among the drafts, and hears when requests end::

    accelplug.hosts.vllm.scheduler.vllm:v1:core:sched:scheduler:Scheduler
"""

from __future__ import annotations

import functools
import json
import time
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any, Final

from vllm.v1.engine import FinishReason

from accelplug._errors import AccelplugError, HostError
from accelplug.hooks.masking import CompileLimits, GrammarStatement, Vocabulary
from accelplug.hooks.registry import Technique, registry
from accelplug.hosts.vllm.board import Board, Counters, folder_of
from accelplug.hosts.vllm.grammar_core import RunningGrammar, Tally
from accelplug.hosts.vllm.grammar_drafts import Forcing, real_drafts, running_of
from accelplug.hosts.vllm.grammar_engines import Engines, whole_vocabulary
from accelplug.hosts.vllm.grammar_request import STATEMENT, Asked, asked
from accelplug.hosts.vllm.log import LOG
from accelplug.hosts.vllm.plugin import KEY
from accelplug.hosts.vllm.requests import read_request
from accelplug.hosts.vllm.settings import VLLMS, Settings, read_settings
from accelplug.hosts.vllm.subclasses import Subclasses

MOST_SAID: Final = 1024
UNBEGUN: Final = "the answer ended before its grammar began, since the model never ended its reasoning"
RELIED_ON: Final = ("executor", "tokenizer", "_grammar_bitmask", "_use_async_grammar_compilation")


def governed(scheduler_cls: type) -> str:
    """Return the name of accelplug's subclass of a scheduler."""
    return _SUBCLASSES.name_of(f"{scheduler_cls.__module__}.{scheduler_cls.__qualname__}")


def __getattr__(name: str) -> type:
    return _SUBCLASSES(name)


_SUBCLASSES: Final = Subclasses(__name__, lambda base, _: type(f"Governed{base.__name__}", (GovernedScheduler, base), {}))


class GovernedScheduler:
    """What accelplug adds to a scheduler. It stands before vLLM's class in the order of inheritance."""

    vllm_config: Any
    requests: Any
    structured_output_manager: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.accelplug_govern()

    def accelplug_govern(self) -> None:
        """Compile grammars from here on, as the configuration says."""
        config = self.vllm_config
        settings = read_settings(config.additional_config[KEY])
        self.accelplug = Grammars(config, self.structured_output_manager, settings)
        self.accelplug_forcing = Forcing(self, 0 if config.scheduler_config.async_scheduling else settings.num_tokens)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Lay out the next step."""
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        self.accelplug_forcing.tell(output)
        return output

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        """Take the drafts for the next step."""
        given = real_drafts(draft_token_ids)
        super().update_draft_token_ids(draft_token_ids)  # type: ignore[misc]
        left = {req_id: request.spec_token_ids for req_id in given if (request := self.requests.get(req_id)) is not None}
        self.accelplug_forcing.cut(given, left)
        self.accelplug_forcing.extend(left)

    def update_draft_token_ids_in_output(self, draft_token_ids: Any, scheduler_output: Any) -> None:
        """Take the drafts of a step that runs already, as under asynchronous scheduling."""
        given = real_drafts(draft_token_ids)
        super().update_draft_token_ids_in_output(draft_token_ids, scheduler_output)  # type: ignore[misc]
        self.accelplug_forcing.cut(given, scheduler_output.scheduled_spec_decode_tokens)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take a step's tokens."""
        self.accelplug_forcing.count(scheduler_output, model_runner_output)
        return super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self.accelplug_forcing.end(request.request_id)
        self.accelplug.finish(request)
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]


class Grammars:
    """The grammars of one engine core.

    :param manager: vLLM's StructuredOutputManager, whose `grammar_init` is taken over for the requests that are accelplug's.
    :raises HostError: the manager is not what it was in the releases tested.
    """

    def __init__(self, config: Any, manager: Any, settings: Settings) -> None:
        if gone := [name for name in RELIED_ON if not hasattr(manager, name)]:
            raise HostError(f"vLLM's StructuredOutputManager has no {', '.join(gone)} any more, which grammars need; use a tested release")
        assert settings.grammar is not None
        self.config, self.manager, self.default = config, manager, settings.grammar
        self.engines = Engines(settings.grammar, config)
        self.vllms_own, manager.grammar_init = manager.grammar_init, self.begin
        if manager._grammar_bitmask is None:
            manager._grammar_bitmask = _rows(config)
        offered = [entry for entry in registry() if entry.kind == "grammar"]
        self.tallies = {("grammar", entry.name, entry.owner.distribution, entry.owner.version): Tally() for entry in offered}
        self._compiling: dict[str, tuple[Future[Any], Event]] = {}
        self._said: set[Asked] = set()
        self.board = self._board()
        theirs = "vLLM's own backends compile structured outputs, and accelplug's engines those of requests that name one"
        LOG.info("accelplug: %s", theirs if str(self.default) == VLLMS else f"grammar '{self.default}' compiles structured outputs in place of vLLM's backends")

    def begin(self, request: Any) -> None:
        """Begin to compile a request's grammar, as vLLM's `grammar_init` does; a failure ends this request alone."""
        structured = request.structured_output_request
        if structured is None:
            return
        try:
            wanted = asked(self.default, self.config, request.sampling_params, read_request(request.sampling_params.extra_args))
        except AccelplugError as exc:  # the front end refuses it with the same words
            structured.grammar = _failed(request, exc)
            return
        if wanted is None:
            self.vllms_own(request)
        elif self.manager._use_async_grammar_compilation:
            cancelled = Event()
            future = self.manager.executor.submit(self._compile, request, wanted, CompileLimits(cancelled=cancelled))
            structured.grammar, self._compiling[request.request_id] = future, (future, cancelled)
        else:
            try:
                structured.grammar = self._compile(request, wanted, CompileLimits())
            except Exception as exc:  # noqa: BLE001  whatever an engine raises ends its own request
                structured.grammar = _failed(request, exc)

    def finish(self, request: Any) -> None:
        """Check a finished answer for what its mask leaves open. What it violates is logged, counted, and told as the reason why it stopped."""
        if (compiling := self._compiling.pop(request.request_id, None)) is not None:
            future, cancelled = compiling
            future.cancel()
            cancelled.set()  # for what runs already
        running = running_of(request)
        if running is None:
            return
        stopped = request.get_finished_reason() == FinishReason.STOP
        running.tally.answers += stopped
        problem = None if not stopped else running.problem() if running.is_terminated() else UNBEGUN
        if problem is not None:
            running.tally.violations += 1
            LOG.warning("accelplug: the answer of request %s is not what its grammar asks for: %s", request.request_id, problem)
        if read_request(request.sampling_params.extra_args).get(STATEMENT):
            request.stop_reason = json.dumps({KEY: running.statement(problem), "stop_reason": request.stop_reason})
        elif problem is not None:
            request.stop_reason = f"accelplug: {problem}"
        if self.board is not None:
            self.board.write(self)

    def counters(self) -> list[Counters]:
        """Return every engine's counters, the same ones each time."""
        return [tally.counters(who) for who, tally in self.tallies.items()]

    def status(self) -> dict[str, dict[str, float]]:
        """Return what the engines' grammars came to, by engine; those that compiled nothing are left out."""
        return {who[1]: asdict(tally) for who, tally in self.tallies.items() if tally.compiled}

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The model's tokens, read when the first grammar is compiled."""
        return whole_vocabulary(self.config, self.manager.tokenizer)

    def _compile(self, request: Any, wanted: Asked, limits: CompileLimits) -> RunningGrammar:
        began = time.perf_counter()
        try:
            engine, compiled = self.engines.compile(wanted, self.vocabulary, limits)
            tally = self.tallies[_who(engine)]
            running = RunningGrammar(engine, compiled, self.vocabulary, request.sampling_params.all_stop_token_ids, tally)
        except Exception as exc:
            if limits.cancelled is None or not limits.cancelled.is_set():
                LOG.error("accelplug: request %s ends in an error: %s", request.request_id, exc)
            raise
        tally.compiled += 1
        self._say(wanted, engine, compiled.statement, time.perf_counter() - began)
        return running

    def _say(self, wanted: Asked, engine: Technique, said: GrammarStatement, seconds: float) -> None:
        """Say what a grammar enforces, the first time that it is asked for."""
        if wanted in self._said or len(self._said) >= MOST_SAID:
            return
        self._said.add(wanted)
        checked = f"; checked at the end: {', '.join(said.checked)}" if said.checked else ""
        LOG.info(
            "accelplug: %s compiled a %s with %s in %.0f ms: %d keywords enforced by mask%s",
            engine, wanted.spec.kind, said.engine, 1000 * seconds, len(said.enforced), checked,
        )  # fmt: skip

    def _board(self) -> Board | None:
        folder = folder_of()
        try:
            return Board(Path(folder), str(self.config.parallel_config.data_parallel_index), self.counters(), waits=False) if folder else None
        except OSError as exc:
            LOG.warning("accelplug: no counters of grammars on /metrics, since %s cannot be written (%s)", folder, exc)
            return None


def _failed(request: Any, exc: Exception) -> Future[Any]:
    LOG.error("accelplug: request %s ends in an error: %s", request.request_id, exc)
    failed: Future[Any] = Future()
    failed.set_exception(exc)
    return failed


def _who(engine: Technique) -> tuple[str, str, str, str]:
    return "grammar", engine.name, engine.owner.distribution, engine.owner.version


def _rows(config: Any) -> Any:
    """Return a mask for every position that one step can verify, as vLLM's backends allocate it: it then needs none of them."""
    import torch

    rows = config.scheduler_config.max_num_seqs * (1 + config.num_speculative_tokens)
    return torch.full((rows, -(-config.model_config.get_vocab_size() // 32)), -1, dtype=torch.int32)
