"""Drafts on the device are those of a search by hand, whatever the rows; and nothing in them waits for a device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from accelplug import PluginError
from accelplug.hooks import CommitView, DeviceView, DraftView
from accelplug.hooks.binding import bind_drafter
from accelplug.hooks.registry import Owner, Technique
from accelplug.spec.input_copy import InputCopy
from accelplug.spec.prompt_lookup import PromptLookup
from accelplug.spec.suffix import Suffix

END, VOCAB, WIDTH = 3, 12, 80
CONTEXT: Any = SimpleNamespace(eos_token_ids=(END,))
LARGEST = torch.iinfo(torch.int64).max
SEEN: set[str] = set()



def random_row(drawn: tuple[int, int, int]) -> list[int]:
    """Return a row of so many tokens out of so many."""
    length, distinct, seed = drawn
    return np.random.default_rng(seed).integers(0, distinct, length).tolist()


rows_of_tokens = st.lists(st.builds(random_row, st.tuples(st.integers(1, 70), st.integers(1, 9), st.integers(0, 999))), min_size=1, max_size=4)


def view_of(rows: list[list[int]], count: int, prompts: list[int] | None = None, seed: int = 0, **parameters: list[int]) -> DeviceView:
    """Show rows in slots of any order, with other tokens behind their ends and in the slots between them."""
    rng = np.random.default_rng(seed)
    tokens = torch.from_numpy(rng.integers(0, VOCAB, (len(rows) + 2, WIDTH))).int()
    slots = torch.from_numpy(rng.permutation(len(rows) + 2)[: len(rows)])
    for slot, row in zip(slots.tolist(), rows, strict=True):
        tokens[slot, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    given = {name: torch.tensor(values) for name, values in parameters.items()}
    return DeviceView(slots, tokens, lengths, count, given, None if prompts is None else torch.tensor(prompts, dtype=torch.int32))


def drafted(drafter: Any, view: DeviceView) -> list[list[int]]:
    """Return what is drafted for each row, once it has the documented form."""
    before = view.tokens.clone()
    drafts = drafter.propose_on_device(view)
    assert (drafts.tokens.shape, drafts.tokens.dtype) == ((len(view.slots), view.num_tokens), torch.int64)
    assert (drafts.counts.shape, drafts.counts.dtype) == ((len(view.slots),), torch.int32)
    assert ((drafts.tokens >= 0) & (drafts.tokens < VOCAB)).all(), "padding must be real token ids"
    assert torch.equal(view.tokens, before)
    return [row[:count] for row, count in zip(drafts.tokens.tolist(), drafts.counts.tolist(), strict=True)]


def matched(tokens: list[int], place: int, most: int) -> int:
    length = 0
    while length < min(most, place) and tokens[place - 1 - length] == tokens[-1 - length]:
        length += 1
    return length


def longest_suffix(tokens: list[int], drafter: Suffix, count: int) -> list[int]:
    """Look at every place; of the longest match, take what most places follow furthest, the newest among equals."""
    near = max(drafter.min_match, 8)
    places = sorted(((matched(tokens, place, near), place) for place in range(1, len(tokens))), reverse=True)
    places = [place for length, place in places if length >= drafter.min_match][: min(drafter.max_places, 16)]
    length = max((matched(tokens, place, max(drafter.max_match, near)) for place in places), default=0)
    places = [place for place in places if matched(tokens, place, max(drafter.max_match, near)) == length]
    guesses = [[tokens[place + i % (len(tokens) - place)] for i in range(count)] for place in places]
    best: list[int] = []
    most = 0
    for guess in guesses:
        agreeing = [sum(other[: d + 1] == guess[: d + 1] for other in guesses) for d in range(min(count, drafter.num_tokens, int(length * drafter.factor)))]
        likely = [share for share in agreeing if share / len(places) >= drafter.min_chance]
        SEEN.update(["tied"] * (best != [] and sum(likely) == most), ["unlikely"] * (len(likely) < len(agreeing)))
        if sum(likely) > most:
            SEEN.update(["the newest loses"] * bool(best))
            most, best = sum(likely), guess[: len(likely)]
    cut = best[: best.index(END) + 1] if END in best else best
    SEEN.update(["ended"] * (cut != best), ["far"] * (length > 8), ["repeated"] * (len(cut) > len(tokens) - min(places, default=0)), ["nothing"] * (not cut))
    return cut


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    rows=rows_of_tokens,
    count=st.integers(1, 12),
    most=st.integers(1, 12),
    min_match=st.integers(1, 10),
    max_match=st.integers(1, 24),
    factor=st.sampled_from([0.0, 0.3, 1.0, 4.0]),
    min_chance=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    max_places=st.sampled_from([1, 3, 16, 99]),
    seed=st.integers(0, 9),
)
@example([[1, 2, 9, 5, 1, 2, 9, 6, 1, 2, 8, 7, 1, 2]], 6, 6, 2, 9, 4.0, 0.3, 16, 0)
def test_suffix_drafts_what_a_search_by_hand_does(rows, count, most, min_match, max_match, factor, min_chance, max_places, seed):
    drafter = Suffix(
        num_tokens=most, min_match=min_match, max_match=max_match, factor=factor, min_chance=min_chance, max_places=max_places, context=CONTEXT
    )
    assert drafted(drafter, view_of(rows, count, seed=seed)) == [longest_suffix(row, drafter, count) for row in rows]


def test_suffix_follows_most_places_a_loop_and_a_long_copy():
    drafter = Suffix(num_tokens=40, min_match=1)
    assert drafted(drafter, view_of([[1, 2, 9, 5, 1, 2, 9, 6, 1, 2, 8, 7, 1, 2]], 6)) == [[9, 6, 1, 2, 8, 7]], "two places go on with 9, the newest with 8"
    loop, copy, new = [[4, 5, 6] * 5, [*range(4, 12), *range(11, 3, -1), *range(4, 10)], [4, 5, 6]]
    assert drafted(drafter, view_of([loop, copy, new], 9)) == [[4, 5, 6] * 3, [10, 11, *range(11, 4, -1)], []]


def test_suffix_took_all_its_turns():
    assert {"tied", "unlikely", "the newest loses", "ended", "far", "repeated", "nothing"} <= SEEN


def bound(drafter: object) -> Any:
    return bind_drafter(Technique("drafter", "suffix", Owner("odd", "strange", "2.0"), drafter, type(drafter), "suffix"))


@pytest.mark.parametrize("options", [{"shape": "tree"}, {"scope": "process"}])
def test_suffix_keeps_to_host_memory_where_it_has_to(options):
    assert bound(Suffix(**options)).propose_on_device is None
    assert not bound(Suffix(**options)).is_device_only
    assert bound(Suffix()).propose_on_device is not None


def again(source: list[int], output: list[int], max_ngram: int, left: int) -> int | None:
    """Return the place behind the output's end in the source, as the search in test_input_copy does."""
    for size in range(1, min(max_ngram, len(output)) + 1):
        found = [end for end in range(size, len(source) + 1) if source[end - size : end] == output[-size:]]
        if len(found) == 1:
            SEEN.add(f"found by {size}")
            return found[0]
        if not found:
            break
    near = [end for end in range(left + 1, min(left + 8, len(source)) + 1) if source[end - 1] == output[-1]]
    SEEN.update(["near"] * (len(near) > 0), ["nowhere"] * (not near))
    return near[0] if near else None


