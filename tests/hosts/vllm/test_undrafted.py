"""A step without drafts: in what state vLLM's V1 runner takes it, who drafts behind it, and what its scheduler is spared."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="the runner is vLLM's")

from vllm.v1.outputs import DraftTokenIds

from accelplug import HostError
from accelplug.hooks import Drafts, DraftView
from accelplug.hosts.vllm import worker
from accelplug.hosts.vllm.plugin import KEY
from accelplug.hosts.vllm.session import Session
from accelplug.hosts.vllm.undrafted import Undrafted
from accelplug.hosts.vllm.v1 import Proposer, V1Attachment

SPECULATIVE = object()


class Runner:
    """Notes with which configuration it takes its steps."""

    def __init__(self, *, is_hybrid: bool = False, is_attention_free: bool = False) -> None:
        self.speculative_config: object = SPECULATIVE
        self.model_config = SimpleNamespace(is_hybrid=is_hybrid, is_attention_free=is_attention_free)
        self.seen: list[tuple[str, bool]] = []
        self.fails = False

    def execute_model(self, scheduler_output: Any, intermediate_tensors: Any = None) -> Any:
        self._note("execute_model")
        return intermediate_tensors

    def sample_tokens(self, grammar_output: Any) -> Any:
        self._note("sample_tokens")
        return grammar_output

    def _note(self, method: str) -> None:
        self.seen.append((method, self.speculative_config is SPECULATIVE))
        if self.fails:
            raise ValueError(method)


def step_of(runner: Runner, drafts: dict[str, list[int]]) -> list[bool]:
    """Run one step; return whether its two halves had the configuration."""
    runner.seen.clear()
    assert runner.execute_model(SimpleNamespace(scheduled_spec_decode_tokens=drafts), "tensors") == "tensors"
    assert runner.sample_tokens("grammar") == "grammar"
    assert [method for method, _ in runner.seen] == ["execute_model", "sample_tokens"]
    assert runner.speculative_config is SPECULATIVE
    return [had for _, had in runner.seen]


def test_a_step_runs_as_if_nothing_speculated_where_it_has_no_drafts_and_only_there() -> None:
    runner = Runner()
    drafted: list[Any] = []
    undrafted = Undrafted(runner, drafted.append)
    for drafts in ({}, {"a": [5]}, {"a": [5], "b": [6, 7]}, {}):
        assert step_of(runner, drafts) == [bool(drafts)] * 2
        assert undrafted.is_plain is (not drafts)
    assert drafted == ["grammar", "grammar"], "asked behind those steps alone, with what the runner returned"


@pytest.mark.parametrize("kind", ["is_hybrid", "is_attention_free"])
def test_models_with_recurrent_states_keep_the_configuration(kind: str) -> None:
    runner = Runner(**{kind: True})
    drafted: list[Any] = []
    undrafted = Undrafted(runner, drafted.append)
    assert step_of(runner, {}) == [True, True]
    assert not undrafted.is_plain
    assert not undrafted.applies
    assert not drafted


def test_a_step_that_fails_leaves_the_configuration_where_it_was() -> None:
    runner = Runner()
    Undrafted(runner, lambda _: None)
    runner.fails = True
    with pytest.raises(ValueError, match="execute_model"):
        runner.execute_model(SimpleNamespace(scheduled_spec_decode_tokens={}))
    assert runner.seen == [("execute_model", False)]
    assert runner.speculative_config is SPECULATIVE


def attachment_of(drafts: list[list[int]] | None, *, reads_empty: bool = False) -> Any:
    """Return an attachment behind a step; what its drafter would draft, None where it may not be asked."""
    attachment = object.__new__(V1Attachment)
    attachment._asked, attachment._reads_empty, attachment._drafted = False, reads_empty, None
    attachment.runner = SimpleNamespace(input_batch=SimpleNamespace(req_ids=["a", "b"], num_tokens_no_spec=None, token_ids_cpu=None))
    attachment.committed = []
    attachment.chains = SimpleNamespace(commit=lambda *given: attachment.committed.append(given))
    attachment._scheduled, attachment._batch = {}, lambda *given: given

    def propose(*_: Any) -> list[list[int]]:
        attachment._asked = True
        assert drafts is not None
        return drafts

    attachment.propose = propose
    return attachment


@pytest.mark.parametrize(
    ("drafts", "reads_empty", "told"),
    [([[], [5, 6]], False, [[], [5, 6]]), ([[], []], False, None), ([[], []], True, [[], []])],
)
def test_behind_a_step_without_drafts_the_drafter_is_asked_and_heard(
    drafts: list[list[int]], reads_empty: bool, told: list[list[int]] | None
) -> None:
    attachment, output = attachment_of(drafts, reads_empty=reads_empty), SimpleNamespace(sampled_token_ids=[[1], [2]])
    attachment.draft(output)
    attachment.end_step(output)
    assert not attachment.committed, "it is shown every step once"
    trimmed = attachment.trim(None)  # vLLM has no drafts of its own then
    assert (trimmed and (trimmed.req_ids, trimmed.draft_token_ids)) == (told and (["a", "b"], told))


@pytest.mark.parametrize("output", [SimpleNamespace(sampled_token_ids=[]), None], ids=["empty", "none"])
def test_a_step_that_samples_nothing_asks_nobody(output: Any) -> None:
    """Where nothing ran, older releases return None."""
    attachment = attachment_of(None)
    attachment.draft(output)
    assert attachment.trim(None) is None


def test_behind_another_step_the_drafter_is_shown_what_came_where_vllm_did_not_ask() -> None:
    attachment = attachment_of(None)
    attachment.end_step(SimpleNamespace(sampled_token_ids=[[1], [2]]))
    assert len(attachment.committed) == 1
    assert attachment.trim(DraftTokenIds(["a", "b"], [[0], [0]])) is None


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
    attachment._asked, attachment._reads_empty, attachment._drafted = asked, reads_empty, None
    trimmed = attachment.trim(DraftTokenIds(["a", "b"], drafts))
    assert (trimmed and trimmed.draft_token_ids) == left
    assert attachment.trim(None) is None


class DoesNothing:
    """Drafts nothing, without a search."""

    asked = 0

    def propose(self, view: DraftView) -> Drafts:
        self.asked += 1
        return Drafts(np.zeros(len(view.slots) + 1, dtype=np.int64), view.lengths[:0])


class Engine:
    """vLLM's worker and runner as far as accelplug's stand before them."""

    def __init__(self, session: Session) -> None:
        self.lengths = np.full(1, 40, dtype=np.int32)
        config = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=4096, is_hybrid=False, is_attention_free=False),
            scheduler_config=SimpleNamespace(max_num_seqs=1),
            speculative_config=SimpleNamespace(num_speculative_tokens=4),
            additional_config={"accelplug": {"drafter": "prompt_lookup"}},
        )
        rows = SimpleNamespace(req_ids=["a"], num_tokens_no_spec=self.lengths, token_ids_cpu=np.ones((1, 4096), dtype=np.int32))
        self.runner = SimpleNamespace(
            vllm_config=config, model_config=config.model_config, speculative_config=SPECULATIVE, device=SimpleNamespace(type="cuda"),
            drafter=Proposer(config), input_batch=rows, _sample=None, execute_model=id, sample_tokens=self.sample_tokens,
        )  # fmt: skip
        self.attachment = V1Attachment(self.runner, session)

    def sample_tokens(self, output: Any) -> Any:
        self.lengths += 1
        return output

    def step(self, scheduler_output: Any) -> Any:
        self.attachment.begin_step(scheduler_output)
        self.runner.execute_model(scheduler_output)
        self.attachment.end_step(self.runner.sample_tokens(SimpleNamespace(sampled_token_ids=[[5]])))
        return self.attachment.trim(None)


def step_with(*new: str) -> Any:
    """Return vLLM's SchedulerOutput of a step of one request."""
    requests = [SimpleNamespace(req_id=name, prompt_token_ids=[1] * 40, sampling_params=None) for name in new]
    return SimpleNamespace(scheduled_new_reqs=requests, finished_req_ids=set(), scheduled_spec_decode_tokens={}, num_scheduled_tokens={"a": 1})


