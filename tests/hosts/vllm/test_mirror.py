"""The mirror holds what the engine holds, whichever requests a step brings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm", reason="its copies to the device are used")

from accelplug.hosts.vllm.mirror import TokenMirror

NUM_SLOTS, MAX_LENGTH, WINDOW = 4, 40, 3


class Engine:
    """The tensors of the engine's request states."""

    def __init__(self) -> None:
        self.tokens = torch.zeros(NUM_SLOTS, MAX_LENGTH, dtype=torch.int32)
        self.lengths = torch.zeros(NUM_SLOTS, dtype=torch.int32)

    def append(self, slot: int, tokens: list[int]) -> None:
        end = int(self.lengths[slot]) + len(tokens)
        self.tokens[slot, end - len(tokens) : end] = torch.tensor(tokens, dtype=torch.int32)
        self.lengths[slot] = end


Steps = st.lists(
    st.dictionaries(st.integers(0, NUM_SLOTS - 1), st.lists(st.integers(1, 99), max_size=WINDOW), min_size=1), min_size=1, max_size=8
)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=5), min_size=NUM_SLOTS, max_size=NUM_SLOTS), Steps)
def test_follows(prompts: list[list[int]], steps: list[dict[int, list[int]]]) -> None:
    engine, mirror = Engine(), TokenMirror(NUM_SLOTS, MAX_LENGTH, WINDOW)
    for slot, prompt in enumerate(prompts):
        engine.append(slot, prompt)
        mirror.begin(slot, prompt)
    for step in steps:
        slots = np.array(list(step), dtype=np.intp)
        for slot, tokens in step.items():
            engine.append(slot, tokens)
        gained = mirror.pull(slots, engine.tokens, engine.lengths)
        assert gained.tolist() == [len(tokens) for tokens in step.values()]
        for slot in step:
            length = int(engine.lengths[slot])
            assert mirror.lengths[slot] == length
            assert mirror.tokens[slot, :length].tolist() == engine.tokens[slot, :length].tolist()


def test_slot_given_away_unannounced_is_read_whole() -> None:
    engine, mirror = Engine(), TokenMirror(NUM_SLOTS, MAX_LENGTH, WINDOW)
    engine.append(2, list(range(1, 20)))
    mirror.pull(np.array([2]), engine.tokens, engine.lengths)
    assert mirror.tokens[2, :19].tolist() == list(range(1, 20))
    engine.lengths[2] = 0
    engine.append(2, [50, 51])
    mirror.pull(np.array([2]), engine.tokens, engine.lengths)
    assert mirror.tokens[2, :2].tolist() == [50, 51]
