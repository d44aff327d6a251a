"""Every check of DrafterConformance fails for somebody: an implementation that is wrong in the one way that the check is about."""

from __future__ import annotations

import dataclasses
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from accelplug import AccelplugError
from accelplug.hooks import DeviceDrafts, DrafterTraits, Drafts, NodeKind, option
from accelplug.testing import DrafterConformance


class Copy:
    """A right drafter to go wrong from: what followed the last token the previous time, kept per slot."""

    def __init__(self) -> None:
        self.follows: dict[int, dict[int, int]] = {}

    def start(self, slots):
        for slot in slots.tolist():
            self.follows[slot] = {}

    def finish(self, slots):
        for slot in slots.tolist():
            del self.follows[slot]

    def observe(self, view):
        for i, slot in enumerate(view.slots.tolist()):
            tokens = view.history(i).tolist()
            self.follows[slot].update(pairwise(tokens))

    def propose(self, view):
        return Drafts.chains([self.guess(view, i) for i in range(len(view.slots))])

    def guess(self, view, i):
        token, found = int(view.history(i)[-1]), []
        while len(found) < min(4, view.budgets[i]) and token in self.follows[int(view.slots[i])]:
            token = self.follows[int(view.slots[i])][token]
            found.append(token)
        return found


class Overdrafts:
    def propose_one(self, tokens, budget):
        return [tokens[-1]] * (budget + 1)


class Silent:
    def propose_one(self, tokens, budget):
        return []


