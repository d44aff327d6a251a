"""A plugin's rule in the V1 runner's rejection sampler: what is processed is processed as vLLM does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="the sampler is vLLM's")

from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from accelplug.hosts.vllm.v1_judging import JudgingSampler


def test_the_token_behind_the_drafts_is_processed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """There vLLM's holder of thinking budgets learns what was committed; drafts that were processed before would go by the step before."""
    asked: list[str] = []
    made: Any = object.__new__(JudgingSampler)

    def processed(what: str, less: float) -> Any:
        return lambda scores, *_, **__: (asked.append(what), scores - less)[1]

    vars(made).update(apply_logits_processors=processed("drafts", 1), sampler=SimpleNamespace(apply_logits_processors=processed("behind", 2)))
    metadata = SpecDecodeMetadata.make_dummy([[1, 2], [3]], torch.device("cpu"))
    metadata.target_logits_indices, metadata.bonus_logits_indices = torch.tensor([0, 1, 3]), torch.tensor([2, 4])
    monkeypatch.setattr("vllm.v1.sample.rejection_sampler.apply_sampling_constraints", lambda scores, *_: scores)
    logits = torch.zeros(5, 4)
    found = made._process(logits, metadata, None)
    assert asked == ["behind", "drafts"]
    assert found[:, 0].tolist() == [-1, -1, -2, -1, -2]
    assert not logits.any(), "they are read again for log-probabilities"