def counted(run: Callable[[], object]) -> tuple[int, int]:
    """Return how many Python functions and how many native ones a call makes."""
    calls, before = {"call": 0, "c_call": 0}, sys.getprofile()

    def count(_: Any, event: str, __: Any) -> None:
        if event in calls:
            calls[event] += 1

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(before)
    return calls["call"], calls["c_call"]


def test_a_step_that_drafts_nothing_costs_few_calls(session: Callable[[object], Session]) -> None:
    """Calls, since times would not tell: in a loop all of this code is in the processor's caches, and behind a forward pass none of it is."""
    drafter = DoesNothing()
    engine = Engine(session(drafter))
    engine.step(step_with("a"))
    python, native = counted(partial(engine.step, step_with()))
    # 22 and 34 with Python 3.11 and NumPy 2.3; the bounds leave room for what other versions call, and none for a layer more at every stage
    assert python <= 27
    assert native <= 40
    assert drafter.asked == 2
    assert engine.attachment.session.stats.tokens == 2
    assert engine.attachment.trim(None) is None


@pytest.mark.parametrize("settings", [{"drafter": "suffix"}, {"grammar": "auto", "num_tokens": 3}], ids=["drafter", "grammar"])
def test_an_engine_that_serves_without_accelplug_has_nobody_in_the_drafters_place(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    def moved(_: str) -> None:
        raise HostError("a seam has moved")

    monkeypatch.setattr(worker, "require_worker", moved)
    monkeypatch.setattr("vllm.distributed.parallel_state.get_pp_group", lambda: SimpleNamespace(is_last_rank=True))
    runner: Any = Runner()
    runner._sample, runner.device = None, SimpleNamespace(type="cuda")
    runner.vllm_config = SimpleNamespace(
        additional_config={KEY: {**settings, "on_refused": "serve"}}, speculative_config=SimpleNamespace(num_speculative_tokens=3),
        scheduler_config=SimpleNamespace(async_scheduling=False),
    )  # fmt: skip
    runner.drafter = Proposer(runner.vllm_config)
    assert worker.attach(runner, v2=False).status()["refused"] == "a seam has moved"
    assert runner.drafter.propose([[1], [2]], None, None) == [[], []]
