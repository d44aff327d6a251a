"""Every check of DrafterConformance fails for somebody: an implementation that is wrong in the one way that the check is about."""

from __future__ import annotations

import dataclasses
import time
from itertools import pairwise
from typing import Any
from unittest import SkipTest

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


class WritesIntoStart(Copy):
    def start(self, slots):
        super().start(slots)
        slots[:] = 0


class WritesIntoFinish(Copy):
    def finish(self, slots):
        super().finish(slots)
        slots[:] = 0


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


@dataclasses.dataclass
class OwnCounts:
    """A right drafter whose requests say how much of the circle through all tokens they want."""

    num_tokens: int = option(3, ge=1, le=9, per_request=True)

    def propose(self, view):
        counts = self.counts(view.parameters.get("num_tokens"), view)
        lasts = [int(view.history(i)[-1]) for i in range(len(view.slots))]
        return Drafts.chains([[(last + 1) % 40] * min(int(n), int(most)) for last, n, most in zip(lasts, counts, view.budgets, strict=True)])

    def counts(self, wanted, view):
        return [self.num_tokens] * len(view.slots) if wanted is None else wanted


class IgnoresRequests(OwnCounts):
    def counts(self, wanted, view):
        return [self.num_tokens] * len(view.slots)


class FirstForAll(OwnCounts):
    def counts(self, wanted, view):
        return super().counts(None if wanted is None else np.full_like(wanted, wanted[0]), view)


class BySlot(OwnCounts):
    def counts(self, wanted, view):
        return super().counts(None if wanted is None else [wanted[slot % len(wanted)] for slot in view.slots], view)


class NoMoreThanItsOwn(OwnCounts):
    def counts(self, wanted, view):
        return np.minimum(super().counts(wanted, view), self.num_tokens)


@dataclasses.dataclass
class SwitchedOff:
    """A right drafter; its requests say whether it is asked."""

    on: bool = option(True, per_request=True)

    def propose(self, view):
        on = view.parameters.get("on", np.full(len(view.slots), self.on))
        return Drafts.chains([[5] * min(2, int(budget)) if wanted else [] for wanted, budget in zip(on, view.budgets, strict=True)])


class NeverOff(SwitchedOff):
    def propose(self, view):
        return Drafts.chains([[5] * min(2, int(budget)) if self.on else [] for budget in view.budgets])


@dataclasses.dataclass
class Unaffected:
    """Has an option of which nothing depends."""

    patience: float = option(0.5, ge=0, le=1, per_request=True)

    def propose_one(self, tokens, budget):
        return [tokens[-1]] * min(2, budget)


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


class DrawsChains:
    """A right drafter to go wrong from: two tokens, each drawn from a row that depends on the one before it."""

    traits = DrafterTraits(kinds={NodeKind.SAMPLED})
    parents = (-1, 0)

    def propose(self, view):
        drawn = [self.draft(int(view.history(i)[-1]), len(view.slots))[: view.budgets[i]] for i in range(len(view.slots))]
        nodes = [node for each in drawn for node in each]
        parents = [parent for each in drawn for parent in self.parents[: len(each)]]
        kinds = np.full(len(nodes), int(*self.traits.kinds))
        rows = list({id(row): row for _, row in nodes}.values())  # each once: that is how siblings are seen to share it
        row_ids = np.array([next(i for i, known in enumerate(rows) if known is row) for _, row in nodes], dtype=np.int64)
        tokens, parents = np.array([token for token, _ in nodes], dtype=np.int64), np.array(parents, dtype=np.int64)
        return Drafts(np.cumsum([0, *map(len, drawn)]), tokens, parents, kinds, row_ids, torch.stack(rows) if rows else None)

    def draft(self, last, batch):
        """Return two tokens with their rows."""
        first = self.row(last)
        token = self.first(first, batch)
        second = self.row(token)
        return [(token, first), (self.second(second), second)]

    def row(self, last):
        return torch.full((40,), 0.5 / 39).index_fill_(0, torch.tensor((last * 3 + 1) % 40), 0.5)

    def first(self, row, batch):
        return self.drawn(row)

    def second(self, row):
        return self.drawn(row)

    def drawn(self, row):
        return int(torch.multinomial(row, 1))


class ChoosesTheSecond(DrawsChains):
    def second(self, row):
        return int(row.argmax())


class ChoosesInABatch(DrawsChains):
    def first(self, row, batch):
        return self.drawn(row) if batch == 1 else int(row.argmax())


