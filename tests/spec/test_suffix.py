"""The index and the best-first search agree with counting every earlier occurrence by hand."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelplug import OptionError
from accelplug.hooks import BuildContext, CommitView, DraftView, load_registry
from accelplug.spec.record import followed
from accelplug.spec.suffix import Suffix
from accelplug.spec.texts import GAP, Finished, Text
from tests.spec.feeding import blocks_left_behind, commit, finish, paths, propose, start

LONG, END = 8, 0
SEEN: set[str] = set()
CONTEXT = BuildContext("transformers", 10, (END,), None, "cpu", 8, 64, None, list, list, list)  # type: ignore[arg-type]


def places(tokens: list[int], min_match: int, longest: int, most: int) -> list[tuple[int, int]]:
    for size in sorted({min_match, max(min_match, LONG)}, reverse=True):
        found = [place for place in range(size, len(tokens)) if tokens[place - size : place] == tokens[-size:]][::-1][:most]
        if found:
            lengths = [max(n for n in range(1, place + 1) if tokens[place - n : place] == tokens[-n:]) for place in found]
            return [(min(length, max(longest, size)), place) for length, place in zip(lengths, found, strict=True)]
    return []


GOES_ON = 60 / 61  # a copied text that nothing is known of


def chances(tokens: list[int], starts: list[int], most: int, min_chance: float, chance: float = 1.0) -> dict[tuple[int, ...], float]:
    """Return the chance of every continuation of at most `most` tokens, by counting; behind the token 0 nothing comes."""
    following = [tokens[place] for place in starts if place < len(tokens)]
    found: dict[tuple[int, ...], float] = {}
    for token in set(following) if most else ():
        own = chance * GOES_ON * following.count(token) / len(following)
        if own >= min_chance:
            ahead = [place + 1 for place in starts if place < len(tokens) and tokens[place] == token and token != END]
            SEEN.update(["ended"] * (token == END))
            found[(token,)] = own
            found |= {(token, *rest): other for rest, other in chances(tokens, ahead, most - 1, min_chance, own).items()}
    return found


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    tokens=st.lists(st.integers(0, 2), min_size=1, max_size=60),
    period=st.lists(st.integers(0, 9), max_size=14),
    min_match=st.integers(1, 10),
    longest=st.integers(1, 20),
    most=st.integers(1, 8),
    cuts=st.lists(st.integers(1, 99), max_size=12),
)
def test_places_are_those_of_a_search_by_hand(tokens, period, min_match, longest, most, cuts):
    tokens = [*period, *tokens, *period, *tokens[:5], *period]
    text, end = Text(min_match), 0
    for end in sorted({min(cut, len(tokens)) for cut in cuts} | {len(tokens)}):
        text.extend(np.array(tokens[:end]))
    assert text.places(most, longest) == places(tokens, min_match, longest, most)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    tokens=st.lists(st.integers(0, 2), min_size=1, max_size=50),
    shape=st.sampled_from(["chain", "tree"]),
    budget=st.integers(0, 9),
    factor=st.sampled_from([0.5, 1.0, 2.0]),
    min_chance=st.sampled_from([0.0, 0.1, 0.3, 0.6]),
    min_match=st.integers(1, 3),
)
def test_drafts_are_the_likeliest_continuations(tokens, shape, budget, factor, min_chance, min_match):
    options = {"num_tokens": 9, "shape": shape, "factor": factor, "min_chance": min_chance, "min_match": min_match, "max_match": 12}
    drafter = Suffix(max_places=99, context=CONTEXT, **options)
    start(drafter)
    commit(drafter, tokens)
    drafted = paths(propose(drafter, tokens, budget))
    assert len(set(drafted)) == len(drafted) <= budget
    found = places(tokens, min_match, 12, 99)
    scores = {}  # of every match length, what the best nodes are worth together
    for length in {length for length, _ in found}:
        limit = min(budget, int(length * factor))
        known = chances(tokens, [place for own, place in found if own >= length], limit, min_chance)
        if shape == "tree":
            best = sorted(known.values(), reverse=True)[:limit]
            scores[length] = (sum(best), known, best)
        else:
            best, path = [], ()
            while len(path) < limit and (
                children := {node: c for node, c in known.items() if len(node) == len(path) + 1 and node[:-1] == path}
            ):
                top = max(children.values())
                tied = [node for node in children if children[node] == top]
                SEEN.update(["tied"] * (len(tied) > 1))
                path = next((node for node in tied if node in drafted), tied[0])
                best.append(top)
            scores[length] = (sum(best), known, best)
    expected = max((score for score, _, _ in scores.values()), default=0.0)
    SEEN.update([shape] * (len(drafted) > 1), ["shorter match wins"] * (bool(scores) and scores[max(scores)][0] < expected))
    if not drafted:
        assert expected == 0
        return
    fits = [(known, best) for score, known, best in scores.values() if abs(score - expected) < 1e-9 and set(drafted) <= set(known)]
    assert any(sorted(known[node] for node in drafted) == pytest.approx(sorted(best)) for known, best in fits)


def test_the_hard_cases_above_happened():
    assert {"chain", "tree", "tied", "shorter match wins", "ended"} <= SEEN


def test_a_longer_match_drafts_further_and_equal_counts_take_the_newest():
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    drafter = Suffix(factor=1.0)
    start(drafter)
    commit(drafter, tokens)
    assert propose(drafter, tokens, 30).tokens.tolist() == [5, 6, 7, 8]
    assert propose(drafter, tokens, 30, num_tokens=2).tokens.tolist() == [5, 6]
    tokens = [5, 1, 2, 3, 9, 6, 1, 2, 4, 9, 7, 1, 2]
    start(drafter)
    commit(drafter, tokens)
    assert propose(drafter, tokens, 30).tokens.tolist() == [4, 9]


def test_a_tree_holds_both_continuations():
    tokens = [1, 2, 3, 9, 1, 2, 4, 8, 1, 2]
    drafter = Suffix(shape="tree", factor=3.0)
    start(drafter)
    commit(drafter, tokens)
    assert {(4,), (4, 8), (3,), (3, 9)} <= set(paths(propose(drafter, tokens, 30)))


def test_slots_are_isolated_recycled_and_freed():
    drafter = Suffix()
    for slot, tokens in enumerate(([1, 2, 3, 1, 2], [1, 2, 9, 1, 2])):
        start(drafter, slot)
        commit(drafter, tokens, slot=slot)
    assert propose(drafter, [1, 2, 3, 1, 2], 1, 0).tokens.tolist() == [3]
    assert propose(drafter, [1, 2, 9, 1, 2], 1, 1).tokens.tolist() == [9]
    start(drafter)
    commit(drafter, [1, 2])
    assert propose(drafter, [1, 2], 3).tokens.tolist() == []
    finish(drafter, 0)
    finish(drafter, 1)
    assert drafter._texts == {}


def test_ten_thousand_short_requests_leave_no_memory_behind():
    assert blocks_left_behind(Suffix(), [1, 2, 3, 1, 2, 3]) < 200


def test_a_token_costs_at_most_half_a_kilobyte():
    tokens = list(range(20_000))  # nothing repeats: the most n-grams there can be
    tracemalloc.start()
    drafter = Suffix()
    start(drafter)
    commit(drafter, tokens)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size / len(tokens) < 512


def test_a_wrong_shape_is_refused():
    with pytest.raises(OptionError, match="shape='bush' is none of its values, it takes 'chain' or 'tree'"):
        load_registry(entry_points=False).build("drafter", "suffix(shape='bush')", None)


def misled(drafter, rounds):
    """Serve one request in which what followed the pair at the end never follows it again; return the drafts behind each such pair."""
    drafted = []
    text = [1, 2]
    start(drafter)
    for number in range(rounds):
        text += [100 + number, 200 + number, 1, 2]
        commit(drafter, text)
        drafted.append(paths(propose(drafter, text, 30)))
        commit(drafter, [*text, 99 - number])
        text.append(99 - number)
    return drafted


@pytest.mark.parametrize("shape", ["chain", "tree"])
def test_drafts_that_keep_going_wrong_are_held_back_until_they_would_have_been_right(shape):
    drafter = Suffix(shape=shape, max_places=2)
    drafted = misled(drafter, 14)
    assert all(drafted[:6])  # 0.8 ** 6 is below the least chance
    assert not any(drafted[6:])
    text = [*drafter._texts[0].tokens, 500, 1, 2]
    drafts = []
    for _ in range(4):  # what came last time comes again, though nobody drafted it
        commit(drafter, text)
        drafts.append(propose(drafter, text, 30).tokens.tolist())
        text += [99 - 13, 501, 1, 2]
    assert not drafts[0]
    assert drafts[2][0] == drafts[3][0] == 99 - 13


def test_what_one_request_was_misled_by_holds_nothing_back_in_another():
    drafter = Suffix(max_places=2)
    misled(drafter, 14)
    text = [1, 2, 3, 9, 1, 2]
    start(drafter, 1)
    commit(drafter, text, slot=1)
    assert propose(drafter, text, 30, 1).tokens.tolist()[:2] == [3, 9]
    finish(drafter, 0)
    start(drafter, 0)
    commit(drafter, text, slot=0)
    assert propose(drafter, text, 30, 0).tokens.tolist()[:2] == [3, 9]
    finish(drafter, 0)
    assert list(drafter._records) == list(drafter._texts) == [1]


def test_short_matches_that_mislead_hold_no_long_ones_back():
    drafter = Suffix(max_places=2)
    misled(drafter, 14)
    text = [*drafter._texts[0].tokens, *range(1000, 1020), 7, *range(1000, 1010)]
    commit(drafter, text)
    assert propose(drafter, text, 30).tokens.tolist()[:10] == list(range(1010, 1020))


def lengths_where_copies_break(drafter, run, rounds):
    """Serve an answer that copies `run` tokens of a long prompt and then says something new, and so on; return how much each copy drafted."""
    prompt = list(range(1000, 5000))
    text, begin, drafted = list(prompt), 0, []
    start(drafter)
    for number in range(rounds):
        text += prompt[begin : begin + 40]
        begin += 40
        commit(drafter, text)
        drafted.append(len(propose(drafter, text, 500).tokens))
        text += [*prompt[begin : begin + run], number]
        commit(drafter, text)
        begin += run + 1
    return drafted


def test_drafts_become_as_long_as_copies_last():
    short, long = (lengths_where_copies_break(Suffix(num_tokens=128), run, 12) for run in (5, 150))
    assert short[0] == long[0] == 72  # of which the last one is as likely as min_chance where nothing is known
    assert short == sorted(short, reverse=True)
    assert long[-1] > 100
    assert short[-1] < 20


def test_a_copy_ends_with_the_text():
    tokens = [*range(1, 9), END, 11, 12, *range(1, 7)]
    drafter = Suffix(context=CONTEXT)
    start(drafter)
    commit(drafter, tokens)
    assert propose(drafter, tokens, 30).tokens.tolist() == [7, 8, END]


@pytest.mark.parametrize(
    ("came", "right", "is_broken"),
    [([], 0, False), ([1], 1, False), ([1, 3, 4], 3, False), ([1, 3, 9], 2, True), ([1, 2, 9], 2, False), ([9], 0, True)],
)
def test_a_guess_is_followed_as_far_as_it_was_right(came, right, is_broken):
    tree = ([1, 2, 3, 4], [-1, 0, 0, 2])
    assert followed(tree, came) == (right, is_broken)


def served(drafter, prompt, answer):
    """Serve one request in slot 0, whose answer is given; return what was drafted behind each of its tokens."""
    text, slots = np.array([prompt + answer]), np.zeros(1, np.int64)
    drafter.start(slots)
    drafted, fresh = [], len(prompt) + 1
    for length in range(len(prompt) + 1, text.shape[1] + 1):
        lengths = np.array([length])
        drafter.observe(CommitView(slots, slots, text, lengths, np.array([fresh]), np.zeros(1, np.int64)))
        drafted.append(drafter.propose(DraftView(slots, slots, text, lengths, np.array([100]))).tokens.tolist())
        fresh = 1
    drafter.finish(slots)
    return drafted


ANSWER = list(range(100, 140))


def test_finished_answers_are_drafted_where_the_user_wants_that():
    shared, own = Suffix(scope="process", factor=2.0), Suffix(factor=2.0)
    for drafter in (shared, own):
        assert not any(served(drafter, [1, 2, 3], ANSWER))
    drafted = served(shared, [7], ANSWER)
    assert drafted[7] == ANSWER[8:24]  # behind eight tokens that it has in common, twice as many
    assert drafted[11] == ANSWER[12:36]
    assert drafted[30] == ANSWER[31:]
    assert drafted[39] == []
    assert not any(served(own, [7], ANSWER))
    assert shared.finished.bytes > own.finished.bytes == 0
    assert (shared.traits.scope, own.traits.scope) == ("process", "request")


def test_an_answer_continues_behind_the_end_of_its_prompt_and_prompts_are_not_kept():
    shared = Suffix(scope="process", factor=2.0)
    served(shared, list(range(50)), ANSWER)
    assert served(shared, list(range(30, 50)), [100])[0] == ANSWER[1:19]
    assert served(shared, list(range(25)), [25]) == [[]]


def test_a_short_longest_match_still_finds_finished_answers():
    """Matches are never told apart below the long n-gram: in the request's own text neither."""
    shared = Suffix(scope="process", max_match=4, factor=2.0)
    served(shared, [1, 2, 3], ANSWER)
    assert served(shared, [7], ANSWER)[7] == ANSWER[8:24]


