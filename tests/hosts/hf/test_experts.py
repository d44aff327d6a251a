"""Experts of limited capacity: a step is no wider than they have places, so that nothing is dropped that plain decoding keeps."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import (
    NllbMoeConfig,
    NllbMoeForConditionalGeneration,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

import accelplug
from accelplug import HostError
from accelplug.hooks import CommitView, Drafts, DraftView
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import VOCAB
from tests.hosts.hf.test_encoder_decoder import IDS, LAYERS

CAPACITY = 4
EVENTS: collections.Counter[str] = collections.Counter()
HARD = {"rejected", "accepted", "EOS inside a draft", "as wide as an expert", "more drafted than places", "a token for padding within the text"}
MOE = {"num_experts": 2, "encoder_sparse_step": 1, "decoder_sparse_step": 1}


def switch(**given: Any) -> Any:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
    steps = {"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2, "num_experts": 2}
    return SwitchTransformersForConditionalGeneration(SwitchTransformersConfig(**{"expert_capacity": CAPACITY, **sizes, **steps, **IDS, **given}))


def nllb_moe(**given: Any) -> Any:
    return NllbMoeForConditionalGeneration(NllbMoeConfig(**{"moe_eval_capacity_token_fraction": 0.0, "expert_capacity": 12, **MOE, **LAYERS, **IDS, **given}))


def made(make: Any, **given: Any) -> Any:
    torch.manual_seed(6)
    model = make(**given).eval()
    torch.manual_seed(6)
    for weights in model.parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=0.3)
    model.generation_config.update(eos_token_id=None, forced_eos_token_id=None, max_length=None)
    return model


@dataclass
class Watched(Oracle):
    """The oracle, counting what became of its drafts."""

    drafted: int = 0
    widths: list[int] = field(default_factory=list)

    def observe(self, view: CommitView) -> None:
        accepted = int(view.accepted.min())
        EVENTS["rejected"] += accepted < self.drafted
        EVENTS["accepted"] += accepted > 0

    def propose(self, view: DraftView) -> Drafts:
        EVENTS["more drafted than places"] += sum(self.pattern[self.steps % len(self.pattern)]) > int(view.budgets.max())
        drafts = super().propose(view)
        self.drafted = int((drafts.offsets[1:] - drafts.offsets[:-1]).max())
        self.widths.append(1 + self.drafted)
        return drafts


CASES = {
    "switch": (switch, {}, [1], CAPACITY),
    "switch, two rows": (switch, {}, [1, 1], CAPACITY // 2),
    "nllb-moe": (nllb_moe, {}, [1], 12),
    "nllb-moe, two rows": (nllb_moe, {}, [1, 1], 6),
    "nllb-moe, prioritised": (nllb_moe, {"batch_prioritized_routing": True}, [1, 1], 6),
    "nllb-moe as it comes": (nllb_moe, {"moe_eval_capacity_token_fraction": 1.0, "expert_capacity": 2}, [1], None),
}


@pytest.mark.parametrize("case", CASES)
def test_drafts_are_no_wider_than_experts_have_places(case):
    make, given, rows, widest = CASES[case]
    model = made(make, **given)
    inputs = {"input_ids": torch.randint(3, VOCAB, (len(rows), 9), generator=torch.Generator().manual_seed(4))}
    arguments = {"max_new_tokens": 40, "do_sample": False, "num_beams": 1}
    known = model.generate(**inputs, **arguments).tolist()
    EVENTS["a token for padding within the text"] += any(0 in row[:-1] and row[-1] for row in known)  # for which NLLB-MoE counts no position
    eos = None
    for _ in range(2):
        plain = model.generate(**inputs, **arguments, eos_token_id=eos).tolist()
        drafter = Watched(known, [(9, 9), (0, 3), (2, 1), (20, 0)], VOCAB)
        with accelplug.attach(model, drafter=drafter) as session:
            assert model.generate(**inputs, **arguments, eos_token_id=eos).tolist() == plain
        assert 0 < session.stats.accepted < session.stats.drafted
        assert widest is None or max(drafter.widths) == widest
        EVENTS["as wide as an expert"] += widest is not None
        EVENTS["EOS inside a draft"] += eos is not None and len(plain[0]) < len(known[0])
        eos = list(dict.fromkeys(known[0][1:]))[-1]


def test_every_hard_event_happened():
    assert {event for event in HARD if not EVENTS[event]} == set()


@pytest.mark.parametrize(
    ("make", "given", "sentence"),
    [
        (switch, {"expert_capacity": 3}, "have 3 places for the tokens of a step, where 2 rows leave none for drafts; give the model fewer rows"),
        (nllb_moe, {"moe_eval_capacity_token_fraction": 0.5}, "have 1 places.*leave none for drafts"),
        (nllb_moe, {"second_expert_policy": "random"}, "second_expert_policy='random' draws experts at random"),
    ],
)
def test_what_leaves_no_room_is_refused(make, given, sentence):
    with pytest.raises(HostError, match=sentence):
        accelplug.generate(made(make, **given), torch.tensor([[4, 5], [6, 7]]), drafter="prompt_lookup", max_new_tokens=3, num_beams=1)
