"""Where drafters draft beside the V2 runner, what the log says that costs, and what device drafters are shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from accelplug import option
from accelplug.hooks import BuildContext, DeviceDrafts, DeviceView, load_registry
from accelplug.hooks.binding import BoundDrafter, bind_drafter
from accelplug.hooks.registry import Owner, Technique
from accelplug.hosts.vllm.v2_device import DeviceSource
from accelplug.hosts.vllm.v2_form import drafts_on_device, expected_cost

CONTEXT = BuildContext("vllm", 50, (1,), None, "cpu", 8, 40, 4, list, list, list)  # type: ignore[arg-type]
LARGEST = torch.iinfo(torch.int64).max


def config(*, is_async: bool) -> Any:
    return SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=is_async))


def built(spelling: str) -> BoundDrafter:
    return bind_drafter(load_registry(entry_points=False).build("drafter", spelling, CONTEXT))


class OnDevice:
    """Drafts on the device alone, and keeps its views."""

    width: int = option(5, per_request=True)
    end: int | None = option(None, per_request=True)

    def __init__(self) -> None:
        self.views: list[DeviceView] = []
        self.told: list[tuple[str, list[int]]] = []

    def start(self, slots: Any) -> None:
        self.told.append(("start", slots.tolist()))

    def finish(self, slots: Any) -> None:
        self.told.append(("finish", slots.tolist()))

    def propose_on_device(self, view: DeviceView) -> DeviceDrafts:
        self.views.append(view)
        shape = len(view.slots), view.num_tokens
        return DeviceDrafts(torch.full(shape, 7), torch.full(shape[:1], view.num_tokens, dtype=torch.int32))


class InHostMemory:
    def propose_one(self, tokens: Any, budget: int) -> list[int]:
        return []


def strange(drafter: object) -> BoundDrafter:
    return bind_drafter(Technique("drafter", "odd", Owner("odd", "strange", "2.0"), drafter, type(drafter), "odd"))


COSTS = [
    ("suffix", True, "cuda", True, "drafts on the device: no wait for it, one pass over the tokens of every request a step"),
    ("input_copy", True, "cuda", True, "drafts on the device"),
    ("prompt_lookup", True, "cpu", True, "drafts on the device"),
    ("suffix", False, "cuda", False, "drafts in host memory: one wait for the device a step, for tokens that are waited for anyway"),
    ("prompt_lookup", False, "cpu", False, "drafts in host memory: no wait on a CPU"),
    (
        "suffix(scope='process')", True, "cuda", False,
        "one wait for the device a step, which drains the pipeline of asynchronous scheduling; with other options it drafts on the device",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("spelling", "is_async", "device", "on_device", "said"), COSTS)
def test_where_built_ins_draft_and_what_it_costs(spelling: str, is_async: bool, device: str, on_device: bool, said: str) -> None:
    bound = built(spelling)
    assert drafts_on_device(bound, config(is_async=is_async)) == on_device
    found = expected_cost(bound, config(is_async=is_async), device)
    assert said in found
    assert found.startswith(str(bound.technique))


@pytest.mark.parametrize("is_async", [False, True])
def test_others_draft_where_they_can(is_async: bool) -> None:
    assert drafts_on_device(strange(OnDevice()), config(is_async=is_async))
    bound = strange(InHostMemory())
    assert not drafts_on_device(bound, config(is_async=is_async))
    drains = "which drains the pipeline of asynchronous scheduling; a drafter that has propose_on_device would not"
    assert (drains in expected_cost(bound, config(is_async=is_async), "cuda")) == is_async


def states(lengths: list[int]) -> Any:
    """Return what of vLLM's RequestState is read."""
    tokens = torch.arange(len(lengths) * 40).view(-1, 40).int() % 50
    return SimpleNamespace(
        max_num_reqs=len(lengths), max_model_len=40, total_len=SimpleNamespace(gpu=torch.tensor(lengths, dtype=torch.int32)),
        all_token_ids=SimpleNamespace(gpu=tokens), req_id_to_index={},
    )  # fmt: skip