class Followed:
    """One request's source and the place in it, looked at by hand."""

    def __init__(self, source: list[int], max_ngram: int) -> None:
        self.source, self.max_ngram, self.seen, self.left = source, max_ngram, 0, 0
        self.at: int | None = 0

    def rest(self, output: list[int], count: int) -> list[int]:
        fresh, agreeing = output[self.seen :], 0
        while self.at is not None and agreeing < min(len(fresh), count + 1) and self.source[self.at + agreeing :][:1] == [fresh[agreeing]]:
            agreeing += 1
        if self.at is not None:
            self.at += agreeing
            self.left = self.at if agreeing else self.left
        if agreeing < len(fresh):
            SEEN.update(["several at once"] * (len(fresh) - agreeing > 1))
            self.at = again(self.source, output, self.max_ngram, self.left)
        self.seen = len(output)
        return [] if self.at is None else self.source[self.at :]


requests = st.lists(
    st.tuples(
        st.builds(random_row, st.tuples(st.integers(1, 25), st.integers(1, 9), st.integers(0, 999))),  # the prompt
        st.tuples(st.integers(-26, 26), st.none() | st.integers(-26, 26)),  # the span
        st.lists(st.tuples(st.integers(0, 25), st.integers(0, 3), st.lists(st.integers(0, 9), max_size=3)), max_size=3),  # what the answer changes
        st.lists(st.integers(0, 9), min_size=1, max_size=8),  # how many tokens steps commit
    ),
    min_size=1, max_size=3,
)  # fmt: skip


