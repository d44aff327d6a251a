"""Typical acceptance and FLy: what they keep beyond the lossless rule, that it is counted, and that a mask still holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import accelplug
from accelplug import HostError
from accelplug.hooks import NodeKind, PathView, VerifyView, residual
from accelplug.spec.fly import Fly
from accelplug.spec.token_wise import TokenWise
from accelplug.spec.typical import Typical
from accelplug.testing.oracle import Oracle

VOCAB = 24
PROMPT = torch.tensor([[3, 7, 1, 9]])


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=256, eos_token_id=None, bos_token_id=None, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def candidates(rows, tokens):
    target = torch.tensor(rows)
    return VerifyView(torch.tensor(tokens), torch.zeros(len(tokens), dtype=torch.long), target, target.log())


def test_typical_by_hand():
    """Entropies of 0.94 and 0.39 nats, and bars of min(0.09, 0.3 exp(-H)): 0.09 for both, of delta=0.1: 0.039 and 0.068."""
    rows = [[0.6, 0.3, 0.08, 0.02], [0.9, 0.05, 0.05, 0.0]]
    view = candidates([rows[0], rows[0], rows[0], rows[1], rows[1]], [0, 1, 2, 0, 1])
    assert Typical().accept(view).tolist() == [1, 1, 0, 1, 0]
    assert Typical(delta=0.1).accept(view).tolist() == [1, 1, 1, 1, 0]
    assert Typical(epsilon=0.5).accept(view).tolist() == [1, 1, 0, 1, 0]
    assert Typical(epsilon=1.0, delta=1.0).accept(view).tolist() == [1, 0, 0, 1, 0]


def test_typical_keeps_the_best_token_alone_where_decoding_is_greedy():
    view = candidates([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]], [1, 2])
    assert Typical().accept(view).tolist() == [1, 0]


def test_typical_accepts_more_than_token_wise_and_leaves_the_target_alone():
    view = candidates([[0.4, 0.35, 0.25]] * 3, [0, 1, 2])
    assert (Typical().accept(view) > TokenWise().accept(view)).all()
    assert torch.equal(Typical().residual(view), view.target)
    assert not torch.equal(residual(view), view.target)


def runs(model, verifier, drafter, *, seed=0, allow_lossy=True, **arguments):
    torch.manual_seed(seed)
    with accelplug.attach(model, drafter=drafter, verifier=verifier, allow_lossy=allow_lossy) as session:
        output = model.generate(PROMPT, **{"max_new_tokens": 48, "do_sample": True, "top_k": 0, **arguments})
    return output[0].tolist(), session.stats


def test_typical_in_generate(model):
    likely = model.generate(PROMPT, max_new_tokens=48, do_sample=False).tolist()
    accepted = {}
    for verifier in ("token_wise", "typical"):
        _, stats = runs(model, verifier, Oracle(likely, [(3, 0)], VOCAB), temperature=1.5)
        accepted[verifier] = stats.acceptance
        assert (stats.lossy_accepts > 0) == (verifier == "typical")
    assert accepted["typical"] > accepted["token_wise"] + 0.1, accepted
    output, stats = runs(model, "typical", Oracle(likely, [(3, 1)], VOCAB, width=2), do_sample=False, top_k=None)
    assert (output, stats.lossy_accepts) == (likely[0], 0)


@pytest.mark.parametrize("verifier", ["typical(epsilon=0.0)", "fly(window=1, entropy=0.0)"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_a_masked_token_never_comes_out(model, verifier, do_sample):
    output, stats = runs(model, verifier, Oracle([[5, 6] * 40], [(4, 0)], VOCAB), do_sample=do_sample, suppress_tokens=[6])
    assert 6 not in output[PROMPT.shape[1] :]
    assert stats.drafted > 20


@pytest.mark.parametrize("verifier", ["typical", "fly"])
def test_lossy_rules_are_refused_unless_asked_for(model, verifier):
    with pytest.raises(HostError, match=f"verifier '{verifier}' .* may change the output; pass allow_lossy=True"):
        accelplug.attach(model, drafter="prompt_lookup", verifier=verifier)


# FLy, on chains whose likeliest tokens are all 0 and whose node 2 differs.


def chain(tokens, *, unsure=(), masked=(), sampled=False):
    """Return a greedy view in which token 0 is right everywhere; before `unsure` nodes two others are nearly as likely."""
    logits = torch.tensor([[9.0, 0.0, 0.0, 0.0]]).repeat(len(tokens) + 1, 1)
    for node in unsure:
        logits[node] = torch.tensor([2.0, 1.9, 1.8, 0.0])
    for node in masked:
        logits[node, tokens[node]] = -torch.inf
    target = logits.softmax(-1) if sampled else torch.zeros_like(logits).scatter_(1, logits.argmax(-1, keepdim=True), 1.0)
    parents = range(-1, len(tokens) - 1)
    return PathView(tokens, parents, [NodeKind.DELTA] * len(tokens), target, logits, lambda probability: probability > 0.5)


def chosen(rule, *args, **kwargs):
    view = chain(*args, **kwargs)
    choice = rule.choose(view)
    assert choice.rest.sum() == pytest.approx(1)
    return len(choice.path), list(choice.lossy), int(choice.rest.argmax())


FLY = Fly(window=2)
MISMATCH = [0, 0, 1, 0, 0, 0]


def test_fly_overlooks_a_mismatch_where_the_target_is_unsure_and_goes_along():
    assert chosen(FLY, MISMATCH, unsure=[2]) == (6, [2], 0)
    assert chosen(FLY, MISMATCH, unsure=[2], sampled=True) == (6, [2], 0)


@pytest.mark.parametrize(
    "view",
    [
        chain(MISMATCH),
        chain(MISMATCH, unsure=[2], masked=[2]),
        chain([0, 0, 1, 0], unsure=[2]),
        chain([0, 0, 1, 0, 1, 0, 0], unsure=[2]),
        chain([0, 0, 1, 1, 0, 0, 0], unsure=[2, 3]),
    ],
    ids=["sure", "masked", "window cut off by the end", "another mismatch in the window", "a mismatch overlooked itself"],
)
def test_fly_is_token_wise_otherwise(view):
    choice = FLY.choose(view)
    assert (list(choice.path), list(choice.lossy), int(choice.rest.argmax())) == ([0, 1], [], 0)


def test_fly_options():
    assert chosen(Fly(window=3), MISMATCH, unsure=[2])[0] == 6
    assert chosen(Fly(window=4), MISMATCH, unsure=[2])[0] == 2
    assert chosen(Fly(window=2, entropy=1.2), MISMATCH, unsure=[2])[0] == 2  # three equal tokens have 1.0986 nats
    assert chosen(Fly(window=2, entropy=0.69), MISMATCH, unsure=[2])[0] == 6
    assert chosen(Fly(window=2, entropy=0.69, top_k=2), [0, 0, 3, 0, 0, 0], unsure=[2])[0] == 6
    assert chosen(Fly(window=2, entropy=0.70, top_k=2), MISMATCH, unsure=[2])[0] == 2


def test_fly_goes_on_past_several_mismatches():
    assert chosen(FLY, [1, 0, 0, 1, 0, 0, 1, 0], unsure=[0, 3, 6]) == (6, [0, 3], 0)


def test_fly_in_generate(model):
    """The model's second choice at one place, then its own continuation of that: kept by FLy, rejected by token_wise."""
    plain = model.generate(PROMPT, max_new_tokens=20, do_sample=False)[0].tolist()
    begin = PROMPT.shape[1] + 3
    second = int(model(torch.tensor([plain[:begin]])).logits[0, -1].topk(2).indices[1])
    other = model.generate(torch.tensor([[*plain[:begin], second]]), max_new_tokens=40, do_sample=False)[0].tolist()
    drafts = Oracle([other], [(10, 0)], VOCAB)
    arguments = {"do_sample": False, "top_k": None, "max_new_tokens": 14}
    loose, stats = runs(model, "fly(window=4, entropy=0.0)", drafts, **arguments)
    assert loose == other[: len(loose)] != plain[: len(loose)]
    assert stats.lossy_accepts == 1
    strict, _ = runs(model, "fly(window=4, entropy=9.0)", drafts, **arguments)
    assert strict == plain[: len(strict)]
    _, exact = runs(model, "token_wise", drafts, **arguments)
    assert stats.accepted > exact.accepted
    assert np.isclose(exact.lossy_accepts, 0)
