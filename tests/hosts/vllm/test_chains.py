"""A step of a host-memory drafter: what it is shown, what is counted, and what happens when it fails."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import numpy as np
import pytest

from accelplug.hooks import CommitView, Drafts, DraftView, IntArray
from accelplug.hosts.vllm.chains import Batch, Chains
from accelplug.hosts.vllm.session import Session

MAX_LENGTH = 12


class Recorder:
    """Drafts as many sevens as it may, and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def start(self, slots: IntArray) -> None:
        self.told.append(("start", slots.tolist()))

    def finish(self, slots: IntArray) -> None:
        self.told.append(("finish", slots.tolist()))

    def observe(self, view: CommitView) -> None:
        self.told.append(("observe", list(zip(view.slots.tolist(), view.fresh.tolist(), view.accepted.tolist(), strict=True))))

    def propose(self, view: DraftView) -> Drafts:
        self.told.append(("propose", view.budgets.tolist()))
        return Drafts.chains([[7] * int(budget) for budget in view.budgets])


def batch(**lengths: tuple[int, int]) -> Batch:
    """Make a batch out of each request's length and how many of its tokens this step sampled."""
    tokens = np.ones((len(lengths), MAX_LENGTH), dtype=np.int32)
    both = np.array(list(lengths.values()), dtype=np.int64).reshape(-1, 2)
    return Batch(list(lengths), np.arange(len(lengths)), tokens, both[:, 0], both[:, 1].tolist())


def step(chains: Chains, scheduled: dict[str, int], **lengths: tuple[int, int]) -> list[list[int]]:
    return chains.step(batch(**lengths), scheduled)


def test_request_is_started_shown_and_finished(session: Callable[[object], Session]) -> None:
    recorder = Recorder()
    chains = Chains(session(recorder), 3, MAX_LENGTH, num_slots=2)
    assert step(chains, {}, a=(5, 1), b=(3, 1)) == [[7, 7, 7], [7, 7, 7]]
    step(chains, {"a": 3, "b": 2}, a=(8, 3), b=(4, 1))
    chains.end({"a", "unknown"})
    assert recorder.told[-1] == ("finish", [0]), "at once, and not when somebody else needs the slot"
    step(chains, {}, c=(6, 1), b=(5, 1))
    assert recorder.told == [
        ("start", [0, 1]),
        ("observe", [(0, 5, 0), (1, 3, 0)]),
        ("propose", [3, 3]),
        ("observe", [(0, 3, 2), (1, 1, 0)]),
        ("propose", [3, 3]),
        ("finish", [0]),
        ("start", [0]),
        ("observe", [(0, 6, 0), (1, 1, 0)]),
        ("propose", [3, 3]),
    ]
    stats = chains.session.stats
    assert (stats.drafts, stats.drafted, stats.accepted, stats.tokens) == (2, 5, 2, 8)


def test_padding_behind_a_later_requests_drafts_is_not_counted(session: Callable[[object], Session]) -> None:
    chains = Chains(session(Recorder()), 3, MAX_LENGTH, num_slots=2)
    assert step(chains, {}, a=(4, 1), b=(10, 1)) == [[7, 7, 7], [7]]
    step(chains, {"a": 3, "b": 3}, a=(5, 1), b=(12, 2))
    assert (chains.session.stats.drafts, chains.session.stats.drafted, chains.session.stats.accepted) == (2, 4, 1)


def test_rows_move_and_slots_do_not(session: Callable[[object], Session]) -> None:
    recorder = Recorder()
    chains = Chains(session(recorder), 3, MAX_LENGTH, num_slots=3)
    assert step(chains, {}, a=(4, 1), b=(5, 1)) == [[7, 7, 7], [7, 7, 7]]
    step(chains, {"a": 3, "b": 3}, b=(6, 1), a=(7, 3))
    assert recorder.told[-2:] == [("observe", [(1, 1, 0), (0, 3, 2)]), ("propose", [3, 3])]
    step(chains, {"a": 3}, a=(10, 1))
    assert chains.drafted(["b", "a", "unknown"]) == [3, 1, 0], "who was not in the step keeps what was drafted for it"
    assert (chains.session.stats.drafted, chains.session.stats.accepted) == (9, 2)


def test_a_drafter_cannot_write_into_the_hosts_slots(session: Callable[[object], Session]) -> None:
    recorder = Recorder()
    recorder.propose = lambda view: view.slots.fill(0)  # type: ignore[method-assign,assignment,return-value]
    chains = Chains(session(recorder), 3, MAX_LENGTH, num_slots=2)
    assert step(chains, {}, a=(4, 1), b=(9, 1)) == [[], []]
    assert "read-only" in str(chains.session.switched_off)


