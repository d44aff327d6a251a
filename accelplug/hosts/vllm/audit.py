"""``audit=0.01``: that share of the greedy requests is run again without drafts once it ended, and the tokens are compared.

Two places of vLLM's front end see every request and its output, servers at one and ``LLM`` at the other; both are wrapped
when a configuration asks for audits, and call straight through for requests that are not chosen.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from accelplug.hosts.vllm.log import LOG
from accelplug.hosts.vllm.metrics import count
from accelplug.hosts.vllm.plugin import ASYNC, KEY, SYNC, wrap
from accelplug.hosts.vllm.requests import CAP, read_request

ENDED: Final = frozenset({"stop", "length"})
"""Why a request ends that nobody aborted and that did not fail."""


@dataclass
class Run:
    """A request that was chosen, and what became of it.

    :param more: whatever it was submitted with beside its prompt, in order and by name.
    """

    request_id: str
    prompt: Any
    params: Any
    more: tuple[tuple[Any, ...], dict[str, Any]]
    tokens: list[int] = field(default_factory=list)

    def take(self, output: Any) -> bool:
        """Collect an output's tokens; return whether the request came to its end, and was not aborted."""
        (completion,) = output.outputs
        self.tokens = [*(self.tokens if self.params.output_kind.name == "DELTA" else ()), *completion.token_ids]
        return completion.finish_reason in ENDED

    def plain(self, most_logprobs: int) -> Any:
        """Return vLLM's SamplingParams for the same request without drafts, whose prompt is read anew.

        :param most_logprobs: how many log-probabilities the engine lets a request ask for, below 0 for any number.
        """
        params = self.params.clone()
        params.extra_args = {**(params.extra_args or {}), f"{KEY}.{CAP}": 0}
        params.output_kind = type(params.output_kind).FINAL_ONLY
        params.logprobs, params.prompt_logprobs = (None if most_logprobs in {0, 1} else 2), None
        params.skip_reading_prefix_cache = True
        return params

    def compare(self, output: Any) -> None:
        """Count the audit, and a mismatch if there is one."""
        (completion,) = output.outputs
        if completion.finish_reason not in ENDED:
            return
        count("accelplug_audited_requests")
        mine, plain = self.tokens, list(completion.token_ids)
        if mine == plain:
            return
        count("accelplug_audit_mismatches")
        at = next((i for i, (a, b) in enumerate(zip(mine, plain, strict=False)) if a != b), min(len(mine), len(plain)))
        LOG.warning(
            "accelplug: audit: request %s has other tokens than without drafts from output token %d on, %s and not %s%s",
            self.request_id, at, mine[at : at + 3], plain[at : at + 3], apart(completion.logprobs, at),
        )  # fmt: skip


def apart(logprobs: Any, at: int) -> str:
    """Say how close the best two tokens are, which tells a fault from rounding; nothing where that was not asked."""
    if not logprobs or at >= len(logprobs):
        return ""
    best = sorted((one.logprob for one in logprobs[at].values()), reverse=True)
    return f"; without drafts the best two are {best[0] - best[1]:.2g} apart in log-probability"


def chosen(engine: Any, request_id: str, prompt: Any, params: Any, *more: Any, **named: Any) -> Run | None:
    """Return the request if it is to be audited: one greedy answer to a prompt of text or tokens, whose drafts nobody turned off."""
    share = ((engine.vllm_config.additional_config or {}).get(KEY) or {}).get("audit", 0)
    if not share or random.random() >= share:
        return None
    sampling = getattr(params, "sampling_type", None)
    text = isinstance(prompt, str) or (isinstance(prompt, dict) and prompt.get("type", "token") == "token" and not prompt.get("multi_modal_data"))
    if sampling is None or sampling.name != "GREEDY" or params.n != 1 or not text or read_request(params.extra_args).get(CAP) == 0:
        return None
    return Run(request_id, prompt, params, (more, named))


