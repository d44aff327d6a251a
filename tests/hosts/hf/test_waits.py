"""How often a step waits for the device, counted on a device that is none: once, to read the best token of every row and position."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import accelplug
from accelplug.hooks import DrafterTraits
from accelplug.hosts.hf.device import upload
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import VOCAB
from tests.hosts.hf.test_batches import padded, unpadded
from tests.support.on_device import GPU, Waits, on_device

PATTERN = [(3, 1), (0, 2), (5, 0), (0, 0), (2, 4)]
ONE, EQUAL, PADDED = [[5, 6, 7, 8, 9]], [[5, 6, 7, 8, 9], [3, 4, 5, 6, 7]], [[5, 6, 7, 8, 9], [3, 4, 5]]
SHORT, LONG = 16, 36


@pytest.fixture(scope="module")
def there(random_models: dict[str, nn.Module]) -> Callable[[str], Any]:
    """What puts a copy of a model on the device."""

    def moved(name: str) -> nn.Module:
        model = copy.deepcopy(random_models[name])
        for module in model.modules():
            own, rest = module._parameters, module._buffers
            own.update({key: nn.Parameter(on_device(values.detach()), requires_grad=False) for key, values in own.items() if values is not None})
            rest.update({key: on_device(values) for key, values in rest.items() if values is not None})
        return model

    return moved


class Reads(Oracle):
    """The oracle, shown hidden states."""

    @property
    def traits(self) -> DrafterTraits:
        return replace(super().traits, hidden_layers={0, -1})


class Counted:
    """Calls of one model there: what waited in each, and how many passes and tokens it took."""

    def __init__(self, model: Any, prompts: list[list[int]], known: list[list[int]], width: int, batches: str, extra: dict[str, Any]) -> None:
        self.model, self.known, self.width, self.batches, self.extra = model, known, width, batches, extra
        self.host_inputs = padded(prompts)
        self.passes, self.kind = 0, Oracle
        model.register_forward_hook(self._pass)

    def _pass(self, *_: Any) -> None:
        self.passes += 1

    def run(self, new_tokens: int) -> tuple[list[list[int]], collections.Counter[str]]:
        drafter = self.kind(unpadded(self.known, self.host_inputs), PATTERN, VOCAB, self.width)
        inputs = {name: on_device(values) for name, values in self.host_inputs.items()}
        self.passes = 0
        with Waits() as waits, accelplug.attach(self.model, drafter=drafter, batches=self.batches) as session:
            output = self.model.generate(**inputs, max_new_tokens=new_tokens, pad_token_id=0, **self.extra)
        assert 0 < session.stats.accepted < session.stats.drafted
        return output.as_subclass(torch.Tensor).tolist(), collections.Counter(waits.seen)


@pytest.mark.parametrize(
    ("name", "prompts", "width", "batches"),
    [
        ("llama", ONE, 1, "auto"),
        ("gemma3", ONE, 1, "auto"),
        ("llama", EQUAL, 1, "lockstep"),
        ("llama", PADDED, 1, "ragged"),
        ("llama", ONE, 2, "auto"),
        ("llama", EQUAL, 2, "ragged"),
    ],
)
def test_a_greedy_step_reads_once_from_the_device(random_models, there, name, prompts, width, batches):
    """Whatever the rows and the drafts. What a call does once is taken out by comparing a longer one with a shorter one."""
    greedy = {"do_sample": False}
    known = random_models[name].generate(**padded(prompts), max_new_tokens=LONG, pad_token_id=0, **greedy).tolist()
    counted = Counted(there(name), prompts, known, width, batches, greedy)
    _, before = counted.run(SHORT)
    passes = counted.passes
    rows, waits = counted.run(LONG)
    assert rows == known
    waits.subtract(before)
    uploads = waits.pop("tensor", 0)  # of tokens, depths and the slots that are kept
    assert {kind: count for kind, count in waits.items() if count} == {"tolist": counted.passes - passes}
    assert counted.passes - passes > 3
    assert uploads <= (counted.passes - passes) * (1 if width == 1 and batches != "ragged" else 2 if width == 1 else 3)


@pytest.mark.parametrize(("prompts", "width", "batches"), [(ONE, 1, "auto"), (PADDED, 1, "ragged"), (EQUAL, 1, "lockstep"), (PADDED, 2, "ragged")])
def test_hidden_states_are_read_without_waiting(random_models, there, prompts, width, batches):
    known = random_models["llama"].generate(**padded(prompts), max_new_tokens=LONG, pad_token_id=0, do_sample=False).tolist()
    counted = Counted(there("llama"), prompts, known, width, batches, {"do_sample": False})
    found = []
    for kind in (Oracle, Reads):
        counted.kind = kind
        rows, waits = counted.run(LONG)
        assert rows == known
        found.append(waits)
    assert found[0] == found[1]


def test_a_sampled_token_is_read_once_from_the_device(there, random_models):
    sampled = {"do_sample": True, "top_k": 20}
    torch.manual_seed(3)
    known = random_models["llama"].generate(**padded(ONE), max_new_tokens=LONG, pad_token_id=0, **sampled).tolist()
    counted = Counted(there("llama"), ONE, known, 1, "auto", sampled)
    torch.manual_seed(3)
    _, before = counted.run(SHORT)
    passes = counted.passes
    torch.manual_seed(3)
    rows, waits = counted.run(LONG)
    assert rows == known
    waits.subtract(before)
    assert waits.pop("tensor") <= counted.passes - passes
    assert {kind: count for kind, count in waits.items() if count} == {"tolist": LONG - SHORT}


def test_uploads_do_not_wait():
    with Waits() as waits:
        numbers, moved = upload([3, 1], GPU), upload(torch.ones(2, dtype=torch.bool), GPU)
        empty = upload([], GPU, torch.long)
        assert {tensor.device for tensor in (numbers, moved, empty)} == {GPU}
    assert waits.seen == []
    assert empty.dtype == numbers.dtype == torch.int64
    assert upload([3, 1], torch.device("cpu")).tolist() == [3, 1]
