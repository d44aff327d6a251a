"""Batches with left padding: every row equals plain ``generate()`` on the same batch, whatever its neighbours accept."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import accelplug
from accelplug.hooks import CommitView, DrafterTraits, Drafts, DraftView, NodeKind
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import MAKERS, VOCAB
from tests.hosts.hf.test_greedy_exact import SETTINGS
from tests.hosts.hf.test_session import TakesAll

EVENTS: collections.Counter[str] = collections.Counter()
HARD = (
    "rows accept differently",
    "a row ends before others",
    "padded prompts",
    "trees of several sizes",
    "processors on",
    "a row without drafts",
)


@dataclass
class Watched(Oracle):
    """The oracle, counting what happens between rows."""

    def observe(self, view: CommitView) -> None:
        EVENTS["rows accept differently"] += len(set(view.accepted.tolist())) > 1

    def propose(self, view: DraftView) -> Drafts:
        drafts = super().propose(view)
        sizes = np.diff(drafts.offsets).tolist()
        EVENTS["trees of several sizes"] += self.width > 1 and len(set(sizes)) > 1
        EVENTS["a row without drafts"] += 0 in sizes and any(sizes)
        return drafts


def padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def unpadded(sequences: list[list[int]], inputs: dict[str, torch.Tensor]) -> list[list[int]]:
    """Return what drafters see of a padded batch's output."""
    return [row[int((mask == 0).sum()) :] for row, mask in zip(sequences, inputs["attention_mask"], strict=True)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    name=st.sampled_from(sorted(MAKERS)),
    prompts=st.lists(st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=24), min_size=2, max_size=4),
    new=st.integers(2, 40),
    pattern=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=5),
    width=st.sampled_from([1, 1, 2, 3]),
    given_settings=SETTINGS,
    stop=st.sampled_from(["none", "eos", "string", "eos and string"]),
    where=st.integers(2, 30),
)
def test_every_row_equals_plain_generate(random_models, tokenizer, name, prompts, new, pattern, width, given_settings, stop, where):
    model, inputs = random_models[name], padded(prompts)
    longest = inputs["input_ids"].shape[1]
    if len({len(prompt) for prompt in prompts}) > 1:
        given_settings = {key: value for key, value in given_settings.items() if key != "prefill_chunk_size"}
    arguments = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0, **given_settings}
    free = model.generate(**inputs, **arguments).tolist()
    fresh = list(dict.fromkeys(free[where % len(prompts)][longest:]))
    if "eos" in stop:
        arguments["eos_token_id"] = fresh[where % len(fresh)]
    if "string" in stop:
        arguments |= {"stop_strings": [tokenizer.decode(fresh[(where * 7) % len(fresh)])], "tokenizer": tokenizer}
    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    plain = model.generate(**inputs, **arguments, **wanted)
    with accelplug.attach(model, drafter=Watched(unpadded(free, inputs), pattern, VOCAB, width)) as session:
        fast = model.generate(**inputs, **arguments, **wanted)

    assert fast.sequences.tolist() == plain.sequences.tolist()
    made = fast.sequences.shape[1] - longest
    assert len(fast.scores) == len(plain.scores) == made
    for ours, theirs in zip([*fast.scores, *fast.logits], [*plain.scores, *plain.logits], strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)
    for ours, theirs in zip(fast.past_key_values.layers, plain.past_key_values.layers, strict=True):
        assert ours.keys.shape == theirs.keys.shape
        real = plain.sequences.shape[1] - 1 - theirs.keys.shape[2]
        visible = torch.cat([inputs["attention_mask"], torch.ones(len(prompts), made, dtype=torch.long)], 1)[
            :, real : real + theirs.keys.shape[2]
        ].bool()
        for states in ("keys", "values"):
            mine, other = (getattr(layer, states).transpose(1, 2)[visible] for layer in (ours, theirs))
            torch.testing.assert_close(mine, other, atol=2e-4, rtol=2e-3)
    ended = "eos" in stop and (fast.sequences[:, -1] == 0).any() and not (fast.sequences[:, -1] == 0).all()
    EVENTS["a row ends before others"] += bool(ended)
    EVENTS["padded prompts"] += bool((inputs["attention_mask"] == 0).any()) and session.stats.accepted > 0
    EVENTS["processors on"] += bool({"repetition_penalty", "no_repeat_ngram_size"} & set(given_settings)) and session.stats.accepted > 0


def test_every_hard_event_happened():
    print({event: int(count) for event, count in EVENTS.items()})
    missing = [event for event in HARD if not EVENTS[event]]
    assert not missing, f"the settings above never produced: {missing}"


