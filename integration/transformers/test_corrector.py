"""The trained corrector on held-out texts: the same text with and without copied drafts, and drafts that pay."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import accelplug
from accelplug.hooks import CommitView, Drafts, DraftView
from accelplug.spec.input_copy import InputCopy

testbed = pytest.importorskip("accelplug_testbed", reason="pip install ./integration/testbed")

TEXTS = {0.0: 4, 0.05: 8, 0.15: 16, 0.3: 8}  # for each edit rate


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    return AutoModelForSeq2SeqLM.from_pretrained(testbed.corrector(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(testbed.corrector())


def pairs(rate: float) -> list[dict[str, Any]]:
    return [pair for pair in testbed.corrections() if pair["rate"] == rate][: TEXTS[rate]]


def settings(inputs: Any) -> dict[str, Any]:
    return {"max_new_tokens": inputs["input_ids"].shape[1] + 32, "do_sample": False}


class Watched:
    """Input copying behind a counter of what became of each draft."""

    def __init__(self) -> None:
        self.inner = InputCopy()
        self.events, self.drafted, self.was_changed = collections.Counter[str](), 0, False
        self.start, self.finish = self.inner.start, self.inner.finish

    def observe(self, view: CommitView) -> None:
        self.inner.observe(view)
        accepted = int(view.accepted[0])
        if self.drafted:
            self.events["none accepted" if accepted == 0 else "all accepted" if accepted == self.drafted else "part accepted"] += 1
        self.events["copied on behind a change"] += self.was_changed and accepted > 1
        self.was_changed = accepted < self.drafted or (self.was_changed and not self.drafted)

    def propose(self, view: DraftView) -> Drafts:
        drafts = self.inner.propose(view)
        self.drafted = len(drafts.tokens)
        return drafts


def test_greedy_output_is_the_same_and_takes_a_third_of_the_steps(model, tokenizer):
    """At each edit rate token for token; at 15 % at least three tokens come out per forward pass."""
    events, per_forward = collections.Counter[str](), {}
    for rate in TEXTS:
        forwards = tokens = 0
        for pair in pairs(rate):
            inputs, drafter = tokenizer(pair["noisy"], return_tensors="pt"), Watched()
            plain = model.generate(**inputs, **settings(inputs))[0].tolist()
            with accelplug.attach(model, drafter=drafter) as session:
                assert model.generate(**inputs, **settings(inputs))[0].tolist() == plain
            stats = session.stats
            forwards, tokens = forwards + stats.forwards, tokens + stats.tokens
            events.update(drafter.events)
            events["EOS inside a draft"] += plain[-1] == tokenizer.eos_token_id and stats.forwards + stats.accepted > stats.tokens
        per_forward[rate] = tokens / forwards
    print(dict(events), per_forward)
    for event in ("none accepted", "part accepted", "all accepted", "copied on behind a change", "EOS inside a draft"):
        assert events[event], event
    assert per_forward[0.15] >= 3


def test_a_batch_of_texts_of_several_lengths_is_the_same(model, tokenizer):
    """Rows keep as many tokens as the one that accepts least."""
    texts = [pair["noisy"] for pair in pairs(0.05)[:3]]
    tokenizer.padding_side = "right"
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    plain = model.generate(**inputs, **settings(inputs)).tolist()
    with accelplug.attach(model, drafter="input_copy") as session:
        assert model.generate(**inputs, **settings(inputs)).tolist() == plain
    assert len({len(tokenizer(text).input_ids) for text in texts}) > 1
    assert len({row.index(tokenizer.eos_token_id) for row in plain}) > 1
    assert session.stats.accepted > 10


def test_most_mistakes_are_corrected_and_the_other_words_stay(model, tokenizer):
    """What the data card says, on the pairs at 15 %."""
    mistakes = corrected = words = stayed = 0
    for pair in pairs(0.15):
        inputs = tokenizer(pair["noisy"], return_tensors="pt")
        found = accelplug.generate(model, **inputs, drafter="input_copy", **settings(inputs))[0]
        output = tokenizer.decode(found, skip_special_tokens=True).split()
        noisy, clean = pair["noisy"].split(), pair["clean"].split()
        known = set(noisy)
        wanted = [word for word in clean if word not in known]  # misspelt wherever they stand in the noisy text
        mistakes, corrected = mistakes + len(wanted), corrected + sum(word in output for word in wanted)
        kept = [word for word in clean if word in known]
        words, stayed = words + len(kept), stayed + sum(word in output for word in kept)
    print(f"{corrected} of {mistakes} mistakes, {stayed} of {words} other words")
    assert corrected / mistakes > 0.5
    assert stayed / words > 0.75
