"""Each built-in drafter without a model leaves greedy output as it is, whatever becomes of its drafts."""

from __future__ import annotations

import collections
import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import accelplug
from accelplug import HostError
from accelplug.hooks import ROOT, CommitView, Drafts, DraftView
from accelplug.hosts.hf.context import build_context
from tests.hosts.hf.conftest import VOCAB
from tests.hosts.hf.test_batches import padded

NEAR_TIE = 1e-4
DRAFTERS = {
    "suffix": "suffix(factor=2.0)",
    "suffix tree": "suffix(shape='tree', factor=2.0, min_match=1)",
    "token_recycling": "token_recycling(num_nodes=20)",
    "token_recycling chain": "token_recycling(shape='chain')",
    "input_copy": "input_copy(num_tokens=3)",
    "fusion": "fusion(sources=('suffix(shape=\"tree\")', 'token_recycling(num_nodes=12, k=4)', 'input_copy(num_tokens=5)'), num_nodes=20)",
    "transformers lookup": "transformers_candidates(num_tokens=6)",
    "early exit": "transformers_candidates(generator='early_exit', exit_layer=1, num_tokens=3)",
}
EVENTS: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
ALWAYS = {"zero accepted", "part accepted", "all accepted", "budget clipped", "rows accept differently", "a row is over"}
TREES = {"suffix tree", "token_recycling", "fusion"}


@dataclass
class Watched:
    """A built drafter, counting what becomes of its drafts."""

    inner: Any
    events: collections.Counter[str]
    last: dict[int, tuple[list[int], list[int]]] = field(init=False, default_factory=dict)
    taken: list[int] = field(init=False, default_factory=list)  # positions of accepted drafts that another one follows

    @property
    def traits(self) -> Any:
        return getattr(self.inner, "traits", accelplug.hooks.DrafterTraits())

    def start(self, slots: Any) -> None:
        self.inner.start(slots)
        self.last, self.served = {}, len(slots)

    def finish(self, slots: Any) -> None:
        self.inner.finish(slots)

    def observe(self, view: CommitView) -> None:
        self.inner.observe(view)
        self.events["rows accept differently"] += len(set(view.accepted.tolist())) > 1
        self.events["a row is over"] += len(view.slots) < self.served
        for i, slot in enumerate(view.slots.tolist()):
            tokens, parents = self.last.get(slot, ([], []))
            accepted, node, leaves = int(view.accepted[i]), ROOT, set(range(len(tokens))) - set(parents)
            for token in view.history(i)[view.lengths[i] - view.fresh[i] :][:accepted].tolist():
                children = [child for child, parent in enumerate(parents) if parent == node]
                node = next(child for child in children if tokens[child] == token)
                self.events["a later sibling accepted"] += node != children[0]
            begin = int(view.lengths[i] - view.fresh[i])
            self.taken += range(begin, begin + accepted - 1)
            if tokens:
                outcome = "zero accepted" if node == ROOT else "all accepted" if node in leaves else "part accepted"
                self.events[outcome] += 1

    def propose(self, view: DraftView) -> Drafts:
        drafts = self.inner.propose(view)
        for i, slot in enumerate(view.slots.tolist()):
            begin, end = drafts.offsets[i : i + 2].tolist()
            parents = list(range(ROOT, end - begin - 1)) if drafts.parents is None else drafts.parents[begin:end].tolist()
            self.last[slot] = drafts.tokens[begin:end].tolist(), parents
            self.events["budget clipped"] += 0 < end - begin == view.budgets[i]
        return drafts


def watched(label: str, model: Any, events: collections.Counter[str]) -> Watched:
    return Watched(accelplug.registry().build("drafter", DRAFTERS[label], build_context(model, None)).instance, events)


def is_near_tie(plain: Any, fast: torch.Tensor, start: int) -> bool:
    """Whether every row parts from the plain one where that one's two best scores are closer than NEAR_TIE."""
    for row, (ours, theirs) in enumerate(zip(fast.tolist(), plain.sequences.tolist(), strict=True)):
        if ours != theirs:
            at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
            best = plain.scores[at - start][row].topk(2).values
            if float(best[0] - best[1]) >= NEAR_TIE:
                return False
    return True


@pytest.mark.parametrize("label", DRAFTERS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    name=st.sampled_from(["llama", "qwen3", "gemma3"]),
    prompts=st.lists(st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=8), min_size=1, max_size=3),
    new=st.integers(2, 32),
    ends=st.booleans(),
    where=st.integers(1, 20),
    penalty=st.sampled_from([1.0, 1.0, 1.0, 1.3]),
)
def test_greedy_output_is_plain_generates(random_models, label, name, prompts, new, ends, where, penalty):
    model = random_models[name]
    arguments = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0, "repetition_penalty": penalty}
    # The answer that the prompt would have had stands before it, less some tokens: something to copy, and to lose again.
    seeds = padded(prompts)
    answers = model.generate(**seeds, max_new_tokens=24, do_sample=False, pad_token_id=0)[:, seeds["input_ids"].shape[1] :].tolist()
    inputs = padded([[*answer[:where], *answer[where + 2 :], *prompt] for answer, prompt in zip(answers, prompts, strict=True)])
    start = inputs["input_ids"].shape[1]
    if ends:
        free = model.generate(**inputs, **arguments)[0, start:].tolist()
        arguments["eos_token_id"] = free[where % len(free)]
    plain = model.generate(**inputs, **arguments, return_dict_in_generate=True, output_scores=True)
    events = EVENTS[label]
    with accelplug.attach(model, drafter=watched(label, model, events)):
        fast = model.generate(**inputs, **arguments)
    if fast.tolist() != plain.sequences.tolist():
        assert is_near_tie(plain, fast, start)
        events["near-tie"] += 1


