"""A step without drafts: what accelplug tells vLLM's V1 runner of it, and what the runner's scheduler is spared."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="the runner is vLLM's")

from vllm.v1.outputs import DraftTokenIds
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from accelplug.hosts.vllm.undrafted import Undrafted
from accelplug.hosts.vllm.v1 import V1Attachment

MOST = 8


class Runner:
    """As much of vLLM's runner as says whose logits are whose."""

    _calc_spec_decode_metadata = GPUModelRunner._calc_spec_decode_metadata
    _get_cumsum_and_arange = GPUModelRunner._get_cumsum_and_arange

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.arange_np, self._arange_scratch = np.arange(64), np.zeros(64, dtype=np.int64)
        self.input_ids = SimpleNamespace(gpu=torch.arange(100, 164, dtype=torch.int32))
        self.query_start_loc = SimpleNamespace(gpu=torch.zeros(MOST + 1, dtype=torch.int32))


@pytest.mark.parametrize("scheduled", [[1], [1, 1, 1], [5, 1, 3], [1, 7]])
@pytest.mark.parametrize("drafts", [[0, 0, 0], [0, 2, 0]])
def test_it_says_of_a_step_what_vllm_says(scheduled: list[int], drafts: list[int]) -> None:
    runner = Runner()
    counts = np.array(drafts[: len(scheduled)], dtype=np.int32)
    ends = np.cumsum(np.array(scheduled, dtype=np.int32) + counts)
    runner.query_start_loc.gpu[1 : len(ends) + 1] = torch.from_numpy(ends)
    told, expected = Undrafted(runner)(counts, ends), runner._calc_spec_decode_metadata(counts, ends)
    for field in dataclasses.fields(expected):
        own, vllms = getattr(told, field.name), getattr(expected, field.name)
        assert (own == vllms if isinstance(vllms, list) else torch.equal(own.long(), vllms.long())), field.name
    assert told.max_spec_len == expected.max_spec_len


def test_vllm_is_asked_where_there_are_drafts_and_only_there() -> None:
    runner, asked = Runner(), []
    runner._calc_spec_decode_metadata = lambda *given: asked.append(given)  # type: ignore[method-assign]
    undrafted = Undrafted(runner)
    for drafts in ([0, 0], [0, 1], [2, 0], [0, 0]):
        undrafted(np.array(drafts, dtype=np.int32), np.array([1, 2]))
    assert [given[0].tolist() for given in asked] == [[0, 1], [2, 0]]


@pytest.mark.parametrize(
    ("asked", "reads_empty", "drafts", "left"),
    [
        (True, False, [[], [5]], [[], [5]]),
        (True, False, [[], []], None),
        (True, True, [[], []], [[], []]),
        (False, False, [[0], [0]], None),  # what vLLM fills in where the drafter was not asked
        (False, True, [[0], [0]], [[], []]),
    ],
)
def test_empty_drafts_go_to_schedulers_that_read_them(
    asked: bool, reads_empty: bool, drafts: list[list[int]], left: list[list[int]] | None
) -> None:
    attachment = object.__new__(V1Attachment)
    attachment._asked, attachment._reads_empty = asked, reads_empty
    trimmed = attachment.trim(DraftTokenIds(["a", "b"], drafts))
    assert (trimmed and trimmed.draft_token_ids) == left
    assert attachment.trim(None) is None