class ChoosesWhenAlone(DrawsChains):
    def first(self, row, batch):
        return self.drawn(row) if batch > 1 else int(row.argmax())


class CountsForARow(DrawsChains):
    """Draws from what is no distribution after certain tokens."""

    def row(self, last):
        return super().row(last) * (20 if last % 2 else 1)


class OneThrowForAll(DrawsChains):
    """The second token is likely when the first one was: its row is right on the average only."""

    def first(self, row, batch):
        self.uniform = torch.rand(1)
        return self.second(row)

    def second(self, row):
        likeliest, tokens = row.sort(descending=True)
        return int(tokens[(likeliest.cumsum(0) < self.uniform).sum().clamp(max=39)])


class DrawsSiblings(DrawsChains):
    """A right drafter: the second token beside the first, drawn from the same row without it."""

    traits = DrafterTraits(kinds={NodeKind.WITHOUT_REPLACEMENT}, shape="tree")
    parents = (-1, -1)

    def draft(self, last, batch):
        row = self.row(last)
        token = self.first(row, batch)
        return [(token, row), (self.second(row.index_fill(0, torch.tensor(token), 0.0)), row)]


class ChoosesTheSecondSibling(DrawsSiblings):
    def second(self, row):
        return int(row.argmax())


class SiblingsWithReplacement(DrawsSiblings):
    def draft(self, last, batch):
        row = self.row(last)
        return [(self.drawn(row), row), (self.drawn(row), row)]


class SiblingTwice(DrawsSiblings):
    """Calls siblings independent that are the same."""

    traits = DrafterTraits(kinds={NodeKind.SAMPLED}, shape="tree")

    def draft(self, last, batch):
        (node, _) = super().draft(last, batch)
        return [node, node]


@dataclasses.dataclass
class DrawsAsManyAsAsked(DrawsChains):
    """A right drafter whose requests say how many tokens they want."""

    num_tokens: int = option(1, ge=1, le=2, per_request=True)

    def propose(self, view):
        return super().propose(dataclasses.replace(view, budgets=np.minimum(view.budgets, view.parameters.get("num_tokens", self.num_tokens))))


class RowsOfNumPy(DrawsChains):
    def propose(self, view):
        drafts = super().propose(view)
        return drafts if drafts.rows is None else dataclasses.replace(drafts, rows=drafts.rows.numpy())


class DiceOfItsOwn(DrawsChains):
    """Draws as its rows say, by numbers that no seed of the host's begins anew."""

    def __init__(self) -> None:
        self.dice = torch.Generator().manual_seed(5)

    def drawn(self, row):
        return int(torch.multinomial(row, 1, generator=self.dice))


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


class WritesIntoStartOnTheDevice(OnDevice):
    def start(self, slots):
        slots[:] = 0