@pytest.mark.parametrize("width", [1, 3])
def test_sampled_batches_take_the_same_random_numbers_as_plain_sampling(random_models, width):
    for name, model in random_models.items():
        inputs = padded([[3, 4, 5, 6], [7, 8], [9, 10, 11, 12, 13]])
        arguments = {"max_new_tokens": 24, "do_sample": True, "temperature": 0.9, "top_k": 30, "pad_token_id": 0}
        torch.manual_seed(5)
        plain = model.generate(**inputs, **arguments).tolist()
        arguments["eos_token_id"] = plain[1][15]
        torch.manual_seed(5)
        plain = model.generate(**inputs, **arguments)
        torch.manual_seed(5)
        with accelplug.attach(model, drafter=Oracle(unpadded(plain.tolist(), inputs), [(3, 1), (0, 2), (2, 0)], VOCAB, width)) as session:
            assert model.generate(**inputs, **arguments).tolist() == plain.tolist(), name
        assert session.stats.accepted > 0


def test_several_return_sequences_and_prompt_lookup(random_models):
    model, prompt = random_models["llama"], torch.tensor([[5, 6, 7, 8] * 6])
    arguments = {"max_new_tokens": 30, "do_sample": True, "temperature": 0.3, "num_return_sequences": 3}
    torch.manual_seed(1)
    plain = model.generate(prompt, **arguments)
    torch.manual_seed(1)
    with accelplug.attach(model, drafter="prompt_lookup") as session:
        assert model.generate(prompt, **arguments).tolist() == plain.tolist()
    assert (session.stats.requests, session.stats.tokens) == (3, 90)


def test_processors_that_look_at_the_row_number(random_models):
    """Each row may use tokens of its own alone."""
    model, inputs = random_models["llama"], padded([[5, 6, 7], [8, 9]])
    allowed = [list(range(10, 30)), list(range(40, 60))]
    arguments = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "prefix_allowed_tokens_fn": lambda row, _: allowed[row]}
    plain = model.generate(**inputs, **arguments)
    with accelplug.attach(model, drafter=Oracle(unpadded(plain.tolist(), inputs), [(2, 1)], VOCAB)) as session:
        assert model.generate(**inputs, **arguments).tolist() == plain.tolist()
    assert session.stats.accepted > 0


@dataclass
class Recorder:
    calls: list[Any] = field(default_factory=list)

    def start(self, slots: Any) -> None:
        self.calls.append(("start", slots.tolist()))

    def finish(self, slots: Any) -> None:
        self.calls.append(("finish", slots.tolist()))

    def observe(self, view: CommitView) -> None:
        self.calls.append(("observe", view.slots.tolist()))

    def propose_one(self, tokens: Any, budget: int) -> list[int]:
        return []


def test_a_finished_row_is_finished_at_once(random_models):
    model, inputs = random_models["llama"], padded([[5, 6, 7], [8, 9]])
    free = model.generate(**inputs, max_new_tokens=20, do_sample=False, pad_token_id=0)
    eos = next(token for token in free[0, 3:].tolist() if token not in free[1, 3:].tolist())
    recorder = Recorder()
    accelplug.generate(model, **inputs, drafter=recorder, max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=eos)
    assert recorder.calls[0] == ("start", [0, 1])
    assert ("finish", [0]) in recorder.calls
    assert recorder.calls[-1] == ("finish", [1])
    after = recorder.calls[recorder.calls.index(("finish", [0])) + 1 :]
    assert all(slots == [1] for _, slots in after)


@dataclass
class Samples:
    """Drafts sampled nodes for every row, without replacement at the first level."""

    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    traits = DrafterTraits(shape="tree", kinds=frozenset(NodeKind))

    def propose(self, view: DraftView) -> Drafts:
        row = torch.full((1, VOCAB), 1 / VOCAB)
        tokens: list[int] = []
        for budget in view.budgets.tolist():
            tokens += self.generator.choice(VOCAB, 3, replace=False).tolist() if budget >= 3 else []
        offsets = np.cumsum([0, *(3 if budget >= 3 else 0 for budget in view.budgets.tolist())])
        size = len(tokens)
        kinds = np.full(size, int(NodeKind.WITHOUT_REPLACEMENT))
        return Drafts(offsets, np.array(tokens, dtype=np.int64), np.full(size, -1), kinds, np.zeros(size, dtype=np.int64), row)


def test_sampled_nodes_and_lossy_rules_run_in_batches(random_models):
    model, inputs = random_models["llama"], padded([[5, 6, 7], [8, 9]])
    plain = model.generate(**inputs, max_new_tokens=20, do_sample=False, pad_token_id=0)
    fast = accelplug.generate(model, **inputs, drafter=Samples(), max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert fast.tolist() == plain.tolist()
    with accelplug.attach(model, drafter=Samples(), verifier=TakesAll(), allow_lossy=True) as session:
        model.generate(**inputs, max_new_tokens=20, do_sample=True, pad_token_id=0)
    assert session.stats.lossy_accepts > 0