def test_what_a_drafter_writes_into_its_view_is_forgotten(session: Callable[[object], Session]) -> None:
    seen = []

    def observe(view: CommitView) -> None:
        seen.append(view.accepted.tolist())
        view.accepted.fill(5)

    recorder = Recorder()
    recorder.observe = observe  # type: ignore[method-assign]
    recorder.propose = lambda view: Drafts.chains([[]] * len(view.slots))  # type: ignore[method-assign]
    chains = Chains(session(recorder), 3, MAX_LENGTH, num_slots=2)
    for length in (4, 5, 6):
        step(chains, {}, a=(length, 1), b=(length, 1))
    assert seen == [[0, 0]] * 3
    assert chains.drafted(["a", "b"]) == [0, 0]
    assert chains.session.switched_off is None


def test_drafts_end_where_the_request_must(session: Callable[[object], Session]) -> None:
    chains = Chains(session(Recorder()), 3, MAX_LENGTH, num_slots=4)
    drafts = step(chains, {}, a=(MAX_LENGTH - 4, 1), b=(MAX_LENGTH - 3, 1), c=(MAX_LENGTH - 1, 1), d=(MAX_LENGTH, 1))
    assert [len(chain) for chain in drafts] == [3, 2, 0, 0]


@pytest.mark.parametrize("seed", range(8))
def test_drafts_fit_in_every_step_however_many_tokens_came_before(seed: int, session: Callable[[object], Session]) -> None:
    recorder, draw, most, limit = Recorder(), np.random.default_rng(seed), 3, 60
    chains = Chains(session(recorder), most, limit, num_slots=2)
    lengths, told = {"a": 3, "b": 9}, []
    while max(lengths.values()) < limit:
        gained = {name: min(int(draw.integers(1, most + 2)), limit - length) for name, length in lengths.items()}
        lengths = {name: lengths[name] + gained[name] for name in lengths}
        if len(told) == 5:
            lengths, gained = {"c": 20, "b": lengths["b"]}, {"c": 1, "b": gained["b"]}
        step(chains, {}, **{name: (length, gained[name]) for name, length in lengths.items()})
        told.append(recorder.told[-1][1])
        assert told[-1] == [max(min(most, limit - 1 - length), 0) for length in lengths.values()]
    assert told[5] == [most, most]
    assert min(told[-1]) == 0


def test_padding_is_not_counted(session: Callable[[object], Session]) -> None:
    chains = Chains(session(Recorder()), 2, MAX_LENGTH, num_slots=1)
    step(chains, {}, a=(10, 1))  # one draft fits; the engine may pad it and accept the padding
    step(chains, {"a": 2}, a=(12, 3))
    assert (chains.session.stats.drafted, chains.session.stats.accepted) == (1, 1)


def test_request_whose_tokens_were_taken_back_begins_anew(session: Callable[[object], Session]) -> None:
    recorder = Recorder()
    chains = Chains(session(recorder), 1, MAX_LENGTH, num_slots=2)
    step(chains, {}, a=(8, 1))
    step(chains, {}, a=(6, 1))
    assert recorder.told[3:6] == [("finish", [0]), ("start", [0]), ("observe", [(0, 6, 0)])]


@pytest.mark.parametrize("method", ["start", "observe", "propose"])
def test_drafter_that_raises_is_switched_off(method: str, session: Callable[[object], Session], caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("out of ideas")

    recorder = Recorder()
    setattr(recorder, method, fail)
    chains = Chains(session(recorder), 2, MAX_LENGTH, num_slots=2)
    with caplog.at_level(logging.ERROR, "vllm.accelplug"):
        assert step(chains, {}, a=(5, 1)) == [[]]
    told = list(recorder.told)
    assert step(chains, {}, a=(6, 1), b=(3, 1)) == [[], []]
    chains.end({"a", "b"})
    assert recorder.told == told, "it is never called again"
    (record,) = caplog.records
    assert "drafter 'odd' (strange 2.0)" in record.getMessage()
    assert f"{method} raised RuntimeError: out of ideas" in record.getMessage()
    status = json.loads(json.dumps(chains.session.status()))
    assert status["drafter"]["switched_off"] == f"{method} raised RuntimeError: out of ideas"


def test_drafts_that_no_host_can_verify_switch_it_off(session: Callable[[object], Session]) -> None:
    recorder = Recorder()
    recorder.propose = lambda view: Drafts.chains([[99]])  # type: ignore[method-assign]
    chains = Chains(session(recorder), 2, MAX_LENGTH, num_slots=1)
    assert step(chains, {}, a=(5, 1)) == [[]]
    assert "outside 0 .. 49" in str(chains.session.switched_off)
