"""Rules of plugins on tensors: exact where they promise it, nothing masked or padded accepted, lossy tokens counted."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from accelplug import PluginError
from accelplug.hooks import ChainsChoice, ChainsView, Choice, PathView, VerifierTraits, VerifyView
from accelplug.hooks.registry import Owner, Technique
from accelplug.hosts.choices import choose_on_device
from accelplug.hosts.vllm import host_rules
from accelplug.hosts.vllm.judged import Judged, places_of
from accelplug.hosts.vllm.judging import Judge
from accelplug.spec.block import Block
from accelplug.spec.fly import Fly
from accelplug.spec.greedy import Greedy
from accelplug.spec.k_seq import KSeq
from accelplug.spec.token_wise import TokenWise
from accelplug.spec.traversal import Traversal
from accelplug.spec.typical import Typical

VOCAB_SIZE, DEPTH, SAMPLES = 4, 2, 30_000
FILLER = -1
NEVER = 1e-4


class TorchChance:
    """Random numbers of torch's; `fixed` ones for the drafts where a test wants to know them."""

    def __init__(self, batch: Judged, fixed: list[float] | None = None) -> None:
        self.batch, self.fixed = batch, fixed

    def uniforms(self, batch: Judged) -> Tensor:
        return torch.rand(len(batch.tokens)).double() if self.fixed is None else torch.tensor(self.fixed).double()

    def seeds(self, batch: Judged) -> Tensor:
        return torch.randint(-(2**62), 2**62, (len(batch.ends),))

    def draw(self, rest: Tensor) -> Tensor:
        return torch.where(self.batch.greedy, rest.argmax(-1), torch.multinomial(rest, 1).squeeze(1))


def judge(rule: Any) -> Judge:
    technique = Technique("verifier", "odd_rule", Owner("odd", "strange", "2.0"), rule, type(rule), "odd_rule")
    made = Judge(technique, torch.device("cpu"))
    made.serving = True
    return made


def chains(scores: Tensor, drafts: Tensor, *, greedy: bool = False, draft: Tensor | None = None) -> Judged:
    """Return a batch in which every request has chains of one length.

    :param scores: [num_reqs, 1 + length, vocab_size].
    :param drafts: [num_reqs, length].
    """
    num_reqs, length = drafts.shape
    ends = torch.arange(1, num_reqs + 1) * (length + 1)
    return Judged(scores.flatten(0, 1), ends, drafts.flatten(), torch.full((num_reqs,), greedy), draft)


def tree_of_scores() -> dict[tuple[int, ...], Tensor]:
    """Return a target: a context's scores, one token of each masked."""
    torch.manual_seed(3)
    contexts = [(), *((a,) for a in range(VOCAB_SIZE)), *((a, b) for a in range(VOCAB_SIZE) for b in range(VOCAB_SIZE))]
    rows = {context: torch.randn(VOCAB_SIZE) * 1.5 for context in contexts}
    for i, row in enumerate(rows.values()):
        row[i % VOCAB_SIZE] = -torch.inf
    return rows


