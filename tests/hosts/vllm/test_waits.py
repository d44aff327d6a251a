"""On V2 drafters and rules on the device never wait for it, those in host memory once a step: counted on a device that is none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="the runner is vLLM's")

from accelplug.hooks import ROOT, Drafts, DraftView, NodeKind
from accelplug.hooks.registry import Owner, Technique
from accelplug.hosts.vllm import v2_judging
from accelplug.hosts.vllm.forced import FORCED, lay
from accelplug.hosts.vllm.judging import Judge
from accelplug.hosts.vllm.requests import RequestOptions
from accelplug.hosts.vllm.seat import Seat
from accelplug.hosts.vllm.session import Session
from accelplug.hosts.vllm.v2_device import DeviceSource
from accelplug.hosts.vllm.v2_host import HostSource
from accelplug.spec.block import Block
from accelplug.spec.fly import Fly
from accelplug.spec.input_copy import InputCopy
from accelplug.spec.k_seq import KSeq
from accelplug.spec.prompt_lookup import PromptLookup
from accelplug.spec.suffix import Suffix
from accelplug.spec.token_wise import TokenWise
from accelplug.spec.traversal import Traversal
from accelplug.spec.typical import Typical
from tests.support.on_device import GPU, Waits, on_device

NUM_SLOTS, MAX_LENGTH, NUM_TOKENS, VOCAB_SIZE = 4, 64, 3, 50
PROMPT = [5, 6, 7, 8, 5, 6]


class Engine:
    """As much of vLLM's V2 runner as drafters read: requests whose tokens are on the device."""

    def __init__(self, source: Callable[..., Any], session: Session) -> None:
        self.tokens, self.lengths = on_device(np.zeros((NUM_SLOTS, MAX_LENGTH), np.int32)), on_device(np.zeros(NUM_SLOTS, np.int32))
        self.states = SimpleNamespace(
            max_num_reqs=NUM_SLOTS, max_model_len=MAX_LENGTH, req_id_to_index={"a": 2, "b": 0, "c": 1},
            draft_tokens=on_device(np.zeros((NUM_SLOTS, NUM_TOKENS), np.int64)),
            all_token_ids=SimpleNamespace(gpu=self.tokens), total_len=SimpleNamespace(gpu=self.lengths),
        )  # fmt: skip
        self.running: list[str] = []
        with Waits():
            self.source = source(session, self.states, NUM_TOKENS)
            self.drafts = torch.zeros(NUM_SLOTS, NUM_TOKENS, dtype=torch.int64, device=GPU)

    def append(self, request: str, tokens: list[int]) -> None:
        slot = self.states.req_id_to_index[request]
        end = int(self.lengths[slot]) + len(tokens)
        self.tokens[slot, end - len(tokens) : end] = torch.tensor(tokens, dtype=torch.int32).as_subclass(type(self.tokens))
        self.lengths[slot] = end

    def arrive(self, request: str, **options: Any) -> None:
        params = SimpleNamespace(extra_args={"accelplug": options} if options else None)
        self.append(request, PROMPT)
        self.source.arrive(request, PROMPT, len(PROMPT), MAX_LENGTH, params)
        self.running.append(request)

    def step(self, new: dict[str, list[int]], verified: int = NUM_TOKENS) -> tuple[list[str], list[list[int]]]:
        """Give each running request its tokens and draft; return who waited, and the drafts."""
        for request in self.running:
            self.append(request, new[request])
        slots = np.array([self.states.req_id_to_index[request] for request in self.running])
        batch = SimpleNamespace(
            req_ids=list(self.running), num_reqs=len(slots), idx_mapping=on_device(slots), idx_mapping_np=slots,
            cu_num_logits=on_device(np.arange(len(slots) + 1, dtype=np.int32) * (verified + 1)), num_draft_tokens_per_req=np.full(len(slots), verified),
        )  # fmt: skip
        num_sampled = on_device(np.array([len(new[request]) for request in self.running], np.int32))
        with Waits() as waits:
            drafts = self.drafts[: len(slots)]
            self.source.propose(batch, num_sampled, on_device(np.zeros(NUM_SLOTS, np.int64)), drafts)
        return waits.seen, drafts.as_subclass(torch.Tensor).tolist()


def serve(engine: Engine) -> list[list[str]]:
    """Run a few steps with everything that steps differ by; return who waited in each."""
    waits, drafts = [], []

    def step(**new: list[int]) -> None:
        seen, found = engine.step(new)
        waits.append(seen)
        drafts.extend(found)

    engine.arrive("a")
    step(a=[7])
    step(a=[8, 5])
    engine.arrive("b", num_tokens=1)
    step(a=[6], b=[7])
    step(a=[], b=[8])  # as while a prompt is read in parts
    engine.source.force({"a": 1}, {"a": [7, 8]})
    step(a=[7, 8], b=[5])
    engine.source.force({}, {})
    engine.source.end({"a"})
    engine.running.remove("a")
    engine.arrive("c")
    step(b=[6], c=[7])
    assert any(len(set(chain)) > 1 for chain in drafts), "nothing was ever drafted"
    return waits