def install() -> None:
    """Wrap the places; calling it again does nothing."""
    wrap(importlib.import_module(ASYNC), "AsyncLLM", "generate", _generate)
    wrap(importlib.import_module(SYNC), "LLMEngine", "add_request", _add_request)
    wrap(importlib.import_module(SYNC), "LLMEngine", "abort_request", _abort_request)
    wrap(importlib.import_module(SYNC), "LLMEngine", "step", _step)


def _generate(self: Any, original: Any, prompt: Any, sampling_params: Any, request_id: str, **named: Any) -> AsyncIterator[Any]:
    """Stand in for ``AsyncLLM.generate``."""
    run = chosen(self, request_id, prompt, sampling_params, **named)
    outputs: AsyncIterator[Any] = original(self, prompt, sampling_params, request_id, **named)
    return outputs if run is None else _watched(self, original, run, outputs)


_running: set[asyncio.Task[None]] = set()
"""What the event loop itself would not hold on to."""


async def _watched(engine: Any, original: Any, run: Run, outputs: Any) -> AsyncIterator[Any]:
    """Pass a request's outputs on, and have it run again as soon as the last one is there."""
    async with contextlib.aclosing(outputs):
        async for output in outputs:
            if run.take(output):
                task = asyncio.create_task(_again(engine, original, run))
                _running.add(task)
                task.add_done_callback(_running.discard)
            yield output


async def _again(engine: Any, original: Any, run: Run) -> None:
    plain, (_, named) = run.plain(engine.model_config.max_logprobs), run.more
    try:
        async for output in original(engine, run.prompt, plain, f"audit-{run.request_id}", **named):
            run.compare(output)
    except Exception as exc:  # noqa: BLE001  an engine that is full or stops must not be troubled by this
        LOG.info("accelplug: request %s could not be audited (%s: %s)", run.request_id, type(exc).__name__, exc)


class Audits:
    """What an engine that is stepped from outside keeps of them, by request id.

    :param add_request: vLLM's own.
    """

    def __init__(self, add_request: Callable[..., Any]) -> None:
        self.add_request = add_request
        self.chosen: dict[str, Run] = {}
        self.again: dict[str, Run] = {}

    def forget(self, request_ids: list[str]) -> None:
        """Audit none of these requests; unknown ones are passed over."""
        for request_id in request_ids:
            self.chosen.pop(request_id, None)

    def is_users(self, engine: Any, output: Any) -> bool:
        """Learn from an output, and return whether the user asked for it."""
        if (again := self.again.pop(output.request_id, None)) is not None:
            again.compare(output)
            return False
        if (run := self.chosen.get(output.request_id)) is not None:
            ended = run.take(output)
            if output.finished:
                self.forget([output.request_id])
            if ended:
                self._again(engine, run)
        return True

    def _again(self, engine: Any, run: Run) -> None:
        name, (more, named) = f"audit-{run.request_id}", run.more
        self.again[name] = run
        self.add_request(engine, name, run.prompt, run.plain(engine.model_config.max_logprobs), *more, **named)


def _add_request(self: Any, original: Any, request_id: str, prompt: Any, params: Any, *more: Any, **named: Any) -> Any:
    """Stand in for ``LLMEngine.add_request``."""
    run = chosen(self, request_id, prompt, params, *more, **named)
    queued = original(self, request_id, prompt, params, *more, **named)
    audits = vars(self).setdefault("accelplug_audits", Audits(original))
    audits.forget([request_id])  # an earlier request of that name, which was aborted where this does not see it
    if run is not None:
        audits.chosen[request_id] = run
    return queued


def _abort_request(self: Any, original: Any, request_ids: list[str], *more: Any, **named: Any) -> Any:
    """Stand in for ``LLMEngine.abort_request``."""
    if (audits := getattr(self, "accelplug_audits", None)) is not None:
        audits.forget(request_ids)
    return original(self, request_ids, *more, **named)


def _step(self: Any, original: Any) -> list[Any]:
    """Stand in for ``LLMEngine.step``."""
    outputs: list[Any] = original(self)
    audits: Audits | None = getattr(self, "accelplug_audits", None)
    return outputs if audits is None else [output for output in outputs if audits.is_users(self, output)]
