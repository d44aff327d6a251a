"""A grammar's part in drafting: what it forces is drafted, what it forbids is cut, and both are counted.

The scheduler does this between two steps, where vLLM itself checks drafts: what it lays out for the next step is then legal as far as
it goes. Workers are told which of the drafts are not their drafter's, in an attribute of the scheduler's output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from accelplug.hosts.vllm.forced import FORCED, forced_in
from accelplug.hosts.vllm.grammar_core import RunningGrammar
from accelplug.hosts.vllm.requests import CAP, read_request


class Forcing:
    """Drafts what grammars force, behind what the drafter drafted.

    :param scheduler: vLLM's, not asynchronous: there a step's tokens are in the model before its drafts are known here.
    :param num_tokens: the most tokens drafted for a request in one step; 0 to draft none.
    """

    def __init__(self, scheduler: Any, num_tokens: int) -> None:
        self.scheduler, self.num_tokens = scheduler, num_tokens
        self.manager: Final = scheduler.structured_output_manager
        self._laid: dict[str, tuple[int, list[int]]] = {}  # request id -> how many drafts are the drafter's own, and all of them

    def cut(self, given: Mapping[str, int], left: Mapping[str, Sequence[int]]) -> None:
        """Count what vLLM cut since the grammar forbids it.

        :param given: request id -> how many drafts there were; padding counts among them where vLLM wants one length.
        :param left: request id -> the drafts that stay.
        """
        for req_id, count in given.items():
            if req_id in left and (running := self._running(req_id)) is not None:
                running.count("cut", max(count - _real(left[req_id]), 0))

    def extend(self, left: Mapping[str, list[int]]) -> None:
        """Put what is forced among the drafts that stay: behind them, and in place of them from where they disagree with it."""
        for req_id, drafts in left.items() if self.num_tokens else ():
            running = self._running(req_id)
            if running is None or not self._applies(request := self.scheduler.requests[req_id]):
                continue
            own, found = _shaped(running, drafts, self._room(request))
            if own < len(found):
                request.spec_token_ids = found
                self._laid[req_id] = own, found

    def _running(self, req_id: str) -> RunningGrammar | None:
        """Return the grammar of a request that decodes."""
        request = self.scheduler.requests.get(req_id)
        return None if request is None or request.is_finished() or request.is_prefill_chunk else running_of(request)

    def tell(self, output: Any) -> None:
        """Tell the workers which drafts of a step are forced.

        :param output: vLLM's SchedulerOutput.
        """
        told = {}
        for req_id in [req_id for req_id in self._laid if req_id in output.num_scheduled_tokens]:
            own, laid = self._laid.pop(req_id)
            drafts = output.scheduled_spec_decode_tokens.get(req_id, ())
            if len(drafts) > own and list(drafts) == laid[: len(drafts)]:  # else it was preempted, and its drafts were dropped
                told[req_id] = own
        if told:
            setattr(output, FORCED, told)

    def count(self, output: Any, sampled: Any) -> None:
        """Count what the verifier kept of forced tokens.

        :param output: vLLM's SchedulerOutput.
        :param sampled: its ModelRunnerOutput.
        """
        for req_id, own in forced_in(output).items():
            new = sampled.sampled_token_ids[sampled.req_id_to_index[req_id]] if sampled.sampled_token_ids else []
            if new and (running := self._running(req_id)) is not None:
                running.count("drafts", 1)
                running.count("drafted", len(output.scheduled_spec_decode_tokens[req_id]) - own)
                running.count("accepted", max(len(new) - 1 - own, 0))

    def end(self, req_id: str) -> None:
        """Forget a request."""
        self._laid.pop(req_id, None)

    def _applies(self, request: Any) -> bool:
        """Whether the grammar has begun: it does not while a model reasons."""
        manager = self.manager
        return bool(manager.reasoner_cls is None or manager.enable_in_reasoning or request.structured_output_request.reasoning_ended)

    def _room(self, request: Any) -> int:
        """Return the most drafts for a request; the target model adds one token of its own, and that has to fit too."""
        left = min(request.num_prompt_tokens + request.max_tokens, self.scheduler.max_model_len) - request.num_tokens - 1
        most: int = read_request(request.sampling_params.extra_args).get(CAP, self.num_tokens)
        room: int = min(left, most, self.scheduler.num_spec_tokens)
        return room


def _shaped(running: RunningGrammar, drafts: list[int], room: int) -> tuple[int, list[int]]:
    """Return drafts with forced tokens among them, and how many of them are the drafter's: those come first.

    :param drafts: legal ones.
    :param room: the most tokens.
    """
    forced = list(running.forced([])[: max(room, 0)])
    agreed = next((i for i, (one, other) in enumerate(zip(drafts, forced, strict=False)) if one != other), min(len(drafts), len(forced)))
    if agreed < len(forced):
        return agreed, forced
    more = running.forced(drafts)[: max(room - len(drafts), 0)] if drafts else ()
    return len(drafts), [*drafts, *more]


def running_of(request: Any) -> RunningGrammar | None:
    """Return the grammar that accelplug compiled for a request, once it has."""
    structured = request.structured_output_request
    found = None if structured is None else structured.grammar
    return found if isinstance(found, RunningGrammar) else None


def real_drafts(given: Any) -> dict[str, int]:
    """Return how many drafts of each request are tokens.

    :param given: vLLM's DraftTokenIds.
    """
    return {req_id: _real(drafts) for req_id, drafts in zip(given.req_ids, given.draft_token_ids, strict=True)}


def _real(drafts: Sequence[int]) -> int:
    return drafts.index(-1) if -1 in drafts else len(drafts)
