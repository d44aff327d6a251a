"""The trained model on held-out edits: same text with and without drafts, and drafts that pay."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import accelplug

testbed = pytest.importorskip("accelplug_testbed", reason="pip install ./integration/testbed")

NEAR_TIE = 1e-4
NEW_TOKENS = 400


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(testbed.path(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(testbed.path())


@pytest.fixture(scope="module")
def edits() -> list[dict[str, Any]]:
    return testbed.prompts()[::8]


class Watched:
    """Prompt lookup behind a counter of what became of each draft."""

    def __init__(self, eos: int) -> None:
        from accelplug.spec.prompt_lookup import PromptLookup

        self.inner = PromptLookup(num_tokens=8)
        self.eos, self.events, self.last = eos, collections.Counter(), 0
        self.start, self.finish = self.inner.start, self.inner.finish

    def observe(self, view: Any) -> None:
        self.inner.observe(view)
        if self.last:
            accepted = int(view.accepted[0])
            self.events["zero" if accepted == 0 else "full" if accepted == self.last else "partial"] += 1

    def propose(self, view: Any) -> Any:
        drafts = self.inner.propose(view)
        self.last = len(drafts.tokens)
        return drafts


def near_tie(model: Any, sequence: list[int], at: int) -> float:
    with torch.no_grad():
        best = model(torch.tensor([sequence[:at]])).logits[0, -1].topk(2).values
    return float(best[0] - best[1])


def test_greedy_output_is_the_same_text(model, tokenizer, edits):
    """Token for token; where the top two scores are closer than 1e-4 a difference is counted and printed."""
    drafter, near_ties = Watched(tokenizer.eos_token_id), []
    drafted = accepted = forwards = tokens = 0
    for edit in edits:
        ids = tokenizer(edit["prompt"], return_tensors="pt").input_ids
        plain = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0].tolist()
        with accelplug.attach(model, drafter=drafter) as session:
            fast = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0].tolist()
        if fast != plain:
            at = next(i for i, (a, b) in enumerate(zip(fast, plain, strict=False)) if a != b)
            near_ties.append(near_tie(model, plain, at))
        drafted, accepted = drafted + session.stats.drafted, accepted + session.stats.accepted
        forwards, tokens = forwards + session.stats.forwards, tokens + session.stats.tokens
    print(f"events {dict(drafter.events)}, near-ties {near_ties}, {accepted}/{drafted} accepted, {tokens / forwards:.2f} tokens per forward")
    assert all(margin < NEAR_TIE for margin in near_ties)
    assert len(near_ties) <= len(edits) // 5
    assert set(drafter.events) == {"zero", "partial", "full"}
    assert tokens / forwards > 1.5


def test_end_and_stop_string_inside_an_accepted_draft(model, tokenizer, edits):
    """Oracle drafts run past the end: output must stop where plain output stops."""
    from accelplug.testing.oracle import Oracle

    inside = collections.Counter()
    for edit in edits[:6]:
        ids = tokenizer(edit["prompt"], return_tensors="pt").input_ids
        plain = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0].tolist()
        drafter = Oracle([[*plain, *[7] * 20]], [(9, 0)], model.config.vocab_size)
        with accelplug.attach(model, drafter=drafter) as session:
            assert model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0].tolist() == plain
        inside["EOS"] += plain[-1] == tokenizer.eos_token_id and session.stats.forwards + session.stats.accepted > session.stats.tokens
        text = tokenizer.decode(plain[ids.shape[1] :])
        middle = text[len(text) // 2 : len(text) // 2 + 4]
        wanted = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "stop_strings": [middle], "tokenizer": tokenizer}
        stopped = model.generate(ids, **wanted)[0].tolist()
        with accelplug.attach(model, drafter=drafter) as session:
            assert model.generate(ids, **wanted)[0].tolist() == stopped
        inside["stop string"] += session.stats.forwards + session.stats.accepted > session.stats.tokens
    print(dict(inside))
    assert inside["EOS"] > 0
    assert inside["stop string"] > 0


def test_sampling_takes_the_same_seed_to_the_same_text(model, tokenizer, edits):
    accepted = 0
    for seed, edit in enumerate(edits[:6]):
        ids = tokenizer(edit["prompt"], return_tensors="pt").input_ids
        wanted = {"max_new_tokens": 80, "do_sample": True, "temperature": 0.7, "top_p": 0.95}
        torch.manual_seed(seed)
        plain = model.generate(ids, **wanted)[0].tolist()
        torch.manual_seed(seed)
        with accelplug.attach(model, drafter="prompt_lookup") as session:
            assert model.generate(ids, **wanted)[0].tolist() == plain
        accepted += session.stats.accepted
    assert accepted > 50


def test_the_model_copies_what_an_edit_leaves_alone(model, tokenizer):
    """The gate of the data card, on all shipped edits: 95 % of unchanged lines come out exactly."""
    import difflib

    kept = found = 0
    for edit in testbed.prompts():
        ids = tokenizer(edit["prompt"], return_tensors="pt").input_ids
        out = accelplug.generate(model, ids, drafter="suffix(num_tokens=32)", max_new_tokens=700, do_sample=False)[0, ids.shape[1] :]
        before = edit["prompt"].split("\n<|edit|>")[1].split("<|endoftext|>\n<|result|>")[0].split("\n")[1:]
        after, got = edit["expected"].split("\n"), tokenizer.decode(out, skip_special_tokens=True).split("\n")
        same = [after[b.b + i] for b in difflib.SequenceMatcher(None, before, after, False).get_matching_blocks() for i in range(b.size)]
        kept += len(same)
        found += sum(block.size for block in difflib.SequenceMatcher(None, same, got, False).get_matching_blocks())
    print(f"{found} of {kept} unchanged lines")
    assert found / kept >= 0.95


def test_bfloat16_differs_at_near_ties_only(tokenizer, edits):
    model = AutoModelForCausalLM.from_pretrained(testbed.path(), dtype=torch.bfloat16).eval()
    for edit in edits[:4]:
        ids = tokenizer(edit["prompt"], return_tensors="pt").input_ids
        plain = model.generate(ids, max_new_tokens=120, do_sample=False)[0].tolist()
        fast = accelplug.generate(model, ids, drafter="prompt_lookup", max_new_tokens=120, do_sample=False)[0].tolist()
        if fast != plain:
            at = next(i for i, (a, b) in enumerate(zip(fast, plain, strict=False)) if a != b)
            assert near_tie(model, plain, at) < 0.25, "two bfloat16 scores of size 16 to 32 that differ by more than their rounding"
