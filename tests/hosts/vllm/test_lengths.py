"""Lengths of vLLM's own drafts, on steps that are played: how many tokens are asked for, by what was kept and what steps took."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from accelplug import HostError
from accelplug.hosts.vllm.lengths import EVEN, AdaptiveScheduler, Lengths, lengthened, refuse_one_length

MOST = 4
Kept = Callable[[int, int], int]  # step, request -> how many tokens of its draft are right


class Engine:
    """Plays steps: a step verifies what was asked for in the one before, or under asynchronous scheduling ends a step later.

    :param seconds: width -> what a step takes, drafting included.
    """

    def __init__(self, seconds: Callable[[int], float], *, late: bool = False) -> None:
        self.lengths, self.seconds, self.late = Lengths(MOST), seconds, late
        self.asked: list[int] = []
        self.now, self._drafted, self._open = 0.0, 0, list[tuple[SimpleNamespace, SimpleNamespace]]()

    def steps(self, count: int, kept: Kept, requests: int = 1) -> list[int]:
        """Run steps; return how many tokens were asked for in each."""
        for _ in range(count):
            asked = self.lengths[requests]
            self._open.append(self._step(asked, kept, requests))
            if len(self._open) > self.late:
                output, sampled = self._open.pop(0)
                width = 1 + len(next(iter(output.scheduled_spec_decode_tokens.values()), ()))
                self.now += self.seconds(width)
                self.lengths.end_step(output, sampled, self.now)
            self._drafted = asked
            self.asked.append(asked)
        return self.asked[-count:]

    def _step(self, asked: int, kept: Kept, requests: int) -> tuple[SimpleNamespace, SimpleNamespace]:
        names = [f"r{i}" for i in range(requests)]
        output = SimpleNamespace(
            num_scheduled_tokens=dict.fromkeys(names, 1 + self._drafted),
            scheduled_spec_decode_tokens={name: [7] * self._drafted for name in names} if self._drafted else {},
            num_spec_tokens_to_schedule=asked, num_invalid_spec_tokens=None, scheduled_new_reqs=[],
        )  # fmt: skip
        tokens = [[7] * (1 + min(self._drafted, kept(len(self.asked), i))) for i in range(requests)]
        return output, SimpleNamespace(sampled_token_ids=tokens, req_id_to_index={name: i for i, name in enumerate(names)})


def right(step: int, request: int) -> int:
    return MOST


def wrong(step: int, request: int) -> int:
    return 0


def cheap(width: int) -> float:
    return 1 + 0.1 * width


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("requests", [1, 3])
def test_right_drafts_are_taken_whole(late: bool, requests: int) -> None:
    asked = Engine(cheap, late=late).steps(200, right, requests)
    assert asked[:2] == [0, 0], "plain steps are measured first"
    assert set(asked[8:]) == {MOST}


def test_what_was_measured_in_a_busy_moment_is_measured_again() -> None:
    """Once whatever else ran is over, long drafts are found to pay; once it runs again, plain steps are found to cost as much."""
    engine = Engine(lambda width: 10.0 if width > 3 else cheap(width))
    busy = engine.steps(100, right)
    assert max(busy[-50:]) == 2
    engine.seconds = cheap
    assert set(engine.steps(700, right)[-20:]) == {MOST}
    assert engine.steps(1000, right).count(0) <= 12, "plain steps, to measure them again"


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("requests", [1, 3])
def test_wrong_drafts_end_but_for_rare_tries(late: bool, requests: int) -> None:
    asked = Engine(cheap, late=late).steps(2000, wrong, requests)
    assert sum(asked[100:]) / 1900 < 0.1
    assert sum(asked[-500:]) > 0, "it never stops trying"


@pytest.mark.parametrize("late", [False, True])
def test_it_comes_back_when_drafts_become_right(late: bool) -> None:
    engine = Engine(cheap, late=late)
    engine.steps(400, wrong)
    back = engine.steps(400, right)
    assert set(back[-100:]) == {MOST}
    assert back.index(MOST) < 270, "within one pause"
    gone = engine.steps(200, wrong)
    assert sum(gone[-100:]) <= 20


def test_right_drafts_that_cost_more_than_they_bring_are_not_made() -> None:
    asked = Engine(lambda width: float(width**2)).steps(1000, right)
    assert sum(asked[100:]) / 900 < 0.1


def test_the_length_is_that_of_most_tokens_per_second() -> None:
    def one(step: int, request: int) -> int:
        return 1

    asked = Engine(lambda width: 1 + 0.05 * (width - 1) + (5.0 if width > 3 else 0.0)).steps(300, one)
    assert set(asked[-100:]) <= {1, 2}


def test_the_same_steps_ask_for_the_same() -> None:
    def mixed(step: int, request: int) -> int:
        return (step * 7 + request) % 5

    assert Engine(cheap).steps(300, mixed, 3) == Engine(cheap).steps(300, mixed, 3)


def test_half_of_a_batch_decides_for_all() -> None:
    asked = Engine(cheap).steps(300, lambda step, request: MOST * (request % 2), 4)
    assert min(asked[-100:]) > 0


def test_what_a_grammar_cut_is_not_held_against_the_drafter() -> None:
    lengths = Lengths(MOST)
    output = SimpleNamespace(
        num_scheduled_tokens={"a": 5}, scheduled_spec_decode_tokens={"a": [7, 7, -1, -1]}, num_spec_tokens_to_schedule=4,
        num_invalid_spec_tokens={"a": 2}, scheduled_new_reqs=[],
    )  # fmt: skip
    lengths.end_step(output, SimpleNamespace(sampled_token_ids=[[7, 7, 7]], req_id_to_index={"a": 0}), 1.0)
    assert lengths.worth.accepted == lengths.worth.judged, "both that were left were right"


def test_time_in_which_nothing_ran_is_no_steps() -> None:
    engine = Engine(cheap)
    engine.steps(1, wrong)
    engine.lengths.end_step(SimpleNamespace(num_scheduled_tokens={}), SimpleNamespace(), engine.now)
    engine.now += 100
    engine.steps(1, wrong)
    assert not engine.lengths.costs.latest
    engine.steps(1, wrong)
    assert [round(seconds, 6) for seconds in engine.lengths.costs.latest[1]] == [1.1]


def test_the_last_of_steps_that_overlap_are_not_timed() -> None:
    """Their time has passed before, since nothing is laid out behind them any more."""
    engine = Engine(cheap, late=True)
    engine.steps(3, wrong)
    before = list(engine.lengths.costs.latest[1])
    engine.lengths.end_step(*engine._open.pop(), engine.now + 1e-6)
    assert list(engine.lengths.costs.latest[1]) == before


class Plain:
    """A scheduler that keeps a table, and remembers that it took a step's tokens."""

    def __init__(self, *, table: object) -> None:
        self.num_spec_tokens, self.dynamic_sd_lookup, self.took = MOST, table, 0

    def update_from_output(self, scheduler_output: object, model_runner_output: object) -> None:
        self.took += 1


