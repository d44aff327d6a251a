"""What steps take, by their width and how many requests they have; who may ask."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from accelplug import HostError
from accelplug.hosts.vllm.clock import Clock


def step(scheduled: dict[str, int], *, new: bool = False) -> SimpleNamespace:
    """One position of each request is its last token, the others are drafts."""
    drafts = {req_id: [7] * (count - 1) for req_id, count in scheduled.items() if count > 1}
    return SimpleNamespace(num_scheduled_tokens=scheduled, scheduled_spec_decode_tokens=drafts, scheduled_new_reqs=["r"] if new else [])


def widths(clock: Clock, *steps: SimpleNamespace) -> dict[int, int]:
    for one in steps:
        clock.begin(one)
    return {width: len(seconds) for width, seconds in clock.costs.latest.items()}


@pytest.fixture
def clock() -> Clock:
    clock = Clock(pads=False, ranks=1)
    assert clock.seconds() == {}
    return clock


def test_steps_last_until_the_next_one(clock: Clock) -> None:
    for _ in range(3):
        clock.begin(step({"a": 1}))
        time.sleep(0.01)
    assert 0.01 <= clock.seconds()[1] < 1
    assert widths(clock, step({"a": 4}), step({"a": 4}), step({"a": 1})) == {1: 3, 4: 2}


def test_the_width_is_the_mean_rounded_up(clock: Clock) -> None:
    assert widths(clock, step({"a": 5, "b": 1}), step({"a": 1, "b": 2}), step({"a": 1, "b": 1})) == {3: 1, 2: 1}


def test_prompts_and_idle_engines_do_not_count(clock: Clock) -> None:
    prompt = step({"a": 1, "b": 1}, new=True)
    prompt.num_scheduled_tokens["b"] = 30
    assert widths(clock, prompt, step({"a": 1}), prompt, step({}), step({"a": 1})) == {}


def test_batches_of_another_size_have_figures_of_their_own(clock: Clock) -> None:
    alone, many = step({"a": 1}), step(dict.fromkeys("abcd", 1))
    assert widths(clock, *[alone] * 4) == {1: 3}
    assert widths(clock, many, many, many) == {1: 2}
    assert len(clock.seconds()) == 1
    assert widths(clock, alone, alone) == {1: 5}


def test_nothing_is_timed_unasked() -> None:
    clock = Clock(pads=False, ranks=1)
    assert widths(clock, *[step({"a": 1})] * 3) == {}


@pytest.mark.parametrize(("pads", "ranks", "why"), [(True, 1, "padded to one length"), (False, 2, "each tensor-parallel rank has a clock of its own")])
def test_refusals(pads: bool, ranks: int, why: str) -> None:
    with pytest.raises(HostError, match=why):
        Clock(pads=pads, ranks=ranks).seconds()
