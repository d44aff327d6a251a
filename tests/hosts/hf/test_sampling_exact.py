"""Sampling keeps the target's distribution: exactly, by enumeration on a toy, and statistically in ``generate()``."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper

import accelplug
from accelplug.hooks import DrafterTraits, Drafts, DraftView, NodeKind, VerifierTraits, VerifyView
from accelplug.testing.enumeration import Judged, error, step, table
from accelplug.testing.oracle import Oracle
from accelplug.testing.plans import PLANS, D, Grow, S, W, possible_ends
from tests.hosts.hf.conftest import VOCAB as MODEL_VOCAB

TARGET = table(1)
EXACT = 1e-12


@pytest.mark.parametrize("data_dependent", [False, True])
@pytest.mark.parametrize("plan", PLANS)
def test_token_wise_is_exact(plan, data_dependent):
    judged, draft = Judged(), Grow(PLANS[plan], data_dependent)
    assert error(TARGET, step(TARGET, draft, "token_wise", judged=judged)) < EXACT
    assert possible_ends(draft) <= set(judged.ends)


def test_it_is_exact_after_any_context():
    """A step may begin anywhere: behind every text of two tokens."""
    for context in itertools.product(range(3), repeat=2):
        outcomes = step(TARGET, Grow([[W, W], [S]], data_dependent=True), "token_wise", context=context)
        assert error(TARGET, outcomes, context) < EXACT


class Shallow(Grow):
    """Says one level more than it drafts."""

    depth = 2


def test_drafts_that_are_less_deep_than_they_say_prove_nothing():
    with pytest.raises(AssertionError, match="Shallow drafted 1 levels where it says 2"):
        step(TARGET, Shallow([[S]]), "token_wise")


def test_token_wise_is_exact_behind_processors():
    processors = LogitsProcessorList([TemperatureLogitsWarper(0.7), TopKLogitsWarper(2)])

    def warped(context):
        return processors(None, TARGET(context).log()[None])[0].softmax(-1)

    for plan in ([[S], [S]], [[W, W], [W]], [[D, D], [D]]):
        assert error(warped, step(TARGET, Grow(plan), "token_wise", processors)) < EXACT


WRONG = {
    "draft probabilities for deterministic nodes": (Grow([[D, D], [D, D]], relabel=W), 0.05),
    "a sampled node dropped for its own probability": (Grow([[S], [S]], drop_below=0.3), 0.01),
    "without replacement told as independent": (Grow([[W, W], [W]], relabel=S), 0.01),
}


def test_calling_a_drawn_node_deterministic_is_exact_too():
    """Drawing first and looking for a match is right for any draft; it only accepts less than its row would allow."""
    assert error(TARGET, step(TARGET, Grow([[W, W], [S]], relabel=D), "token_wise")) < EXACT


@dataclass(frozen=True)
class AlwaysRatio:
    """Token-wise acceptance without the residual: what forgetting the second half of the rule costs."""

    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless="sampling")

    def accept(self, view: VerifyView) -> torch.Tensor:
        return (view.target_at_tokens() / view.draft_at_tokens()).clamp(max=1)

    def residual(self, view: VerifyView) -> torch.Tensor:
        return view.target


@pytest.mark.parametrize("name", WRONG)
def test_enumeration_catches_a_wrong_drafter(name):
    draft, at_least = WRONG[name]
    assert error(TARGET, step(TARGET, draft, "token_wise")) > at_least


def test_enumeration_catches_a_wrong_residual():
    assert error(TARGET, step(TARGET, Grow([[S], [S]]), AlwaysRatio())) > 0.01


def test_point_mass_drafts_take_the_same_random_numbers_as_plain_sampling(random_models):
    """Seed-identical at batch 1, with warpers, whatever is accepted."""
    arguments = {"max_new_tokens": 40, "do_sample": True, "temperature": 0.8, "top_k": 40, "top_p": 0.95}
    accepted = []
    for (name, model), seed in itertools.product(random_models.items(), range(2)):
        prompt = torch.tensor([[4, 8, 15, 16, 23]])
        torch.manual_seed(seed)
        plain = model.generate(prompt, **arguments)[0].tolist()
        for width in (1, 3):
            torch.manual_seed(seed)
            with accelplug.attach(model, drafter=Oracle([plain], [(3, 1), (0, 2), (1, 1)], MODEL_VOCAB, width)) as session:
                fast = model.generate(prompt, **arguments)[0].tolist()
            assert fast == plain, (name, seed, width)
            accepted.append(session.stats.accepted / session.stats.drafted)
    assert 0 < min(accepted) < max(accepted) < 1


# The engine itself: real model, real generate(), a drafter with its own random numbers and its own distribution.
SMALL, LENGTH, SAMPLES, BATCH = 5, 3, 4000, 200
SIGNIFICANCE = 1e-3


@dataclass
class RowDrafter:
    """Samples two tokens from a fixed row; `wrong` picks a known mistake."""

    wrong: str = ""
    row: torch.Tensor = field(default_factory=lambda: torch.tensor([0.35, 0.30, 0.2, 0.1, 0.05]))
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))
    traits: ClassVar[DrafterTraits] = DrafterTraits(kinds=frozenset(NodeKind))

    def propose(self, view: DraftView) -> Drafts:
        drawn = [self.draw(max(0, min(2, budget))) for budget in view.budgets.tolist()]
        offsets = np.cumsum([0, *map(len, drawn)])
        kinds = np.full(offsets[-1], int(NodeKind.SAMPLED))
        return Drafts(offsets, np.concatenate(drawn), None, kinds, np.zeros(offsets[-1], dtype=np.int64), self.row[None])

    def draw(self, count: int) -> np.ndarray:
        drawn = self.generator.choice(SMALL, size=count, p=self.row.double().numpy() / self.row.double().sum().item())
        if self.wrong == "ratio on deterministic nodes":
            drawn = np.zeros(count, dtype=np.int64)
        if self.wrong == "dropped by own probability":
            drawn = drawn[np.cumprod(self.row.numpy()[drawn] >= 0.2).astype(bool)]
        return drawn


@pytest.fixture(scope="module")
def small_model() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=SMALL, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        initializer_range=0.6, eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def exact_joint(model: Any, prompt: torch.Tensor) -> np.ndarray:
    """Probability of every continuation of LENGTH tokens, [SMALL ** LENGTH], from one forward pass."""
    continuations = torch.tensor(list(itertools.product(range(SMALL), repeat=LENGTH)))
    rows = torch.cat([prompt.expand(len(continuations), -1), continuations], 1)
    with torch.no_grad():
        logs = model(rows).logits.double().log_softmax(-1)[:, prompt.shape[1] - 1 : -1]
    joint = logs.gather(2, continuations[:, :, None]).sum((1, 2)).exp().numpy()
    return joint / joint.sum()


def p_value(model: Any, drafter: RowDrafter) -> tuple[float, float]:
    prompt = torch.tensor([[1, 2, 3, 4]])
    torch.manual_seed(11)
    counts = np.zeros(SMALL**LENGTH)
    batch = prompt.expand(BATCH, -1)  # rows advance apart, each judged as if it were alone
    with accelplug.attach(model, drafter=drafter, batches="ragged") as session:
        for _ in range(SAMPLES // BATCH):
            for tokens in model.generate(batch, max_new_tokens=LENGTH, do_sample=True, top_k=0, top_p=1.0)[:, -LENGTH:].tolist():
                counts[int("".join(map(str, tokens)), SMALL)] += 1
    assert session.stats.batches == "ragged"
    expected = exact_joint(model, prompt) * SAMPLES
    common = expected >= 5
    merged = [np.append(values[common], values[~common].sum()) for values in (counts, expected)]
    return float(stats.chisquare(*merged).pvalue), session.stats.acceptance


def test_sampled_drafts_keep_the_distribution_in_generate(small_model):
    """Chi-square over 125 continuations, 4,000 samples; the two mistakes below fail at this very size."""
    p, acceptance = p_value(small_model, RowDrafter())
    print(f"p = {p:.3f}, acceptance {acceptance:.2f}")
    assert 0.2 < acceptance < 0.9, "the test needs acceptances and rejections"
    assert p > SIGNIFICANCE


@pytest.mark.parametrize("wrong", ["ratio on deterministic nodes", "dropped by own probability"])
def test_the_same_sample_size_catches_known_mistakes(small_model, wrong):
    p, _ = p_value(small_model, RowDrafter(wrong))
    assert p < SIGNIFICANCE