def drawn_chains(target: dict[tuple[int, ...], Tensor], *, sampled: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return scores, drafts and draft rows; deterministic drafts fix the chain to one that the target mostly likes."""
    table = torch.stack([target[()], *(target[a,] for a in range(VOCAB_SIZE)), *(target[a, b] for a in range(VOCAB_SIZE) for b in range(VOCAB_SIZE))])
    if not sampled:
        first = int(target[()].argmax())
        drafts = torch.tensor([[first, int(target[first,].argsort()[-2])]]).expand(SAMPLES, -1)
        rows = None
    else:
        rows = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.1, 0.4]]).expand(SAMPLES, -1, -1)
        drafts = torch.multinomial(rows.flatten(0, 1), 1).view(SAMPLES, DEPTH)
    a, b = drafts.unbind(1)
    at = torch.stack([torch.zeros_like(a), 1 + a, 1 + VOCAB_SIZE + a * VOCAB_SIZE + b], 1)
    return table[at], drafts, None if rows is None else rows.flatten(0, 1)


def p_value(target: dict[tuple[int, ...], Tensor], outputs: list[list[int]]) -> float:
    """Return the least p-value over contexts: the tokens behind each follow the target's distribution."""
    behind: dict[tuple[int, ...], Counter[int]] = {}
    for output in outputs:
        for i, token in enumerate(output):
            behind.setdefault(tuple(output[:i]), Counter())[token] += 1
    found = []
    for context, counts in behind.items():
        expected = target[context].double().softmax(-1) * sum(counts.values())
        assert all(expected[token] > 0 for token in counts), f"a masked token after {context}"
        if expected.sum() > 200:
            cells = [token for token in range(VOCAB_SIZE) if expected[token] > 0]
            found.append(float(chisquare([counts[token] for token in cells], [float(expected[token]) for token in cells]).pvalue))
    assert len(found) > 2
    return min(found)


class Halved(TokenWise):
    """Accepts half as often and says so in its residual: exact, and not token_wise."""

    traits = VerifierTraits(lossless="sampling")

    def accept(self, view: VerifyView) -> Tensor:
        return super().accept(view) / 2

    def residual(self, view: VerifyView) -> Tensor:
        drawn = torch.zeros_like(view.target).scatter_(1, view.tokens.unsqueeze(1), 1.0) if view.draft is None else view.draft
        left = view.target - torch.minimum(view.target, drawn) / 2
        return left / left.sum(-1, keepdim=True)


class Careless(TokenWise):
    """Keeps every second draft whatever the target says, and claims to be exact."""

    def accept(self, view: VerifyView) -> Tensor:
        return torch.full_like(view.target_at_tokens(), 0.5)


class BlockInHostMemory(Block):
    """As rules are that have no other form."""

    choose_on_device: Any = None  # type: ignore[assignment]


class TraversalInHostMemory(Traversal):
    choose_on_device: Any = None  # type: ignore[assignment]


class CarelessChains(Block):
    """Keeps what block verification keeps, and claims that a rejection leaves the target."""

    def choose_on_device(self, view: ChainsView) -> ChainsChoice:
        kept = super().choose_on_device(view).kept
        return ChainsChoice(kept, view.drafts.at(view.following(kept)).target)


EXACT = (TokenWise(), Halved(), Block(), Traversal(), KSeq(), BlockInHostMemory(), TraversalInHostMemory())


@pytest.mark.parametrize("sampled", [False, True], ids=["deterministic", "drawn"])
@pytest.mark.parametrize("rule", [*EXACT, Careless(), CarelessChains()], ids=lambda rule: type(rule).__name__)
def test_distribution_is_the_targets(rule: Any, sampled: bool) -> None:
    target = tree_of_scores()
    scores, drafts, rows = drawn_chains(target, sampled=sampled)
    in_host_memory = hasattr(rule, "choose") and rule.choose_on_device is None
    count = 3000 if in_host_memory else SAMPLES
    batch = chains(scores[:count], drafts[:count], draft=None if rows is None else rows[: count * DEPTH])
    torch.manual_seed(11)
    made = judge(rule)
    verdict = made(batch, TorchChance(batch), DEPTH, FILLER)
    assert verdict is not None
    outputs = [[token for token in row if token != FILLER] for row in verdict.tokens.tolist()]
    assert [len(output) - 1 for output in outputs] == verdict.kept.tolist()
    assert {0, 1, 2} <= set(verdict.kept.tolist()), "drafts failed and held everywhere"
    assert (p_value(target, outputs) > NEVER) == (not isinstance(rule, Careless | CarelessChains))
    assert made.counts() == (count, count * DEPTH, int(verdict.kept.sum()), 0)


@pytest.mark.parametrize("rule", [*EXACT, Greedy()], ids=lambda rule: type(rule).__name__)
def test_greedy_output_is_the_targets_best(rule: Any) -> None:
    torch.manual_seed(5)
    count = 200
    scores = torch.randn(count, DEPTH + 1, VOCAB_SIZE)
    drafts = torch.where(torch.rand(count, DEPTH) < 0.6, scores[:, :DEPTH].argmax(-1), torch.randint(VOCAB_SIZE, (count, DEPTH)))
    batch = chains(scores, drafts, greedy=True)
    verdict = judge(rule)(batch, TorchChance(batch), DEPTH, FILLER)
    assert verdict is not None
    best = scores.argmax(-1)
    for i, row in enumerate(verdict.tokens.tolist()):
        output = [token for token in row if token != FILLER]
        assert output == best[i, : len(output)].tolist()
    if not isinstance(rule, Halved):
        right = (drafts == best[:, :DEPTH]).long().cumprod(1).sum(1)
        assert verdict.kept.tolist() == right.tolist()
    assert {0, 1, 2} == set(verdict.kept.tolist())


class Everything:
    """Accepts whatever it sees."""

    traits = VerifierTraits(lossless=None)

    def accept(self, view: VerifyView) -> Tensor:
        return torch.ones(len(view.tokens))

    def residual(self, view: VerifyView) -> Tensor:
        return view.target


class EveryPath:
    """Accepts whatever it sees, as a whole."""

    traits = VerifierTraits(lossless=None, shape="chain")

    def choose(self, view: PathView) -> Choice:
        return Choice(range(len(view.tokens)), view.target[-1])


class EveryChain(EveryPath):
    """The same on the device; of rejections, which it has none of, it says what is wrong."""

    def choose_on_device(self, view: ChainsView) -> ChainsChoice:
        wrong = torch.tensor([[0.0, 0.5, 0.0, 0.5]]).expand(len(view.counts), -1)
        return ChainsChoice(view.counts, wrong)


@pytest.mark.parametrize("rule", [Everything(), EveryPath(), EveryChain()], ids=["candidates", "paths", "chains"])
def test_ragged_masked_and_invalid(rule: Any) -> None:
    """Requests with 3, 0, 2, 2 and 1 drafts: one chain holds a masked token, one an invalid one."""
    lengths = [3, 0, 2, 2, 1]
    ends = torch.tensor(lengths).cumsum(0) + torch.arange(1, 6)
    torch.manual_seed(1)
    scores = torch.randn(int(ends[-1]), VOCAB_SIZE)
    tokens = torch.tensor([1, 2, 3, 1, 2, -1, 3, 0])
    scores[ends[1] + 1, 2] = -torch.inf  # the third request's second draft
    batch = Judged(scores, ends, tokens, torch.ones(5, dtype=torch.bool))
    made = judge(rule)
    verdict = made(batch, TorchChance(batch), 3, FILLER)
    assert verdict is not None
    assert verdict.kept.tolist() == [3, 0, 1, 0, 1]
    rows = [3, 4, 6, 8, 12]  # of scores, which the last token comes from
    last = [int(scores[row].argmax()) for row in rows]
    kept = [[1, 2, 3], [], [1], [], [0]]
    assert verdict.tokens.tolist() == [[*(kept[i] + [last[i]]), *[FILLER] * 3][:4] for i in range(5)]
    best = scores.argmax(-1)
    lossy = sum(int(best[row]) != token for row, token in ((0, 1), (1, 2), (2, 3), (5, 1), (11, 0)))
    assert made.counts() == (3, 7, 5, lossy)


def test_what_is_counted() -> None:
    """Requests with 1, 0 and 3 drafts, all accepted: two drafts of four tokens."""
    ends = torch.tensor([2, 3, 7])
    batch = Judged(torch.randn(7, VOCAB_SIZE), ends, torch.tensor([1, 2, 3, 0]), torch.ones(3, dtype=torch.bool))
    made = judge(Everything())
    assert made(batch, TorchChance(batch), 3, FILLER) is not None
    assert made.counts()[:3] == (2, 4, 4)


class Fixed:
    """The same number for every draft."""

    def __init__(self, number: float) -> None:
        self.number = number

    def uniforms(self, batch: Judged) -> Tensor:
        return torch.full((len(batch.tokens),), self.number).double()


def ragged(seed: int, *, drawn: bool) -> Judged:
    """Return 60 requests with up to 7 drafts each, likely and unlikely ones, masked and invalid ones; every third request is greedy and sets options."""
    torch.manual_seed(seed)
    lengths = torch.randint(0, 8, (60,))
    ends = lengths.cumsum(0) + torch.arange(1, 61)
    _, _, rows = places_of(ends, int(lengths.sum()))
    scores = (torch.randn(int(ends[-1]), 6) * 4).masked_fill(torch.rand(int(ends[-1]), 6) < 0.05, -torch.inf)
    draft = (scores[rows] * 0.9 + torch.randn(len(rows), 6)).softmax(-1)
    tokens = torch.multinomial(draft, 1).squeeze(1).where(torch.rand(len(rows)) < 0.9, 3)  # here and there one that may be masked
    tokens[torch.rand(len(tokens)) < 0.03] = -1
    greedy = torch.arange(60) % 3 == 0
    options = {"window": torch.where(greedy, 1, 2), "entropy": torch.where(greedy, 0.2, 0.6)}
    return Judged(scores, ends, tokens, greedy, draft if drawn else None, options)


@pytest.mark.parametrize("drawn", [False, True], ids=["deterministic", "drawn"])
@pytest.mark.parametrize("rule", [Block(), Traversal(), KSeq(), Fly(window=3)], ids=lambda rule: type(rule).__name__)
def test_both_forms_of_a_rule_decide_alike(rule: Any, drawn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long chains, request by request: what is kept, what is left, and what was lossy."""
    technique, lossless = judge(rule).rule, rule.traits.lossless is not None
    seen: Counter[Any] = Counter()
    for number in (0.1, 0.4, 0.8):
        batch = ragged(int(number * 10), drawn=drawn)
        monkeypatch.setattr(host_rules, "stream", lambda _, number=number: itertools.repeat(number))
        expected = host_rules.choose_in_host_memory(technique, batch, batch.ends, lossless=lossless)
        found = choose_on_device(technique, batch.chains(Fixed(number), 7), batch.behind, lossless=lossless)  # type: ignore[arg-type]
        assert (found[0].tolist(), found[2].tolist()) == (expected[0].tolist(), expected[2].tolist())
        torch.testing.assert_close(found[1], expected[1])
        seen.update(expected[0].tolist())
        seen["lossy"] += int(expected[2].sum())
    assert set(range(5)) <= set(seen)
    assert (seen["lossy"] > 0) == (not lossless)


def test_places() -> None:
    requests, places, rows = places_of(torch.tensor([3, 4, 5, 8]), 4)
    assert (requests.tolist(), places.tolist(), rows.tolist()) == ([0, 0, 3, 3], [0, 1, 0, 1], [0, 1, 5, 6])


def test_lossy_tokens_are_those_that_the_same_number_would_have_rejected() -> None:
    """Typical keeps what has more than 0.09; the exact rule rejects where the random number is above the probability."""
    scores = torch.tensor([[0.2, 0.2, 0.3, 0.3], [0.05, 0.15, 0.4, 0.4], [0.25, 0.25, 0.25, 0.25]]).log().unsqueeze(0)
    batch = chains(scores, torch.tensor([[0, 1]]))
    made = judge(Typical(epsilon=0.09, delta=1.0))
    assert made(batch, TorchChance(batch, [0.1, 0.9]), DEPTH, FILLER) is not None
    assert made.counts() == (1, 2, 2, 1)


def test_fly_overlooks_and_counts() -> None:
    scores = torch.zeros(1, 4, VOCAB_SIZE)
    scores[0, 0] = torch.tensor([1.0, 0.9, 0.0, 0.0])  # unsure: the second best was drafted
    scores[0, 1:, 2] = 5.0
    batch = chains(scores, torch.tensor([[1, 2, 2]]), greedy=True)
    made = judge(Fly(window=2, entropy=0.3, top_k=3))
    verdict = made(batch, TorchChance(batch), 3, FILLER)
    assert verdict is not None
    assert verdict.tokens.tolist() == [[1, 2, 2, 2]]
    assert made.counts() == (1, 3, 3, 1)


class Broken(Everything):
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def accept(self, view: VerifyView) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer(view) if callable(self.answer) else self.answer


class WrongRest(Broken):
    def residual(self, view: VerifyView) -> Any:
        return view.target[:1, :2]


class BrokenChains(Block):
    def __init__(self, answer: Any) -> None:
        object.__setattr__(self, "answer", answer)

    def choose_on_device(self, view: ChainsView) -> Any:
        return self.answer(view)


def half(view: ChainsView) -> ChainsChoice:
    return ChainsChoice(torch.zeros_like(view.counts), view.drafts.target[:1] / 2)


BROKEN = [
    (BrokenChains(lambda view: Choice((), view.drafts.target[0])), "returned a Choice; return accelplug.hooks.ChainsChoice"),
    (BrokenChains(lambda view: ChainsChoice(view.places, view.drafts.target)), "returned a kept that is no tensor [1]; return one entry per request"),
    (BrokenChains(lambda view: ChainsChoice(view.counts, view.drafts.target)), "returned a rest that is no tensor [1, 4]"),
    (BrokenChains(lambda view: ChainsChoice(view.counts, view.drafts.target[:1], view.counts)), "returned a lossy that is no tensor [1, 2]"),
    (BrokenChains(lambda view: ChainsChoice(view.counts.double(), view.drafts.target[:1])), "returned a kept of torch.float64; it counts drafts"),
    (BrokenChains(lambda view: ChainsChoice(view.counts + 1, view.drafts.target[:1])), "keeps [3] drafts of chains of [2]; keep no more than view.counts"),
    (BrokenChains(half), "returned a rest that sums to 0.5 with a least entry of 0.125; return distributions"),
    (BrokenChains(lambda view: view.below(view.places)), "view.below takes one probability per request and place, [1, 2], got [2]"),
    (Broken(RuntimeError("no opinion")), "failed on the drafts with which vLLM warms up: RuntimeError: no opinion"),
    (Broken(True), "returned acceptance probabilities that are no tensor [2]"),
    (Broken(lambda view: torch.tensor([0.5, 1.5])), "from 0.5 to 1.5; they lie between 0 and 1"),
    (Broken(lambda view: torch.tensor([0.5, torch.nan])), "they lie between 0 and 1"),
    (WrongRest(lambda view: torch.zeros(2)), "returned a residual that is no tensor [1, 4]"),
]


@pytest.mark.parametrize(("rule", "message"), BROKEN)
def test_rule_that_fails(rule: Any, message: str, caplog: pytest.LogCaptureFixture) -> None:
    batch = chains(torch.zeros(1, 3, VOCAB_SIZE), torch.tensor([[0, 1]]))
    warming = judge(rule)
    warming.serving = False
    with pytest.raises(PluginError) as refused:
        warming(batch, TorchChance(batch), DEPTH, FILLER)
    assert "verifier 'odd_rule' (strange 2.0)" in str(refused.value)
    assert message in str(refused.value)
    serving = judge(rule)
    with caplog.at_level(logging.ERROR, "vllm.accelplug"):
        assert serving(batch, TorchChance(batch), DEPTH, FILLER) is None
        assert serving(batch, TorchChance(batch), DEPTH, FILLER) is None
    assert len(caplog.records) == 1, "it is asked no more"
    assert "goes on with vLLM's own rejection sampler; report it to strange" in caplog.text