WRONG: list[tuple[str, object, str]] = [
    ("test_drafts_keep_the_contract", Overdrafts(), "nodes where .* were allowed"),
    ("test_drafts_keep_the_contract", Silent(), r"nothing was \['drafted'\]"),
    ("test_the_same_inputs_give_the_same_drafts", Clock(), "two fresh builds draft differently"),
    ("test_the_same_inputs_give_the_same_drafts", PrivateDice(), "drafts differently the second time"),
    ("test_the_same_inputs_give_the_same_drafts", DiceOfItsOwn(), "drafts differently the second time"),
    ("test_views_are_neither_kept_nor_changed", KeepsTheView(), "keeps a view's arrays"),
    ("test_views_are_neither_kept_nor_changed", WritesIntoTheView(), "wrote into view.tokens"),
    ("test_views_are_neither_kept_nor_changed", WritesIntoStart(), r"wrote into the slots of start\(slots\)"),
    ("test_views_are_neither_kept_nor_changed", WritesIntoFinish(), r"wrote into the slots of finish\(slots\)"),
    ("test_a_batch_drafts_as_single_requests_do", TakesRowsForRequests(), "drafts otherwise in a batch"),
    ("test_requests_do_not_see_each_other", RemembersOthers(), "carries something from one request to another"),
    ("test_requests_do_not_see_each_other", NeverStartsAnew(), "carries something from one request to another"),
    ("test_requests_may_end_at_any_time", NeedsAStep(), "raised by drafter 'NeedsAStep'"),
    ("test_requests_may_end_at_any_time", NeverStartsAnew(), "after requests that ended early"),
    ("test_finished_requests_leave_no_memory", Hoards(), "bytes more after every"),
    ("test_finish_frees_long_requests", FreesNothing(), "after they ended"),
    ("test_a_request_may_send_the_defaults", CountsFromZero(), "drafts otherwise where a request sends"),
    ("test_a_request_may_send_its_own_values", IgnoresRequests(), "does not draft as built with their values"),
    ("test_a_request_may_send_its_own_values", FirstForAll(), "does not draft as built with their values"),
    ("test_a_request_may_send_its_own_values", BySlot(), "does not draft as built with their values"),
    ("test_a_request_may_send_its_own_values", NoMoreThanItsOwn(), "does not draft as built with their values"),
    ("test_a_request_may_send_its_own_values", NeverOff(), "does not draft as built with their values"),
    ("test_drawn_nodes_come_from_their_rows", SaysSampled(), "does not draw its nodes from their rows at level 1, sibling 1, of a request alone"),
    ("test_drawn_nodes_come_from_their_rows", ChoosesTheSecond(), "rows at level 2, sibling 1, after a likeliest one, of a request alone"),
    ("test_drawn_nodes_come_from_their_rows", ChoosesInABatch(), "does not draw its nodes from their rows at level 1, sibling 1, of request . of 2"),
    ("test_drawn_nodes_come_from_their_rows", ChoosesWhenAlone(), "does not draw its nodes from their rows at level 1, sibling 1, of a request alone"),
    ("test_drawn_nodes_come_from_their_rows", OneThrowForAll(), "does not draw its nodes from their rows at level 2, sibling 1"),
    ("test_drawn_nodes_come_from_their_rows", ChoosesTheSecondSibling(), "does not draw its nodes from their rows at level 1, sibling 2"),
    ("test_drawn_nodes_come_from_their_rows", SiblingTwice(), "does not draw its nodes from their rows at level 1, sibling 2"),
    ("test_drawn_nodes_come_from_their_rows", SiblingsWithReplacement(), "from a row that gives it 0, its siblings removed"),
    ("test_drawn_nodes_come_from_their_rows", CountsForARow(), "from a row that sums to 20"),
    ("test_drawn_nodes_come_from_their_rows", RowsOfNumPy(), "probability rows as a ndarray"),
    ("test_device_drafts_need_no_synchronisation", WaitsForTheDevice(), "reads values of the device"),
    ("test_device_drafts_need_no_synchronisation", PadsWithMinusOne(), "pad with valid ones"),
    ("test_device_drafts_need_no_synchronisation", ForgetsSlots(), "in another order"),
    ("test_device_drafts_need_no_synchronisation", WritesIntoStartOnTheDevice(), r"wrote into the slots of start\(slots\)"),
    ("test_output_is_that_of_plain_generate", WritesIntoTheView(), "changes the output"),
    ("test_output_is_that_of_plain_generate", Silent(), "of 0 drafts none was (accepted|rejected)"),
]
COMPARED = ("test_the_same_inputs_give_the_same_drafts", "test_views_are_neither_kept_nor_changed", "test_requests_may_end_at_any_time")
"""Checks that compare runs of a drafter, also of one that draws."""
RIGHT = [
    ("test_drafts_keep_the_contract", Copy()),
    ("test_a_batch_drafts_as_single_requests_do", Copy()),
    ("test_output_is_that_of_plain_generate", Copy()),
    *((check, drafter) for check in COMPARED for drafter in (SamplesWell(), DrawsChains(), DrawsSiblings())),
    ("test_a_request_may_send_its_own_values", OwnCounts()),
    ("test_a_request_may_send_its_own_values", SwitchedOff()),
    ("test_drawn_nodes_come_from_their_rows", SamplesWell()),
    ("test_drawn_nodes_come_from_their_rows", DrawsChains()),
    ("test_drawn_nodes_come_from_their_rows", DrawsSiblings()),
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


PROVE_NOTHING = [
    (Unaffected(), "drafts here alike with every value of patience that it declares the bounds of"),
    (DrawsAsManyAsAsked(), "draws at random"),
    (CountsFromZero(), "drafts here alike with every value of num_tokens that it declares the bounds of"),
]


@pytest.mark.parametrize(("technique", "match"), PROVE_NOTHING, ids=_name)
def test_values_that_prove_nothing_are_left_out_with_a_reason(technique, match):
    with pytest.raises(SkipTest, match=match):
        _run("test_a_request_may_send_its_own_values", technique)


def test_every_check_has_somebody_who_fails_it():
    assert {check for check, _, _ in WRONG} == {name for name in vars(DrafterConformance) if name.startswith("test_")}
