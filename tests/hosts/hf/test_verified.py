"""The runners-up that a drafter is shown are the model's own, for every node of the last forward pass."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

import accelplug
from accelplug.hooks import ROOT, CommitView, DrafterTraits, Drafts, DraftView
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import VOCAB
from tests.hosts.hf.test_batches import padded, unpadded

TOP = 5
EVENTS: collections.Counter[str] = collections.Counter()


@dataclass
class Watched(Oracle):
    """The oracle, recomputing what it is shown from scratch, one context after the other."""

    model: Any = None
    contexts: dict[int, list[list[int]]] = field(init=False, default_factory=dict)

    @property
    def traits(self) -> DrafterTraits:
        return DrafterTraits(shape="tree" if self.width > 1 else "chain", top_k=TOP)

    def observe(self, view: CommitView) -> None:
        assert view.verified is not None
        offsets, tokens, top = view.verified.offsets.tolist(), view.verified.tokens.tolist(), view.verified.top
        assert len(offsets) == len(view.slots) + 1
        assert (offsets[0], offsets[-1], top.shape) == (0, len(tokens), (len(tokens), TOP))
        for i, slot in enumerate(view.slots.tolist()):
            contexts = self.contexts.pop(slot, None) or [view.history(i)[:-1].tolist()]  # at first the prompt, before its one new token
            assert offsets[i + 1] - offsets[i] == len(contexts)
            for context, token, shown in zip(contexts, tokens[offsets[i] :], top[offsets[i] :], strict=False):
                assert context[-1] == token
                self._check(context, shown.tolist())
            EVENTS["several drafts"] += len(contexts) > 1
            EVENTS["rejected drafts"] += len(contexts) > 1 + int(view.accepted[i])
        EVENTS["rows of several widths"] += len(set(np.diff(offsets).tolist())) > 1
        EVENTS["a row has ended"] += len(view.slots) < len(self.sequences)

    def _check(self, context: list[int], shown: list[int]) -> None:
        with torch.no_grad():
            row = self.model(torch.tensor([context])).logits[0, -1]
        torch.testing.assert_close(row[shown], row.topk(TOP).values, atol=1e-4, rtol=1e-4)

    def propose(self, view: DraftView) -> Drafts:
        drafts = super().propose(view)
        for i, slot in enumerate(view.slots.tolist()):
            begin, end = drafts.offsets[i : i + 2]
            parents = range(ROOT, end - begin - 1) if drafts.parents is None else drafts.parents[begin:end].tolist()
            contexts = [view.history(i).tolist()]
            for token, parent in zip(drafts.tokens[begin:end].tolist(), parents, strict=True):
                contexts.append([*contexts[parent + 1], token])
            self.contexts[slot] = contexts
        return drafts


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("width", [1, 3])
def test_every_verified_node_comes_with_the_models_likeliest(random_models, name, width):
    model = random_models[name]
    inputs, settings = padded([[5, 6, 7, 8], [9, 10], [3]]), {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    free = model.generate(**inputs, **settings).tolist()
    settings["eos_token_id"] = free[0][10]
    plain = model.generate(**inputs, **settings).tolist()
    drafter = Watched(unpadded(free, inputs), [(2, 1), (0, 2), (3, 0), (0, 0)], VOCAB, width, model=model)
    assert accelplug.generate(model, **inputs, drafter=drafter, **settings).tolist() == plain


def test_rows_are_the_models_own_whatever_the_processors(random_models):
    """Shown before any processor: what a drafter learns does not depend on how a request samples."""
    model, prompt = random_models["llama"], torch.tensor([[5, 6, 7, 8]])
    plain = model.generate(prompt, max_new_tokens=20, do_sample=False, repetition_penalty=1.8)
    drafter = Watched(plain.tolist(), [(2, 1), (1, 2)], VOCAB, 1, model=model)
    fast = accelplug.generate(model, prompt, drafter=drafter, max_new_tokens=20, do_sample=False, repetition_penalty=1.8)
    assert fast.tolist() == plain.tolist()


def test_a_drafter_that_does_not_ask_sees_none(random_models):
    seen = []

    class Looks:
        def observe(self, view: CommitView) -> None:
            seen.append(view.verified)

        def propose_one(self, tokens: Any, budget: int) -> list[int]:
            return []

    accelplug.generate(random_models["llama"], torch.tensor([[5, 6]]), drafter=Looks(), max_new_tokens=5, do_sample=False)
    assert seen
    assert set(seen) == {None}


def test_every_hard_event_happened():
    print(dict(EVENTS))
    assert all(EVENTS[event] for event in ("several drafts", "rejected drafts", "rows of several widths", "a row has ended"))
