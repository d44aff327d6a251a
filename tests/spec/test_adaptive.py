"""The drafter adaptive: how much it drafts, given what steps cost and what is accepted."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from accelplug.hooks import CommitView, Drafts, DraftView, Owner, Technique
from accelplug.hosts.costs import StepCosts
from accelplug.spec.adaptive import Adaptive, seconds_by_width

FLAT = {width: 1.0 + 0.02 * (width - 1) for width in range(1, 10)}
STEEP = {1: 1.0, 3: 1.6, 9: 4.0}


def seconds_of(table, width):
    return seconds_by_width(table, width)[-1]


class Always:
    def propose_one(self, tokens, budget):
        return [0] * budget


@dataclass
class Given:
    table: dict = field(default_factory=lambda: dict(FLAT))

    def build(self, kind, source):
        return Technique(kind, "always", Owner("tests", "tests", "0"), Always(), Always, str(source))

    def step_seconds(self):
        return self.table


def run(right, steps, table=FLAT):
    """Decode with a drafter of which ``right(step)`` tokens are right; return the lengths drafted, and tokens per second x plain."""
    drafter = Adaptive(context=Given(table))
    slots, tokens = np.zeros(1, np.int64), np.zeros((1, 4), np.int64)
    drafter.start(slots)
    lengths, made, seconds, accepted = [], 0, 0.0, 0
    for step in range(steps):
        four, one = np.array([4]), np.array([1 + accepted])
        drafter.observe(CommitView(slots, slots, tokens, four, one, np.array([accepted])))
        drafts = drafter.propose(DraftView(slots, slots, tokens, four, np.array([100])))
        assert isinstance(drafts, Drafts)
        lengths.append(len(drafts.tokens))
        accepted = min(right(step), lengths[-1])
        made += 1 + accepted
        seconds += seconds_of(table, 1 + lengths[-1])
    drafter.finish(slots)
    assert not drafter._requests
    return lengths, made / seconds * table[1]


def test_drafts_that_are_always_right_are_taken_whole():
    lengths, gain = run(lambda _: 99, 300)
    assert set(lengths) == {8}
    assert gain > 7


@pytest.mark.parametrize("table", [FLAT, STEEP], ids=["flat", "steep"])
def test_useless_drafts_cost_next_to_nothing_and_are_tried_ever_more_rarely(table):
    lengths, gain = run(lambda _: 0, 3000, table)
    tries = [step for step, length in enumerate(lengths) if length]
    assert gain > 0.97
    assert len(tries) < 40
    pauses = np.diff(tries)
    assert pauses[-1] > 500
    assert (pauses[-5:] >= 1.9 * pauses[-6:-1]).all()


def test_a_try_finds_out_when_drafts_become_useful():
    lengths, _ = run(lambda step: 0 if step < 400 else 99, 1400)
    assert sum(map(bool, lengths[100:400])) < 5
    assert set(lengths[-100:]) == {8}


def test_the_length_follows_acceptance_and_cost():
    rng = np.random.default_rng(0)
    often = run(lambda _: int(rng.geometric(0.5)) - 1, 400)[0]
    rarely = run(lambda _: int(rng.geometric(0.8)) - 1, 400)[0]
    dear = run(lambda _: int(rng.geometric(0.5)) - 1, 400, STEEP)[0]
    assert np.mean(often[50:]) > np.mean(rarely[50:]) > 0
    assert np.mean(often[50:]) > np.mean(dear[50:])


def test_the_same_costs_and_acceptance_give_the_same_drafts():
    assert run(lambda step: step % 3, 300) == run(lambda step: step % 3, 300)


def test_nothing_is_drafted_before_a_plain_step_was_measured():
    assert set(run(lambda _: 99, 20, {1: 1.0})[0]) == {8}
    drafter = Adaptive(context=Given({9: 1.0}))
    drafter.start(np.zeros(1, np.int64))
    view = DraftView(np.array([0]), np.array([0]), np.zeros((1, 4), np.int64), np.array([4]), np.array([8]))
    assert len(drafter.propose(view).tokens) == 0


def test_costs_between_and_beyond_those_measured():
    assert seconds_of(STEEP, 1) == 1.0
    assert seconds_of(STEEP, 2) == pytest.approx(1.3)
    assert seconds_of(STEEP, 6) == pytest.approx(2.8)
    assert seconds_of(STEEP, 12) == pytest.approx(5.2)
    assert seconds_of({1: 9.0, 4: 2.0}, 1) == 2.0


def test_one_slow_step_does_not_count():
    costs = StepCosts()
    for seconds in (9.0, 1.0):
        costs.add(1, seconds)
    assert costs.seconds == {}
    for seconds in (1.0, 1.0, 50.0, 1.0):
        costs.add(1, seconds)
    assert costs.seconds == {1: 1.0}
