"""Which requests are remembered for an audit, and for how long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="what is sampled is vLLM's")

from vllm import SamplingParams

from accelplug.hosts.vllm.audit import _abort_request, _add_request, _step


class Engine:
    """Queues requests as vLLM's does, and ends them when it is told to."""

    def __init__(self) -> None:
        self.vllm_config = SimpleNamespace(additional_config={"accelplug": {"audit": 1.0}})
        self.model_config = SimpleNamespace(max_logprobs=5)
        self.queued: list[tuple[str, Any]] = []
        self.outputs: list[Any] = []

    def add(self, request_id: str, prompt: str, **params: Any) -> None:
        _add_request(self, Engine._queue, request_id, prompt, SamplingParams(temperature=0, **params))

    def _queue(self, request_id: str, prompt: str, params: Any, *more: Any, **named: Any) -> None:
        if prompt == "too long":
            raise ValueError("it is too long")
        self.queued.append((request_id, prompt))

    def end(self, request_id: str, *tokens: int, reason: str = "stop") -> list[str]:
        completion = SimpleNamespace(token_ids=list(tokens), finish_reason=reason, logprobs=None)
        self.outputs = [SimpleNamespace(request_id=request_id, outputs=[completion], finished=True)]
        return [output.request_id for output in _step(self, lambda engine: engine.outputs)]

    def abort(self, *request_ids: str) -> None:
        _abort_request(self, lambda engine, ids: None, list(request_ids))

    @property
    def remembered(self) -> list[str]:
        audits: Any = vars(self).get("accelplug_audits")
        return [] if audits is None else [*audits.chosen, *audits.again]


def test_a_request_is_run_again_and_forgotten() -> None:
    engine = Engine()
    engine.add("a", "text")
    assert engine.end("a", 1, 2) == ["a"]
    assert engine.queued == [("a", "text"), ("audit-a", "text")]
    assert engine.end("audit-a", 1, 2) == [], "nobody asked for that one"
    assert engine.remembered == []


@pytest.mark.parametrize("after", ["aborted", "another of its name", "refused"])
def test_what_does_not_end_is_forgotten(after: str) -> None:
    """A later request of the same name is not compared with it."""
    engine = Engine()
    if after == "refused":
        with pytest.raises(ValueError, match="too long"):
            engine.add("a", "too long")
    else:
        engine.add("a", "text")
    if after == "aborted":
        engine.abort("a", "unknown")
    assert engine.remembered == (["a"] if after == "another of its name" else [])
    engine.add("a", "another text", extra_args={"accelplug": {"num_tokens": 0}})  # which is not audited
    assert engine.remembered == []
    assert engine.end("a", 7) == ["a"]
    assert "audit-a" not in dict(engine.queued)