class Clock:
    def propose_one(self, tokens, budget):
        return [time.perf_counter_ns() // 100 % 40] * min(1, budget)


class PrivateDice:
    def __init__(self) -> None:
        self.dice = np.random.default_rng(5)

    def propose_one(self, tokens, budget):
        return self.dice.integers(0, 40, min(2, budget))


class KeepsTheView(Copy):
    def observe(self, view):
        super().observe(view)
        self.seen = view

    def guess(self, view, i):
        return self.seen.history(i)[:2][: view.budgets[i]]


class WritesIntoTheView(Copy):
    def propose(self, view):
        drafts = super().propose(view)
        view.tokens[view.rows, view.lengths - 1] = 3
        return drafts


class TakesRowsForRequests(Copy):
    def guess(self, view, i):
        return view.tokens[i, : view.lengths[i]][-2:][: view.budgets[i]]


class RemembersOthers(Copy):
    """One table for all requests."""

    def start(self, slots):
        for slot in slots.tolist():
            self.follows[slot] = self.follows.get("all", {})
            self.follows["all"] = self.follows[slot]


class NeverStartsAnew(Copy):
    def start(self, slots):
        for slot in slots.tolist():
            self.follows.setdefault(slot, {})

    def finish(self, slots):
        pass


class NeedsAStep(Copy):
    """Makes its state at the first step, and wants it at the end."""

    def start(self, slots):
        pass

    def observe(self, view):
        for slot in view.slots.tolist():
            self.follows.setdefault(slot, {})
        super().observe(view)


class Hoards(Copy):
    """Writes down what every request said."""

    def __init__(self) -> None:
        super().__init__()
        self.diary: list[Any] = []

    def observe(self, view):
        super().observe(view)
        self.diary += [view.history(i).tolist() for i in range(len(view.slots))]


class FreesNothing(Copy):
    """Frees a request's state when its slot is used again."""

    def observe(self, view):
        super().observe(view)
        for i, slot in enumerate(view.slots.tolist()):
            self.follows[slot]["history"] = [view.history(i).tolist() for _ in range(4)]

    def finish(self, slots):
        pass


@dataclasses.dataclass
class CountsFromZero:
    """Takes a request's own count for one more than the default."""

    num_tokens: int = option(3, per_request=True)

    def propose(self, view):
        wanted = view.parameters.get("num_tokens", np.full(len(view.slots), self.num_tokens - 1))
        return Drafts.chains([[5] * min(int(count), int(budget)) for count, budget in zip(wanted, view.budgets, strict=True)])


class SaysSampled:
    """Takes the likeliest token and calls it drawn."""

    traits = DrafterTraits(kinds={NodeKind.SAMPLED})
    row = torch.full((40,), 0.5 / 39).index_fill_(0, torch.tensor(7), 0.5)

    def propose(self, view):
        counts = np.minimum(view.budgets, 1)
        size = int(counts.sum())
        tokens = np.array([self.token() for _ in range(size)], dtype=np.int64)
        offsets = np.cumsum([0, *counts])
        return Drafts(offsets, tokens, None, np.full(size, int(NodeKind.SAMPLED)), np.zeros(size, dtype=np.int64), self.row[None])

    def token(self):
        return 7


class SamplesWell(SaysSampled):
    def token(self):
        return int(torch.multinomial(self.row, 1))


class OnDevice:
    """A right device drafter: the last token again."""

    def propose_on_device(self, view):
        last = view.tokens[view.slots].gather(1, view.lengths.long().unsqueeze(1) - 1)
        return DeviceDrafts(last.expand(-1, view.num_tokens).long(), torch.full_like(view.lengths, view.num_tokens))


class WaitsForTheDevice(OnDevice):
    def propose_on_device(self, view):
        longest = int(view.lengths.max())
        return super().propose_on_device(view) if longest else None


class PadsWithMinusOne(OnDevice):
    def propose_on_device(self, view):
        return DeviceDrafts(torch.full_like(super().propose_on_device(view).tokens, -1), torch.zeros_like(view.lengths))


class ForgetsSlots(OnDevice):
    def propose_on_device(self, view):
        last = view.tokens[: len(view.slots)].gather(1, view.lengths.long().unsqueeze(1) - 1)
        return DeviceDrafts(last.expand(-1, view.num_tokens).long(), torch.full_like(view.lengths, view.num_tokens))


WRONG: list[tuple[str, object, str]] = [
    ("test_drafts_keep_the_contract", Overdrafts(), "nodes where .* were allowed"),
    ("test_drafts_keep_the_contract", Silent(), r"nothing was \['drafted'\]"),
    ("test_the_same_inputs_give_the_same_drafts", Clock(), "two fresh builds draft differently"),
    ("test_the_same_inputs_give_the_same_drafts", PrivateDice(), "drafts differently the second time"),
    ("test_views_are_neither_kept_nor_changed", KeepsTheView(), "keeps a view's arrays"),
    ("test_views_are_neither_kept_nor_changed", WritesIntoTheView(), "wrote into view.tokens"),
    ("test_a_batch_drafts_as_single_requests_do", TakesRowsForRequests(), "drafts otherwise in a batch"),
    ("test_requests_do_not_see_each_other", RemembersOthers(), "carries something from one request to another"),
    ("test_requests_do_not_see_each_other", NeverStartsAnew(), "carries something from one request to another"),
    ("test_requests_may_end_at_any_time", NeedsAStep(), "raised by drafter 'NeedsAStep'"),
    ("test_requests_may_end_at_any_time", NeverStartsAnew(), "after requests that ended early"),
    ("test_finished_requests_leave_no_memory", Hoards(), "bytes more after every"),
    ("test_finish_frees_long_requests", FreesNothing(), "after they ended"),
    ("test_a_request_may_send_the_defaults", CountsFromZero(), "drafts otherwise where a request sends"),
    ("test_drawn_nodes_come_from_their_rows", SaysSampled(), "does not draw its nodes from their rows"),
    ("test_device_drafts_need_no_synchronisation", WaitsForTheDevice(), "reads values of the device"),
    ("test_device_drafts_need_no_synchronisation", PadsWithMinusOne(), "pad with valid ones"),
    ("test_device_drafts_need_no_synchronisation", ForgetsSlots(), "in another order"),
    ("test_output_is_that_of_plain_generate", WritesIntoTheView(), "changes the output"),
    ("test_output_is_that_of_plain_generate", Silent(), "of 0 drafts none was (accepted|rejected)"),
]
RIGHT = [
    ("test_drafts_keep_the_contract", Copy()),
    ("test_a_batch_drafts_as_single_requests_do", Copy()),
    ("test_output_is_that_of_plain_generate", Copy()),
    ("test_drawn_nodes_come_from_their_rows", SamplesWell()),
    ("test_output_is_that_of_plain_generate", SamplesWell()),
    ("test_device_drafts_need_no_synchronisation", OnDevice()),
]


def _name(value: object) -> str:
    return value if isinstance(value, str) else type(value).__name__


def _run(check: str, technique: object) -> None:
    getattr(type("Kit", (DrafterConformance,), {"technique": technique})(), check)()


@pytest.mark.parametrize(("check", "technique", "match"), WRONG, ids=_name)
def test_a_wrong_implementation_fails(check, technique, match):
    with pytest.raises((AssertionError, AccelplugError, KeyError), match=match):
        _run(check, technique)


@pytest.mark.parametrize(("check", "technique"), RIGHT, ids=_name)
def test_the_right_one_beside_it_passes(check, technique):
    _run(check, technique)


def test_every_check_has_somebody_who_fails_it():
    assert {check for check, _, _ in WRONG} == {name for name in vars(DrafterConformance) if name.startswith("test_")}