def test_the_scheduler_looks_lengths_up_in_place_of_its_table() -> None:
    made = type("Made", (AdaptiveScheduler, Plain), {})
    scheduler = made(table=[0, MOST])
    assert scheduler.dynamic_sd_lookup[1] == 0
    scheduler.update_from_output(SimpleNamespace(num_scheduled_tokens={}), None)
    assert scheduler.took == 1
    with pytest.raises(HostError, match="has no dynamic_sd_lookup any more"):
        made(table=None)


def test_a_scheduler_on_top_of_another_of_accelplugs_is_found_by_name() -> None:
    name = lengthened(f"{Plain.__module__}.{Plain.__qualname__}")
    module, _, attribute = name.rpartition(".")
    assert module == "accelplug.hosts.vllm.lengths"
    found = getattr(__import__(module, fromlist=["x"]), attribute)
    assert found.__mro__[1:3] == (AdaptiveScheduler, Plain)


def config(method: str, *, dynamic: bool = True, ranks: int = 1, **more: object) -> SimpleNamespace:
    given = {"parallel_drafting": False, "use_step3p5_mtp": lambda: False, **more}
    drafter = SimpleNamespace(method=method, uses_dynamic_speculative_decoding=lambda: dynamic, **given)
    return SimpleNamespace(speculative_config=drafter, parallel_config=SimpleNamespace(pipeline_parallel_size=ranks))


@pytest.mark.parametrize("method", EVEN)
def test_what_drafts_any_length(method: str) -> None:
    refuse_one_length(config(method), v2=False)
    refuse_one_length(config(method), v2=True)


@pytest.mark.parametrize(
    ("given", "v2", "message"),
    [
        (config("suffix"), False, "'suffix' drafts one length for ever in its V1 runner"),
        (config("draft_model", parallel_drafting=True), False, "'draft_model' drafts one length"),
        (config("mtp", use_step3p5_mtp=lambda: True), False, "'mtp' drafts one length"),
        (config("extract_hidden_states"), True, "in its V2 runner"),
        (config("ngram", dynamic=False), False, "under data parallelism"),
        (config("ngram", ranks=2), False, "under pipeline parallelism several run at once"),
        (config("dflash", enable_adaptive_verification=True), True, "both decide how many drafts are verified"),
    ],
)
def test_refused(given: SimpleNamespace, v2: bool, message: str) -> None:
    with pytest.raises(HostError) as refused:
        refuse_one_length(given, v2=v2)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