@settings(max_examples=120, deadline=None, derandomize=True)
@given(requests=requests, max_ngram=st.integers(1, 4), count=st.integers(1, 9), most=st.integers(1, 9), by_request=st.booleans(), seed=st.integers(0, 9))
def test_input_copy_follows_as_a_search_by_hand_does(requests, max_ngram, count, most, by_request, seed):
    if not by_request:
        requests = [(prompt, requests[0][1], edits, steps) for prompt, _, edits, steps in requests]
    spans = [span for _, span, _, _ in requests]
    own = {} if by_request else {"span_start": spans[0][0], "span_end": spans[0][1]}
    drafter = InputCopy(num_tokens=most, max_ngram=max_ngram, **own)
    given = {"span_start": [start for start, _ in spans], "span_end": [LARGEST if end is None else end for _, end in spans]} if by_request else {}
    answers, hands = [], []
    for prompt, span, edits, _ in requests:
        answer = list(prompt[slice(*span)])
        for at, gone, new in edits:
            answer[at : at + gone] = new
        answers.append([*(answer or [5]), 8, 9])
        hands.append(Followed(prompt[slice(*span)], max_ngram))
    prompts = [len(prompt) for prompt, *_ in requests]
    ends = [1] * len(requests)
    for step in range(max(len(steps) for *_, steps in requests) + 1):
        texts = [prompt + answer[:end] for (prompt, *_), answer, end in zip(requests, answers, ends, strict=True)]
        view = view_of(texts, count, prompts, seed, **given)
        if not step:
            drafted(drafter, view)  # whoever had the slots before
            drafter.start(view.slots.numpy())
        expected = [hand.rest(answer[:end], count)[: min(count, most)] for hand, answer, end in zip(hands, answers, ends, strict=True)]
        assert drafted(drafter, view) == expected
        assert drafted(drafter, view) == expected, "nothing was committed since"
        ends = [min(end + (steps[step : step + 1] or [0])[0], len(answer)) for (*_, steps), answer, end in zip(requests, answers, ends, strict=True)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    prompt=st.lists(st.integers(0, 7), min_size=2, max_size=30),
    edits=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3), st.lists(st.integers(0, 9), max_size=3)), max_size=4),
    count=st.integers(1, 6),
)
def test_input_copy_drafts_the_same_in_host_memory_where_steps_commit_what_was_drafted_and_one_more(prompt, edits, count):
    answer = list(prompt)
    for at, gone, new in edits:
        answer[at : at + gone] = new
    answer = [*answer, 8, 9]
    host, device = InputCopy(num_tokens=count), InputCopy(num_tokens=count)
    slots = np.zeros(1, dtype=np.int64)
    host.start(slots)
    before, end = 0, 1
    while end <= len(answer):
        text = [*prompt, *answer[:end]]
        lengths, fresh = np.array([len(text)]), np.array([len(text) - before])
        host.observe(CommitView(slots, slots, np.array([text]), lengths, fresh, slots))
        guess = host.propose(DraftView(slots, slots, np.array([text]), lengths, np.array([count]))).tokens.tolist()
        assert drafted(device, view_of([text], count, [len(prompt)])) == [guess]
        right = next((i for i, token in enumerate(guess) if answer[end + i : end + i + 1] != [token]), len(guess))
        SEEN.update(["some right"] * (0 < right < len(guess)))
        before, end = len(text), end + right + 1


def test_input_copy_took_all_its_turns():
    assert {"found by 1", "found by 2", "found by 3", "near", "nowhere", "several at once", "some right"} <= SEEN


def test_input_copy_is_led_by_the_answer_alone():
    """Behind the prompt's last token, 4, its second 5 would be the one."""
    assert drafted(InputCopy(), view_of([[9, 5, 4, 5, 7, 4, 5]], 9, [6])) == [[4, 5, 7, 4]]