@pytest.mark.parametrize("drafter", [PromptLookup(num_tokens=NUM_TOKENS, min_ngram=1), Suffix(num_tokens=NUM_TOKENS), InputCopy(num_tokens=NUM_TOKENS)])
def test_a_drafter_on_the_device_never_waits(drafter: object, session: Callable[[object], Session]) -> None:
    engine = Engine(DeviceSource, session(drafter))
    assert serve(engine) == [[]] * 6
    with Waits() as waits:
        engine.source.settle()
    assert waits.seen == ["tolist"], "the counters are looked at once a second, not in a step"
    assert engine.source.session.stats.drafted > engine.source.session.stats.accepted > 0


@pytest.mark.parametrize("drafter", [PromptLookup(num_tokens=NUM_TOKENS, min_ngram=1), Suffix(num_tokens=NUM_TOKENS), InputCopy(num_tokens=NUM_TOKENS)])
def test_a_drafter_in_host_memory_waits_once_a_step(drafter: object, session: Callable[[object], Session]) -> None:
    assert serve(Engine(HostSource, session(drafter))) == [["cpu"]] * 6


class Drawing(PromptLookup):
    """Gives what it looked up as tokens that were drawn, with rows on the device."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.traits = replace(self.traits, kinds=frozenset({NodeKind.DELTA, NodeKind.SAMPLED}))

    def propose(self, view: DraftView) -> Drafts:
        looked_up = super().propose(view)
        places = np.arange(len(looked_up.tokens))
        kinds = np.where(places % 2, NodeKind.DELTA, NodeKind.SAMPLED)
        rows = on_device(np.full((len(places), VOCAB_SIZE), 1 / VOCAB_SIZE, dtype=np.float32))
        return Drafts(looked_up.offsets, looked_up.tokens, kinds=kinds, row_ids=np.where(places % 2, ROOT, places), rows=rows)


def test_what_drafts_were_drawn_from_costs_no_wait(session: Callable[[object], Session]) -> None:
    sampling = SimpleNamespace(temperature=SimpleNamespace(gpu=on_device(np.ones(NUM_SLOTS, np.float32))))
    engine = Engine(functools.partial(HostSource, sampling=sampling), session(Drawing(num_tokens=NUM_TOKENS, min_ngram=1)))
    assert serve(engine) == [["cpu"]] * 6
    logits = engine.source.logits.as_subclass(torch.Tensor)
    assert (logits.isfinite() & (logits < 0)).any(), "nothing was ever drawn"
    engine.states.draft_tokens[0] = 9
    engine.source.force({"b": 0}, {"b": [9, 9]})
    assert torch.equal(logits[0].softmax(-1), torch.eye(VOCAB_SIZE)[[9] * NUM_TOKENS]), "what a grammar forces is chosen"


class Curious(PromptLookup):
    """Looks at a value."""

    def propose_on_device(self, view: Any) -> Any:
        return super().propose_on_device(view) if int(view.lengths[0]) else None


def test_one_that_looks_at_a_value_is_seen(session: Callable[[object], Session]) -> None:
    assert serve(Engine(DeviceSource, session(Curious(num_tokens=NUM_TOKENS, min_ngram=1)))) == [["__int__"]] * 6


def test_forced_tokens_are_laid_without_a_wait() -> None:
    states = SimpleNamespace(draft_tokens=on_device(np.zeros((NUM_SLOTS, NUM_TOKENS), np.int64)), req_id_to_index={"a": 2, "b": 0})
    output = SimpleNamespace(scheduled_spec_decode_tokens={"a": [7, 8], "b": [9]}, **{FORCED: {"a": 0, "b": 1}})
    with Waits() as waits:
        lay(states, output)
    assert waits.seen == []
    assert states.draft_tokens.tolist() == [[9, 0, 0], [0, 0, 0], [7, 8, 0], [0, 0, 0]]


def sampler(rule: Any, **options: Any) -> v2_judging.JudgingSampler:
    """Return a rule in the place of vLLM's rejection sampler, for two requests of two drafts; the first sets options."""
    states = SimpleNamespace(
        temperature=SimpleNamespace(gpu=on_device(np.array([0.0, 1.0, 1.0, 1.0], np.float32)), np=np.array([0.0, 1.0, 1.0, 1.0], np.float32)),
        seeds=SimpleNamespace(gpu=on_device(np.arange(NUM_SLOTS))),
    )
    vllms = SimpleNamespace(sampling_states=states, apply_sampling_params=lambda logits, *_: logits, use_fp64_gumbel=False)
    technique = Technique("verifier", "rule", Owner("odd", "strange", "2.0"), rule, type(rule), "rule")
    with Waits():
        judge = Judge(technique, GPU)
    runner = SimpleNamespace(
        rejection_sampler=SimpleNamespace(sampler=vllms, num_speculative_steps=NUM_TOKENS), device=GPU,
        req_states=SimpleNamespace(index_to_req_id={2: "a", 0: "b"}),
        vllm_config=SimpleNamespace(speculative_config=SimpleNamespace(rejection_sample_method="standard")),
    )  # fmt: skip
    requests = RequestOptions()
    requests.begin("a", SimpleNamespace(extra_args={"accelplug": options} if options else None))
    seat = Seat(runner, judge, requests, v2=True, real=on_device(np.array([2, 0, 2, 0])))
    judge.serving = True
    found: v2_judging.JudgingSampler = seat.sampler
    return found


