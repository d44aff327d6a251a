"""The drafter adaptive: how much it drafts, given what steps cost and what is accepted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelplug import PluginError
from accelplug.hooks import CommitView, Drafts, DraftView
from accelplug.hooks.paying import MARGIN, seconds_by_width
from accelplug.hosts.costs import StepCosts
from accelplug.spec.adaptive import Adaptive
from accelplug.spec.suffix import Suffix
from accelplug.spec.worth import Worth
from tests.support.adaptive import FLAT, RIGHT, STEEP, WRONG, Always, Dear, Given, seconds_of


def run(right, steps, table=FLAT, source=None):
    """Decode with a drafter of which ``right(step)`` tokens are right; return the lengths drafted, and tokens per second x plain."""
    drafter = Adaptive(num_tokens=8, context=Given(table, source or Always()))
    slots, text = np.zeros(1, np.int64), np.zeros((1, 10 * steps + 10), np.int64)
    drafter.start(slots)
    lengths, length, seconds, accepted, fresh = [], 4, 0.0, 0, 4
    for step in range(steps):
        drafter.observe(CommitView(slots, slots, text, np.array([length]), np.array([fresh]), np.array([accepted])))
        drafts = drafter.propose(DraftView(slots, slots, text, np.array([length]), np.array([100])))
        assert isinstance(drafts, Drafts)
        lengths.append(len(drafts.tokens))
        accepted, fresh = min(right(step), lengths[-1]), 1 + min(right(step), lengths[-1])
        text[0, length : length + fresh] = RIGHT
        if right(step) <= accepted:
            text[0, length + accepted] = WRONG
        length += fresh
        seconds += seconds_of(table, 1 + lengths[-1])
    drafter.finish(slots)
    assert not drafter._requests
    return lengths, (length - 4) / seconds * table[1]


@pytest.mark.parametrize("source", [Always(), Dear()], ids=["guessing", "trying"])
def test_drafts_that_are_always_right_are_taken_whole_from_the_first_one_on(source):
    lengths, gain = run(lambda _: 99, 300, source=source)
    assert set(lengths) == {8}
    assert gain > 7


def test_where_tokens_are_dear_drafts_begin_short_and_grow_while_they_are_right():
    lengths = run(lambda _: 99, 300, STEEP)[0]
    assert 0 < lengths[0] < lengths[1] <= 8
    assert set(lengths[4:]) <= {7, 8}


def test_a_first_draft_takes_three_plain_steps_at_most_and_then_takes_the_place_of_hope():
    lengths = run(lambda _: 99, 3, STEEP)[0]
    assert lengths == [5, 8, 8], "six positions cost 2.8 plain steps, seven 3.2"
    worth = Worth(guessing=True, drafted=8)
    worth.learn(2, RIGHT)
    assert (worth.accepted, worth.judged) == (2, 3)


def test_a_narrow_step_that_was_slow_keeps_no_wide_one_from_being_tried():
    assert run(lambda _: 99, 20, {1: 1.0, 2: 2.0})[0] == [8] * 20


def edited(draw, changes):
    """Return a text of 200 tokens and, behind it, the same with some of them changed."""
    text = draw.permutation(200)
    return [*text, *np.where(np.isin(np.arange(200), draw.choice(200, changes, replace=False)), text + 200, text)]


def forwards(drafter, tokens, costs, noise, scale):
    """Decode the second half of a text, and return the steps that takes; what the host measures of them is as much too slow as `noise` draws."""
    slots, text, total = np.zeros(1, np.int64), np.array([tokens]), len(tokens)
    drafter.start(slots)
    length, fresh, accepted = total // 2 + 16, total // 2 + 16, 0
    for step in range(total):
        drafter.observe(CommitView(slots, slots, text, np.array([length]), np.array([fresh]), np.array([accepted])))
        if length >= total:
            return step
        guess = drafter.propose(DraftView(slots, slots, text, np.array([length]), np.array([total - length]))).tokens.tolist()
        costs.add(1 + len(guess), (1.0 + 0.03 * len(guess)) * (1.0 + noise.exponential(scale)))
        accepted = next((i for i, (a, b) in enumerate(zip(guess, tokens[length:], strict=False)) if a != b), len(guess))
        fresh = min(accepted + 1, total - length)
        length += fresh
    raise AssertionError("as many steps as tokens")


@pytest.mark.parametrize(("noise", "most"), [(0.0, 1.1), (1.0, 1.25)], ids=["calm", "noisy"])
def test_of_edits_it_drafts_nearly_what_its_source_drafts_however_noisy_the_steps_measured_are(noise, most):
    """What else runs on the machine makes some steps slow, and wide ones are seen too rarely for the least of them to be a calm one."""
    draw = np.random.default_rng(0)
    own = alone = 0
    for _ in range(4):
        costs = StepCosts()
        context = Given(source=Suffix(), vocab_size=999)
        context.step_seconds = lambda costs=costs: costs.seconds
        drafter = Adaptive(num_tokens=64, context=context)
        forwards(drafter, edited(draw, 50), costs, draw, noise)  # leaves room for short drafts only, so that those are what is measured first
        texts = [edited(draw, 1) for _ in range(12)]
        own += sum(forwards(drafter, text, costs, draw, noise) for text in texts)
        alone += sum(forwards(Suffix(), text, StepCosts(), draw, noise) for text in texts)
    assert own < most * alone


@pytest.mark.parametrize("table", [FLAT, STEEP], ids=["flat", "steep"])
def test_useless_drafts_of_tokens_alone_are_verified_once_and_never_again(table):
    lengths, gain = run(lambda _: 0, 3000, table)
    assert gain > 0.999
    assert lengths[0]
    assert not any(lengths[1:])
    assert sum(seconds_of(table, 1 + length) - table[1] for length in lengths) < 2 * table[1], "less than two steps are lost, cheap or dear"


@pytest.mark.parametrize("source", [Always(), Dear()], ids=["guessing", "trying"])
def test_useless_drafts_end_where_wide_steps_seem_to_cost_nothing(source):
    """As they do where the plain steps measured were slow ones."""
    lengths, _ = run(lambda _: 0, 3000, {1: 1.2, 3: 1.0, 9: 1.0}, source)
    assert sum(map(bool, lengths)) < 30
    assert lengths[0] == 8


@pytest.mark.parametrize("table", [FLAT, STEEP], ids=["flat", "steep"])
def test_other_useless_drafts_are_tried_shortly_and_ever_more_rarely(table):
    lengths, gain = run(lambda _: 0, 3000, table, Dear())
    hopeful = next(step for step in range(30) if not lengths[step + 1]) + 1
    tries = [step for step, length in enumerate(lengths) if length and step >= hopeful - 1]
    assert gain > 0.99
    assert len(tries) < 12
    assert {lengths[step] for step in tries} == {2}
    pauses = np.diff(tries)
    assert (pauses[:2] == [4, 8]).all()
    assert (pauses[1:] == 2 * pauses[:-1]).all()


@pytest.mark.parametrize("source", [Always(), Dear()], ids=["guessing", "trying"])
def test_it_is_seen_when_drafts_become_useful(source):
    lengths, _ = run(lambda step: 0 if step < 400 else 99, 1400, source=source)
    assert sum(map(bool, lengths[100:400])) < 3
    assert set(lengths[-100:]) == {8}
    if type(source) is Always:
        assert set(lengths[410:]) == {8}


@pytest.mark.parametrize("silence", [1, 8, 40, 400, 2000])
def test_it_wakes_up_as_soon_after_a_long_silence_as_after_a_short_one(silence):
    lengths, _ = run(lambda step: 0 if step < silence else 99, silence + 40, source=Always())
    assert sum(map(bool, lengths[:silence])) == 1
    assert any(lengths[silence : silence + 7]), "a guess in one of four steps, and those that it takes to believe it"
    assert set(lengths[silence + 10 :]) == {8}


def test_a_source_that_is_always_wrong_is_asked_in_every_fourth_step():
    class Counting(Always):
        steps = 0

        def propose_one(self, tokens, budget):
            self.steps += 1
            return super().propose_one(tokens, budget)

    source = Counting()
    run(lambda _: 0, 400, source=source)
    assert 100 < source.steps < 140, "a fourth, and those in which it was found out"
    source.steps = 0
    run(lambda _: 99, 400, source=source)
    assert source.steps == 400


def test_requests_whose_drafts_are_useless_are_guessed_for_in_the_same_steps():
    class Counting:
        steps = 0

        def propose(self, view):
            self.steps += 1
            return Drafts.chains([[RIGHT] * int(budget) for budget in view.budgets])

    source, slots, text = Counting(), np.arange(8), np.full((8, 500), WRONG)
    drafter = Adaptive(num_tokens=8, context=Given(source=source))
    for step in range(200):  # they begin one after the other
        here = slots[: 1 + step]
        if step < len(slots):
            drafter.start(slots[step : step + 1])
        lengths, fresh = 4 + step - here, np.where(here == step, 4, 1)
        drafter.observe(CommitView(here, here, text, lengths, fresh, np.zeros(len(here), np.int64)))
        drafter.propose(DraftView(here, here, text, lengths, np.full(len(here), 9)))
    assert 25 < source.steps < 80, "a fourth, and those in which they were found out"


@pytest.mark.parametrize("pause", range(4))
def test_a_request_that_begins_while_the_others_wait_for_their_next_guess_is_drafted_for_at_once(pause):
    drafter, slots, text = Adaptive(num_tokens=8, context=Given(source=Always())), np.arange(2), np.full((2, 500), WRONG)
    drafter.start(slots[:1])
    for step in range(100 + pause):
        lengths = np.array([4 + step])
        drafter.observe(CommitView(slots[:1], slots[:1], text, lengths, np.ones(1, np.int64), np.zeros(1, np.int64)))
        drafter.propose(DraftView(slots[:1], slots[:1], text, lengths, np.full(1, 9)))
    drafter.start(slots[1:])
    lengths = np.array([104 + pause, 4])
    drafter.observe(CommitView(slots, slots, text, lengths, np.array([1, 4]), np.zeros(2, np.int64)))
    drafts = drafter.propose(DraftView(slots, slots, text, lengths, np.full(2, 9)))
    assert np.diff(drafts.offsets).tolist() == [0, 8]


def test_a_try_that_was_right_is_repeated_at_once():
    lengths, _ = run(lambda step: 0 if step < 500 else 99, 1100, STEEP, Dear())
    first = next(step for step, length in enumerate(lengths) if step >= 500 and length)
    assert all(lengths[first : first + 20])


def test_a_batch_keeps_each_rows_own_length():
    drafter = Adaptive(num_tokens=8, context=Given())
    slots, text = np.arange(3), np.array([[RIGHT] * 99, [WRONG] * 99, [RIGHT] * 99])
    drafter.start(slots)
    counts, lengths, accepted = [], np.full(3, 4), np.zeros(3, np.int64)
    for step in range(6):
        drafter.observe(CommitView(slots, slots, text, lengths, np.full(3, 4) if step == 0 else 1 + accepted, accepted))
        drafts = drafter.propose(DraftView(slots, slots, text, lengths, np.array([100, 100, 3])))
        assert set(drafts.tokens.tolist()) <= {RIGHT}
        counts.append(np.diff(drafts.offsets).tolist())
        accepted = np.array([counts[-1][0], 0, counts[-1][2]])
        lengths = lengths + 1 + accepted
    assert [count[0] for count in counts] == [8] * 6
    assert [count[2] for count in counts] == [3] * 6
    assert [count[1] for count in counts] == [8, 0, 0, 0, 0, 0]


def test_a_guess_behind_tokens_that_are_forced_is_not_held_against_the_source():
    drafter, slots, text = Adaptive(context=Given()), np.zeros(1, np.int64), np.array([[WRONG] * 40])
    drafter.start(slots)
    drafter._requests[0].accepted, drafter._requests[0].judged = 0.0, 9.0  # given up
    for length in range(4, 12):  # each next token is forced, and none is what the source would guess
        drafter.observe(CommitView(slots, slots, text, np.array([length]), np.array([4 if length == 4 else 1]), np.zeros(1, np.int64)))
        drafter.propose(DraftView(slots, slots, text, np.array([length + 1]), np.array([9]), ahead=np.ones(1, np.int64)))
    assert drafter._requests[0].judged == 9


def test_what_the_source_does_wrong_is_said_to_be_the_sources():
    class Wild:
        def propose_one(self, tokens, budget):
            return [7] * budget

    drafter = Adaptive(context=Given(source=Wild()))
    view = DraftView(np.array([0]), np.array([0]), np.zeros((1, 4), np.int64), np.array([4]), np.array([8]))
    drafter.start(np.zeros(1, np.int64))
    with pytest.raises(PluginError, match=r"drafter 'always' \(tests 0\) drafted token ids from 7 to 7"):
        drafter.propose(view)

    class Broken:
        def propose_one(self, tokens, budget):
            raise ValueError("no more")

    drafter = Adaptive(context=Given(source=Broken()))
    drafter.start(np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="no more") as raised:
        drafter.propose(view)
    assert "raised by drafter 'always'" in raised.value.__notes__[0]


def test_the_length_follows_acceptance_and_cost():
    rng = np.random.default_rng(0)
    often = run(lambda _: int(rng.geometric(0.5)) - 1, 400)[0]
    rarely = run(lambda _: int(rng.geometric(0.8)) - 1, 400)[0]
    dear = run(lambda _: int(rng.geometric(0.5)) - 1, 400, STEEP)[0]
    assert np.mean(often[50:]) > np.mean(rarely[50:]) > 0
    assert np.mean(often[50:]) > np.mean(dear[50:])


def test_the_same_costs_and_acceptance_give_the_same_drafts():
    assert run(lambda step: step % 3, 300) == run(lambda step: step % 3, 300)


@pytest.mark.parametrize("source", [Always(), Dear()], ids=["guessing", "trying"])
def test_nothing_is_drafted_before_a_plain_step_was_measured(source):
    assert set(run(lambda _: 99, 20, {1: 1.0})[0][1:]) == {8}
    drafter = Adaptive(context=Given({9: 1.0}, source))
    drafter.start(np.zeros(1, np.int64))
    view = DraftView(np.array([0]), np.array([0]), np.zeros((1, 4), np.int64), np.array([4]), np.array([8]))
    assert len(drafter.propose(view).tokens) == 0


def test_costs_between_and_beyond_those_measured():
    assert seconds_of({1: 1.0, 3: 9.0, 5: 2.0}, 3) == 2.0  # a step takes no longer than a wider one
    assert seconds_of(STEEP, 1) == 1.0
    assert seconds_of(STEEP, 2) == pytest.approx(1.3)
    assert seconds_of(STEEP, 6) == pytest.approx(2.8)
    assert seconds_of(STEEP, 12) == 4.0
    assert seconds_of({1: 9.0, 4: 2.0}, 1) == 2.0


def test_slow_steps_do_not_count():
    costs = StepCosts()
    costs.add(1, 9.0)
    assert costs.seconds == {}
    for seconds in (1.0, 50.0, 2.0):
        costs.add(1, seconds)
    assert costs.seconds == {1: 1.0}
    for _ in range(8):
        costs.add(1, 3.0)
    assert costs.seconds == {1: 3.0}


@settings(deadline=None)
@given(st.floats(0, 10), st.floats(0, 10), st.lists(st.floats(0, 2), min_size=8, max_size=8), st.integers(1, 8))
def test_what_may_not_pay_would_not_be_drafted_at_any_cost(accepted, rejected, added, most):
    worth = Worth(accepted=accepted, judged=accepted + rejected)
    seconds = np.array([1.0, *(1.0 + more for more in added)])  # a plain step is no dearer than any
    gains = [sum(worth.rate**n for n in range(width + 1)) / seconds[width] for width in range(most + 1)]
    if not worth.may_pay:
        assert max(gains) <= MARGIN * gains[0] * (1 + 1e-9)
        assert worth.length(seconds, most) == 0
    elif max(gains) > MARGIN * gains[0] * (1 + 1e-9):
        assert worth.length(seconds, most) == int(np.argmax(gains))


def test_a_tables_figures_are_taken_anew_when_they_change():
    drafter = Adaptive(num_tokens=8, context=Given({1: 1.0, 9: 2.0}))
    table = {1: 1.0, 9: 2.0}
    assert drafter._by_width(table) is drafter._by_width(dict(table))
    before = drafter._by_width(table).tolist()
    table[9] = 5.0  # in place, as a host does it
    assert drafter._by_width(table).tolist() == seconds_by_width({1: 1.0, 9: 5.0}, 9).tolist() != before


def test_what_pays_again_begins_without_the_pauses_of_before():
    worth = Worth()
    worth.pause.length, worth.pause.left = 64, 30
    assert worth.length(np.ones(9), 8) == 8
    assert (worth.pause.length, worth.pause.left) == (4, 0)