def test_of_several_finished_answers_the_most_frequent_goes_on():
    shared = Suffix(scope="process")
    for last in (1, 2, 2):
        served(shared, [0], [*ANSWER[:20], last, last])
    assert served(shared, [9], ANSWER[:20])[-1] == [2, 2]
    tree = Suffix(scope="process", shape="tree")
    for last in (1, 2, 2):
        served(tree, [0], [*ANSWER[:20], last, last])
    assert sorted(served(tree, [9], ANSWER[:20])[-1]) == [1, 1, 2, 2]


def test_its_own_repeats_come_first_where_they_match_as_well():
    shared = Suffix(scope="process")
    served(shared, [0], [*ANSWER[:12], 1, 2, 3])
    assert served(shared, [*ANSWER[:12], 7, 8, 9], ANSWER[:12])[-1][:3] == [7, 8, 9]


def test_memory_is_bounded_and_what_was_not_used_for_longest_goes_first():
    finished = Finished(4 * 12000, 32)
    texts = [[1000 * number + i for i in range(40)] for number in range(6)]
    for text in texts[:4]:
        finished.add(text)
    assert len(finished.texts) == 4
    assert finished.find(texts[0][:20], 5)[1] == [*texts[0][20:25], GAP]
    finished.add(texts[4])
    assert finished.bytes <= 4 * 12000
    assert finished.find(texts[0][:20], 5)[0] == [(20, 0)]
    assert finished.find(texts[1][:20], 5) == ([], [])
    finished.add([*texts[5] * 9])  # larger than all there may be
    assert finished.find(texts[5][:20], 5) == ([], [])
    finished.add(texts[5][:8])  # too short to be found
    assert len(finished.texts) == 4


def test_thousands_of_short_requests_stay_within_what_was_reported():
    rng = np.random.default_rng(0)
    finished = Finished(1 << 20, 32)
    tracemalloc.start()
    try:
        held = []
        for round_ in range(3):
            for _ in range(600):
                finished.add(rng.integers(0, 50000, 20).tolist())
            held.append(tracemalloc.get_traced_memory()[0])
            assert finished.bytes <= 1 << 20
            assert 0.5 * finished.bytes < held[round_] < 1.1 * finished.bytes
        assert held[2] < 1.05 * held[1]
    finally:
        tracemalloc.stop()
    grams = sum(max(0, len(text) - 8) for text in finished.texts.values())
    assert sum(map(len, finished.places.values())) == grams