def test_input_copy_begins_anew_in_a_slot_that_is_given_away():
    drafter, prompt = InputCopy(), [4, 5, 6, 7, 8]
    assert drafted(drafter, view_of([[*prompt, 4]], 9, [5])) == [[5, 6, 7, 8]]
    assert drafted(drafter, view_of([[*prompt, 4, 5, 6]], 9, [5])) == [[7, 8]]
    slots = view_of([[*prompt, 4]], 9, [5]).slots.numpy()
    drafter.finish(slots)
    drafter.start(slots)
    assert drafted(drafter, view_of([[9, 9, 10, *prompt, 9]], 9, [8])) == [[9, 10, *prompt]]


def test_input_copy_goes_on_where_a_request_comes_back_with_its_answer():
    assert drafted(InputCopy(), view_of([[*range(4, 12), *range(4, 9)]], 2, [8])) == [[9, 10]]


def test_input_copy_asks_for_the_lengths_of_prompts():
    with pytest.raises(PluginError, match=r"input_copy copies from prompts, and this host's DeviceView has no prompt_lengths"):
        InputCopy().propose_on_device(view_of([[1, 2]], 3))


class NothingWaits(TorchDispatchMode):
    """Fail at operations that a device would be waited for: values and shapes read from it, and tensors moved off it or onto it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = str(func)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "_assert", "equal.default")), name
        if "index" in name and isinstance(args[1], (list, tuple)):
            assert not any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]), f"{name} by truth values"
        moved = [given.device.type for given in (*args, *(kwargs or {}).values()) if isinstance(given, torch.Tensor) and given.dim()]
        found = func(*args, **(kwargs or {}))
        where = {*moved, found.device.type} if isinstance(found, torch.Tensor) else set(moved)
        assert len(where) < 2, f"{name} between {where}"
        return found


def asked_of_a_device_without_values(drafter: Any) -> Any:
    """Ask twice, with tensors on a device of another kind than host memory, which have shapes alone."""
    with NothingWaits():
        tokens = torch.zeros(5, WIDTH, dtype=torch.int32, device="meta")
        lengths = torch.ones(3, dtype=torch.int32, device="meta")
        ends = torch.ones(3, dtype=torch.int64, device="meta")
        view = DeviceView(torch.arange(3, device="meta"), tokens, lengths, 4, {"span_end": ends}, lengths)
        drafter.propose_on_device(view)
        drafter.start(np.arange(3))
        return drafter.propose_on_device(view)


@pytest.mark.parametrize("drafter", [PromptLookup(), Suffix(context=CONTEXT), InputCopy()], ids=lambda drafter: type(drafter).__name__)
def test_nothing_waits(drafter):
    drafts = asked_of_a_device_without_values(drafter)
    assert (drafts.tokens.device.type, drafts.counts.device.type) == ("meta", "meta")
    assert (drafts.tokens.shape, drafts.counts.shape) == ((3, 4), (3,))


@pytest.mark.parametrize(
    "wait",
    [
        lambda view: view.lengths.max().item(),
        lambda view: view.tokens.nonzero(),
        lambda view: view.tokens[view.tokens > 0],
        lambda view: view.lengths.cpu(),
        lambda view: torch.tensor([1, 2, 3]).to(view.lengths.device),
    ],
    ids=["item", "nonzero", "by truth values", "off the device", "onto the device"],
)
def test_waiting_would_be_seen(wait):
    class Waits(PromptLookup):
        def propose_on_device(self, view):
            wait(view)
            return super().propose_on_device(view)

    with pytest.raises(Exception, match=r"nonzero|_local_scalar_dense|index|between|item|Cannot copy out of meta tensor"):
        asked_of_a_device_without_values(Waits())


@pytest.mark.parametrize("drafter", [PromptLookup(), Suffix(context=CONTEXT), InputCopy()], ids=lambda drafter: type(drafter).__name__)
def test_one_graph_holds_a_whole_step(drafter):
    """What torch.compile takes as a whole, without a break, reads nothing off the device; and it drafts the same."""
    rows = [[4, 5, 6, 7, 4, 5], [1, 2, 3, 1, 2, 3, 1], [9]]
    view = view_of(rows, 4, [4, 3, 1])
    expected = drafted(drafter, view)
    compiled = torch.compile(drafter.propose_on_device, backend="eager", fullgraph=True)
    drafts = compiled(view)
    assert [row[:count] for row, count in zip(drafts.tokens.tolist(), drafts.counts.tolist(), strict=True)] == expected
