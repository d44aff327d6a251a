"""Answers with a request's drafts name the techniques, as long as one process has engines of one kind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from accelplug import __version__
from accelplug.hosts.seams import Engine
from accelplug.hosts.vllm import answers, plugin
from accelplug.hosts.vllm.settings import read_settings


def configured(level: str, **settings: Any) -> None:
    config = SimpleNamespace(observability_config=SimpleNamespace(per_request_spec_decode_metrics=level), speculative_config=SimpleNamespace(method="ngram"))
    answers.name_techniques(config, read_settings(settings))


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it for what vLLM answers of a request."""
    from vllm.v1.metrics.stats import RequestSpecDecodeMetrics

    monkeypatch.setattr(answers, "_told", [])
    yield lambda: RequestSpecDecodeMetrics.new(4).to_dict()
    plugin.unregister()
    assert "drafter" not in RequestSpecDecodeMetrics.new(4).to_dict()


SUFFIX = f"suffix (accelplug {__version__})"
TOKEN_WISE = f"token_wise (accelplug {__version__})"


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"drafter": "suffix"}, (SUFFIX, TOKEN_WISE)),
        ({"verifier": "block"}, ("ngram", f"block (accelplug {__version__})")),
        ({"grammar": "auto", "num_tokens": 3}, ("nothing (accelplug)", TOKEN_WISE)),
    ],
)
def test_names(settings: dict[str, Any], names: tuple[str, str], answer: Any) -> None:
    before = answer()
    for _ in range(2):
        configured("summary", **settings)
        assert answer() == {**before, "drafter": names[0], "verifier": names[1]}
    configured("summary", drafter="input_copy")
    assert answer() == before, "whose request it was nobody knows"


def test_nothing_is_wrapped_where_nobody_asks_or_an_older_release_runs(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    configured("none", drafter="suffix")
    monkeypatch.setattr(Engine, "version", lambda self: "0.31.0")
    configured("detailed", drafter="suffix")
    assert "drafter" not in answer()
    assert plugin.wrapped() == []