def ended_inside_a_draft(session: accelplug.Session) -> bool:
    return session.stats.forwards + session.stats.accepted > session.stats.tokens


@pytest.mark.parametrize("label", ["suffix", "suffix tree", "input_copy", "fusion"])
def test_an_end_inside_a_copied_span_ends_the_answer(random_models, label):
    """The answer is made to copy the prompt, which has the end in its middle."""
    model, inside = random_models["llama"], 0
    for at in range(8, 12):
        prompt = list(range(10, 30))
        prompt[at] = 1
        arguments: dict[str, Any] = {"max_new_tokens": 18, "do_sample": False, "eos_token_id": 1, "pad_token_id": 0}
        arguments["prefix_allowed_tokens_fn"] = lambda _, ids, prompt=prompt: [prompt[len(ids) - len(prompt)]]
        with accelplug.attach(model, drafter=watched(label, model, collections.Counter())) as session:
            assert model.generate(torch.tensor([prompt]), **arguments).tolist() == [prompt + prompt[: at + 1]]
        inside += ended_inside_a_draft(session)
    assert inside


@pytest.mark.parametrize("label", ["token_recycling", "token_recycling chain", "fusion"])
def test_an_end_inside_recycled_drafts_ends_the_answer(random_models, label):
    """The end is a token that was accepted before with more drafts behind it, and that the answer has nowhere earlier."""
    fits: list[int] = []
    for name, seed in itertools.product(["llama", "qwen3"], range(5, 90, 7)):
        model, arguments = random_models[name], {"max_new_tokens": 30, "do_sample": False}
        prompt = torch.tensor([[seed, seed + 1, seed + 2]])
        inputs = torch.cat([model.generate(prompt, max_new_tokens=12, do_sample=False), prompt], 1)
        drafter = watched(label, model, collections.Counter())
        free = accelplug.generate(model, inputs, drafter=drafter, **arguments)[0].tolist()
        if fits := [free[at] for at in drafter.taken if at >= 18 and free[at] not in free[18:at]]:
            break
    arguments["eos_token_id"] = fits[-1]
    plain = model.generate(inputs, **arguments)
    with accelplug.attach(model, drafter=watched(label, model, collections.Counter())) as session:
        assert model.generate(inputs, **arguments).tolist() == plain.tolist()
    assert ended_inside_a_draft(session)


@pytest.mark.parametrize("label", DRAFTERS)
def test_every_hard_event_happened(label):
    print(dict(EVENTS[label]))
    wanted = ALWAYS | ({"a later sibling accepted"} if label in TREES else set())
    assert [event for event in sorted(wanted) if not EVENTS[label][event]] == []
    assert EVENTS[label]["near-tie"] <= 1


@pytest.mark.parametrize("label", DRAFTERS)
def test_calls_and_rows_know_nothing_of_each_other(random_models, label):
    """The second call in the same slots, and each row of a batch, drafts what it drafts alone."""
    model, prompts = random_models["qwen3"], [[5, 6, 7, 5, 6], [9, 9, 8, 9, 9]]
    arguments = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}

    def drafted(session: accelplug.Session, ids: list[list[int]]) -> int:
        before = session.stats.drafted
        model.generate(torch.tensor(ids), **arguments)
        return session.stats.drafted - before

    alone = []
    for prompt in prompts:
        with accelplug.attach(model, drafter=DRAFTERS[label]) as session:
            alone.append(drafted(session, [prompt]))
    with accelplug.attach(model, drafter=DRAFTERS[label]) as session:
        assert [drafted(session, [prompt]) for prompt in [*prompts, *prompts]] == alone * 2
    with accelplug.attach(model, drafter=DRAFTERS[label], batches="ragged") as session:
        assert drafted(session, [*prompts, *prompts]) == 2 * sum(alone)


def test_input_copy_takes_the_span_of_the_request(random_models):
    model = random_models["llama"]
    answer = model.generate(torch.tensor([[7, 8, 9]]), max_new_tokens=20, do_sample=False)[0].tolist()
    drafted = []
    for parameters in ({"span_start": -2}, {"span_start": 0, "span_end": 4}, {"span_start": 3}, {}):
        with accelplug.attach(model, drafter="input_copy", parameters=parameters) as session:
            model.generate(torch.tensor([answer]), max_new_tokens=6, do_sample=False)
        drafted.append(session.stats.drafted)
    assert len(set(drafted)) > 1, "the span makes no difference"


def test_a_host_without_trees_is_given_chains(random_models):
    from accelplug.hooks.capabilities import Host, Selection, admit
    from accelplug.hooks.registry import registry
    from accelplug.hosts.hf.context import build_context

    context = build_context(random_models["llama"], None)
    host = Host("an engine of chains", frozenset({"sampling", "logits.topk"}))
    rule = registry().build("verifier", "token_wise", None)
    for spec, runs in [
        ("token_recycling", False),
        ("token_recycling(shape='chain')", True),
        ("suffix", True),
        ("suffix(shape='tree')", False),
    ]:
        selection = Selection(registry().build("drafter", spec, context), rule)
        if runs:
            admit(selection, host, sampling=True)
        else:
            with pytest.raises(HostError, match=r"needs 'mask.tree'"):
                admit(selection, host, sampling=True)
