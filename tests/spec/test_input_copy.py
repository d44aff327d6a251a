"""The copied span, and where copying goes on after a change, agree with a search of the source by hand."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from accelplug.spec.input_copy import InputCopy
from tests.spec.feeding import blocks_left_behind, commit, finish, propose, start

SEEN: set[str] = set()


def positions(source: list[int], gram: list[int]) -> list[int]:
    return [end for end in range(len(gram), len(source) + 1) if source[end - len(gram) : end] == gram]


def rest(source: list[int], output: list[int], max_ngram: int) -> list[int]:
    """Return what is left to copy, by looking through the whole source after each token of the output."""
    at: int | None = 0
    left = 0
    for count in range(1, len(output) + 1):
        if at is not None and source[at : at + 1] == [output[count - 1]]:
            left = at = at + 1
            SEEN.add("followed")
            continue
        at = None
        for size in range(1, min(max_ngram, count) + 1):
            found = positions(source, output[count - size : count])
            if len(found) == 1:
                at = found[0]
                SEEN.add(f"found by {size}")
                SEEN.update(["found at the end"] * (at == len(source)))
            if len(found) <= 1:
                SEEN.update(["absent"] * (not found))
                break
        else:
            SEEN.add("in several places")
        near = [end for end in positions(source, output[count - 1 : count]) if left < end <= left + 8]
        if at is None and near:
            at = near[0]
            SEEN.add("nearest")
            SEEN.update(["nearest of several"] * (len(near) > 1))
        SEEN.update(["too far"] * (at is None and bool(positions(source, output[count - 1 : count]))))
    return [] if at is None else source[at:]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    prompt=st.lists(st.integers(0, 6), min_size=1, max_size=30) | st.lists(st.integers(0, 2), min_size=1, max_size=30),
    edits=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3), st.lists(st.integers(0, 9), max_size=3)), max_size=3),
    length=st.integers(1, 40),
    span=st.tuples(st.integers(-31, 31), st.none() | st.integers(-31, 31)),
    max_ngram=st.integers(1, 4),
    budget=st.integers(0, 40),
    by_request=st.booleans(),
    cuts=st.lists(st.integers(1, 30), max_size=5),
)
@example([1, 2, 3, 7, 1, 2, 8, 4, 2, 3, 5], [(1, 6, [9, 1, 2, 3])], 5, (0, None), 3, 9, False, [])
def test_copies_what_a_search_by_hand_copies(prompt, edits, length, span, max_ngram, budget, by_request, cuts):
    source = prompt[slice(*span)]
    output = list(source)
    for at, gone, new in edits:
        output[at : at + gone] = new
    output = (output or [5])[:length]
    own = {} if by_request else dict(zip(("span_start", "span_end"), span, strict=True))
    drafter = InputCopy(num_tokens=30, max_ngram=max_ngram, **own)
    parameters = dict(zip(("span_start", "span_end"), span, strict=True)) if by_request and span[1] is not None else {}
    source = prompt[slice(*span)] if own or parameters else prompt
    start(drafter)
    tokens = [*prompt, output[0]]
    commit(drafter, tokens)
    drafted = propose(drafter, tokens, budget, **parameters).tokens.tolist()
    assert drafted == rest(source, output[:1], max_ngram)[: min(30, budget)]
    for end in sorted({min(1 + cut, len(output)) for cut in cuts} | {len(output)}):
        tokens = [*prompt, *output[:end]]
        commit(drafter, tokens, [len(tokens)])
        drafted = propose(drafter, tokens, budget, **parameters).tokens.tolist()
        assert drafted == rest(source, output[:end], max_ngram)[: min(30, budget)]


def test_the_hard_cases_above_happened():
    assert {"followed", "found by 1", "found by 2", "found by 3", "found at the end", "absent", "in several places"} <= SEEN
    assert {"nearest", "nearest of several", "too far"} <= SEEN


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ([1, 2, 3], [4, 5, 6, 7, 8]),
        ([1, 2, 9], []),  # the change itself stands nowhere
        ([1, 2, 9, 5], [6, 7, 8]),  # one token replaced
        ([1, 2, 9, 9, 4], [5, 6, 7, 8]),  # one replaced by two
        ([1, 2, 6], [7, 8]),  # three left out
    ],
)
def test_after_a_change_copying_goes_on_behind_it(changed, expected):
    drafter = InputCopy()
    start(drafter)
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, *changed]
    commit(drafter, tokens, [9, len(tokens)])
    assert propose(drafter, tokens, 40).tokens.tolist() == expected
    assert propose(drafter, tokens, 40, num_tokens=2).tokens.tolist() == expected[:2]


def test_what_stands_in_several_places_is_looked_for_behind_the_last_token_copied():
    drafter = InputCopy()
    start(drafter)
    source = [1, 4, 2, 3, 6, 4, 5, 7, 8, 9, 10, 11, 4, 12]
    tokens = [*source, 1, 4, 2, 9, 4]  # 9 stands once, but the output does not go on from there
    commit(drafter, tokens, [15, 19])
    assert propose(drafter, tokens, 40).tokens.tolist() == source[6:]


def test_slots_are_isolated_recycled_and_freed():
    drafter = InputCopy()
    for slot, prompt in enumerate(([1, 2, 3], [1, 8, 9])):
        start(drafter, slot)
        commit(drafter, [*prompt, 1], slot=slot)
    assert propose(drafter, [1, 2, 3, 1], 5, 0).tokens.tolist() == [2, 3]
    assert propose(drafter, [1, 8, 9, 1], 5, 1).tokens.tolist() == [8, 9]
    start(drafter)
    commit(drafter, [6, 7])
    assert propose(drafter, [6, 7], 5).tokens.tolist() == []
    finish(drafter, 0)
    finish(drafter, 1)
    assert drafter._slots == drafter._prompts == {}


def test_ten_thousand_short_requests_leave_no_memory_behind():
    assert blocks_left_behind(InputCopy(), [1, 2, 3, 1, 2]) < 200


def test_a_request_may_ask_for_the_whole_prompt_again():
    drafter = InputCopy(span_end=2)
    start(drafter)
    commit(drafter, [1, 2, 3, 4, 1])
    assert propose(drafter, [1, 2, 3, 4, 1], 9, span_end=None).tokens.tolist() == [2, 3, 4]
