"""Slots: one per request for its life, never two requests in one, recycled, and taken from those held back when scarce."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from accelplug.hosts.vllm.slots import SlotTable

NUM_SLOTS = 3


class Slots(RuleBasedStateMachine):
    """Requests come, are held back and go; the model is a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(NUM_SLOTS)
        self.known: dict[str, int] = {}

    @rule(batch=st.sets(st.sampled_from("abcdefg"), max_size=NUM_SLOTS))
    def run(self, batch: set[str]) -> None:
        for req_id in sorted(batch):
            if req_id in self.known:
                continue
            slot = self.table.free_slot(batch)
            previous = self.table.claim(req_id, slot)
            assert self.table.get(req_id) == slot
            assert (previous is not None) == (slot in self.known.values()), "a slot is taken only where none is free"
            if previous is not None:
                assert previous not in batch
                assert self.known.pop(previous) == slot
            self.known[req_id] = slot

    @rule(ended=st.sets(st.sampled_from("abcdefg")))
    def end(self, ended: set[str]) -> None:
        freed = self.table.end(ended)
        assert sorted(freed) == sorted(self.known.pop(req_id) for req_id in ended & set(self.known))

    @invariant()
    def agrees(self) -> None:
        assert len(self.table) == len(self.known)
        assert len(set(self.known.values())) == len(self.known)
        for req_id, slot in self.known.items():
            assert self.table[req_id] == slot


TestSlots = Slots.TestCase


@settings(deadline=None)
@given(st.integers(0, NUM_SLOTS - 1))
def test_engine_gives_a_slot_away(slot: int) -> None:
    table = SlotTable(NUM_SLOTS)
    table.claim("old", slot)
    assert table.claim("new", slot) == "old"
    assert table["new"] == slot
    assert table.get("old") is None