def verify(placed: v2_judging.JudgingSampler, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Judge one step; return who waited."""
    monkeypatch.setattr(v2_judging, "gumbel_sample", lambda scores, *_, **__: scores.argmax(-1))  # vLLM's kernel, which needs Triton
    slots, torch_slots = np.array([2, 0]), on_device(np.array([2, 0]))
    torch.manual_seed(3)
    logits, sampled = on_device(torch.randn(6, VOCAB_SIZE)), on_device(torch.randint(0, VOCAB_SIZE, (6,)))
    given = (torch.arange(6) % 3, torch.tensor([0, 3, 6], dtype=torch.int32))
    pos, cu_num_logits = (on_device(one) for one in given)
    expanded, local = on_device(np.array([2, 2, 2, 0, 0, 0])), on_device(np.array([0, 1, 2, 0, 1, 2]))
    with Waits() as waits:
        verdict = placed._verify(logits, None, sampled, pos, cu_num_logits, torch_slots, slots, expanded, local, None, sampled)
    assert verdict is not None
    assert placed.judge.switched_off is None, placed.judge.switched_off
    return waits.seen


@pytest.mark.parametrize("options", [{}, {"epsilon": 0.2}])
def test_a_rule_for_single_candidates_never_waits(options: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    assert verify(sampler(Typical(), **options), monkeypatch) == []
    assert verify(sampler(TokenWise()), monkeypatch) == []


@pytest.mark.parametrize("rule", [Block(), Traversal(), KSeq(), Fly(window=1, entropy=0.1)], ids=lambda rule: type(rule).__name__)
def test_a_rule_for_whole_drafts_never_waits_where_it_judges_on_the_device(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verify(sampler(rule), monkeypatch) == []


def test_what_requests_set_for_it_is_read_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verify(sampler(Fly(), window=1, entropy=0.1), monkeypatch) == []


class FlyInHostMemory(Fly):
    """As rules are that have no other form."""

    choose_on_device: Any = None  # type: ignore[assignment]


@pytest.mark.parametrize("options", [{}, {"window": 1, "entropy": 0.1}])
def test_a_rule_for_whole_drafts_waits_once_where_it_judges_in_host_memory(options: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    assert verify(sampler(FlyInHostMemory(), **options), monkeypatch) == ["cpu"]


@pytest.mark.parametrize(
    ("act", "waits"),
    [
        (lambda there: there.sum().item(), ["item"]),
        (lambda there: bool((there > 0).any()), ["__bool__"]),
        (lambda there: there.cpu().numpy(), ["cpu"]),
        (lambda there: there.to("cpu"), ["to"]),
        (lambda there: torch.zeros(3).to(there.device), ["to"]),
        (lambda there: torch.zeros(3).to(there.device, non_blocking=True), []),
        (lambda there: torch.tensor([1, 2], device=there.device), ["tensor"]),
        (lambda there: torch.arange(3, device=there.device) + there, []),
        (lambda there: there[there > 0], ["__getitem__"]),
        (lambda there: there[torch.tensor([0])], ["__getitem__"]),
        (lambda there: there[there.long()], []),
        (lambda there: there.copy_(torch.ones(3)), ["copy_"]),
        (lambda there: there.nonzero(), ["nonzero"]),
        (lambda there: there.repeat_interleave(there.long()), ["repeat_interleave"]),
        (lambda there: there.repeat_interleave(there.long(), output_size=3), []),
    ],
)
def test_what_would_wait_is_seen(act: Callable[[Any], Any], waits: list[str]) -> None:
    there = on_device([0.0, 1.0, 2.0])
    with Waits() as seen:
        act(there)
    assert seen.seen == waits
    with Waits(), pytest.raises(AssertionError, match="two devices"):
        there + torch.ones(3)