def step(source: DeviceSource, slots: dict[str, int], sampled: list[int], verified: int) -> torch.Tensor:
    """Let requests have gained tokens, each out of so many drafts and one more."""
    index = torch.tensor(list(slots.values()))
    bounds = torch.arange(len(slots) + 1, dtype=torch.int32) * (verified + 1)
    batch = SimpleNamespace(req_ids=list(slots), idx_mapping=index, idx_mapping_np=index.numpy(), cu_num_logits=bounds)
    drafts = torch.zeros(len(slots), source.num_tokens, dtype=torch.int64)
    source.propose(batch, torch.tensor(sampled, dtype=torch.int32), torch.arange(source.req_states.max_num_reqs), drafts)
    return drafts


def test_what_a_device_drafter_is_shown_and_how_much_of_it_counts(session) -> None:
    drafter = OnDevice()
    source = DeviceSource(session(drafter), states([11, 21, 31, 6]), 4)
    source.session.defaults = {"width": 5, "end": None}
    asked = {"a": (10, 40, None), "b": (15, 23, {"accelplug.end": 3}), "c": (30, 40, {"accelplug.num_tokens": 2}), "d": (5, 40, None)}
    for req_id, (prompt, limit, given) in asked.items():
        source.arrive(req_id, [], prompt, limit, SimpleNamespace(extra_args=given))
    slots = {"c": 2, "a": 0, "b": 1, "d": 3}
    assert (step(source, slots, [1, 1, 1, 0], 0) == 7).all()
    view = drafter.views[-1]
    assert view.prompt_lengths is not None
    assert (view.prompt_lengths.tolist(), view.prompt_lengths.dtype) == ([30, 10, 15, 5], torch.int32)
    assert view.lengths.tolist() == [31, 11, 21, 6]
    assert {name: values.tolist() for name, values in view.parameters.items()} == {"end": [LARGEST, LARGEST, 3, LARGEST]}
    # The most that the request may have; what it says itself; nothing while a prompt is read.
    assert source.counts(list(slots)) == [2, 4, 1, 0]
    source.req_states.total_len.gpu[[2, 0, 1, 3]] += torch.tensor([5, 3, 1, 1], dtype=torch.int32)
    step(source, slots, [5, 3, 1, 1], 4)
    source.settle()
    stats = source.session.stats
    own = stats.techniques[0]
    assert (own.drafts, own.drafted, own.accepted) == (3, 2 + 4 + 1, 2 + 2)
    assert stats.tokens == 3 + 10
    source.end({"a"})
    source.arrive("e", [], 3, 40, SimpleNamespace(extra_args=None))
    step(source, {"b": 1, "e": 0}, [1, 1], 4)
    assert drafter.views[-1].prompt_lengths.tolist() == [15, 3]


def test_a_step_that_samples_nothing_for_a_request_verified_none_of_its_drafts(session) -> None:
    source = DeviceSource(session(OnDevice()), states([11, 21]), 4)
    source.session.defaults = {}
    step(source, {"a": 0, "b": 1}, [1, 1], 0)
    step(source, {"a": 0, "b": 1}, [3, 0], 4)
    source.settle()
    own = source.session.stats.techniques[0]
    assert (own.drafts, own.drafted, own.accepted) == (1, 4, 2)


def test_who_takes_a_slot_over_unannounced_ends_the_one_that_had_it(session) -> None:
    drafter = OnDevice()
    source = DeviceSource(session(drafter), states([11, 21]), 4)
    source.session.defaults = {}
    source.arrive("a", [], 10, 40, SimpleNamespace(extra_args=None))
    step(source, {"a": 0, "b": 1}, [1, 1], 0)
    assert drafter.told == [("start", [0, 1])]
    assert drafter.views[-1].prompt_lengths.tolist() == [10, 0], "nothing is known of one that never arrived"
    step(source, {"c": 0, "b": 1}, [1, 1], 0)
    assert drafter.told[1:] == [("finish", [0]), ("start", [0])]


def test_padding_with_which_a_request_begins_is_no_draft_of_the_one_before(session) -> None:
    source = DeviceSource(session(OnDevice()), states([11, 21]), 4)
    source.session.defaults = {}
    step(source, {"a": 0, "b": 1}, [1, 1], 0)
    source.end({"a"})
    step(source, {"c": 0, "b": 1}, [1, 1], 4)
    source.settle()
    own = source.session.stats.techniques[0]
    assert (own.drafts, own.drafted) == (1, 4), "those of b"
