"""Random views for verification rules, and what their answers must be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accelplug.hooks.drafting import ROOT, NodeKind
from accelplug.hooks.registry import Technique
from accelplug.hooks.verifying import Choice, PathView, VerifierTraits, VerifyView, residual
from accelplug.testing.building import require

VOCAB, ROWS, NODES, VIEWS = 7, 12, 5, 20


def check_answers(rule: Technique, traits: VerifierTraits) -> None:
    """Hold `accept` and `residual` to shapes and bounds."""
    for view in verify_views(traits):
        answer = rule.instance.accept(view)
        require(isinstance(answer, Tensor) and answer.shape == (ROWS,), f"{rule} answered {_described(answer)}; return a tensor [{ROWS}], one per row")
        outside = [p for p in answer.tolist() if not 0.0 <= p <= 1.0]
        require(not outside, f"{rule} returned the acceptance probability {outside[:1]}; it lies between 0 and 1")
        rest = getattr(rule.instance, "residual", residual)(view)
        require(isinstance(rest, Tensor) and rest.shape == view.target.shape, f"{rule} has the residual {_described(rest)}; return a tensor [n, vocab_size]")
        _require_distribution(rule, "residual", rest, view.target)


def check_rows_alone(rule: Technique, traits: VerifierTraits) -> None:
    """Compare a batch's answers with those of its rows; a deterministic candidate alone has no draft row, in a batch a meaningless one."""
    rest = getattr(rule.instance, "residual", residual)
    for view in verify_views(traits):
        together, left = rule.instance.accept(view), rest(view)
        for i in range(ROWS):
            draft = None if view.draft is None or view.kinds[i] == NodeKind.DELTA else view.draft[i : i + 1]
            row = VerifyView(view.tokens[i : i + 1], view.kinds[i : i + 1], view.target[i : i + 1], view.logits[i : i + 1], draft)
            alone = float(rule.instance.accept(row))
            require(abs(alone - float(together[i])) < 1e-5, f"{rule} gives a candidate {float(together[i]):.6g} in a batch and {alone:.6g} alone")
            off = float((rest(row)[0] - left[i]).abs().max())
            wanted = "look at a candidate's own row, and not at the draft of a DELTA one"
            require(off < 1e-5, f"{rule}: a candidate's residual differs by {off:.3g} in a batch and alone; {wanted}")


def check_own_values(rule: Technique, built: Technique, traits: VerifierTraits, name: str, values: tuple[float, float]) -> bool:
    """Send two values of an option by turns: each candidate is judged as by the rule that is built with its value. Return whether those two differ.

    :param rule: built with the first of `values`.
    :param built: with the second.
    """
    differ, second = False, torch.arange(ROWS) % 2 == 1
    for view in verify_views(traits):
        sent = replace(view, parameters={name: torch.tensor([values[i % 2] for i in range(ROWS)])})
        alone = [_answers(each, view) for each in (rule, built)]
        differ |= not _equal(*alone)
        expected = tuple(two.where(second if two.ndim == 1 else second[:, None], one) for one, two in zip(*alone, strict=True))
        for each in (rule, built):
            require_own_values(each, name, held=_equal(_answers(each, sent), expected))
    return differ


def require_own_values(rule: Technique, name: str, *, held: bool) -> None:
    """Fail where a request's own value did not count as an option of the rule would have."""
    require(held, f"{rule} does not judge a request that sends its own {name} as it does built with that; read view.parameters[{name!r}] per row")


def _answers(rule: Technique, view: VerifyView) -> tuple[Tensor, Tensor]:
    return rule.instance.accept(view), getattr(rule.instance, "residual", residual)(view)


def _equal(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(float((a - b).abs().max()) < 1e-5 for a, b in zip(one, other, strict=True))


def check_unchanged(rule: Technique, traits: VerifierTraits) -> None:
    """Compare the views before and after."""
    is_path = callable(getattr(rule.instance, "choose", None))
    for view in path_views(traits) if is_path else verify_views(traits):
        before = {name: tensor.clone() for name, tensor in _tensors(view)}
        ask(rule, view)
        for name, tensor in _tensors(view):
            require(torch.equal(tensor, before[name]), f"{rule} wrote into view.{name}; work on a copy, the host goes on with it")


def check_choices(rule: Technique, traits: VerifierTraits) -> None:
    """Hold `choose` to paths that lead down and to distributions."""
    for view in path_views(traits):
        choice = ask(rule, view)
        require(isinstance(choice, Choice), f"{rule} chose {_described(choice)}; return an accelplug.hooks.Choice")
        path, at = list(choice.path), ROOT
        for node in path:
            known = 0 <= node < len(view.tokens)
            require(known and view.parents[node] == at, f"{rule} chose the path {path} among parents {list(view.parents)}; lead from the first level down")
            masked = view.target[at + 1, view.tokens[node]] == 0 and view.logits[at + 1, view.tokens[node]] == -torch.inf
            require(not masked, f"{rule} accepted the masked token {view.tokens[node]}; it has the target probability 0")
            at = node
        rest = choice.rest
        require(isinstance(rest, Tensor) and rest.shape == (VOCAB,), f"{rule} left {_described(rest)}; Choice.rest is a tensor [vocab_size]")
        _require_distribution(rule, "Choice.rest", rest[None], view.target[at + 1][None])


def ask(rule: Technique, view: VerifyView | PathView) -> Any:
    """Call the rule's own method."""
    if isinstance(view, PathView):
        return rule.instance.choose(view)
    return _answers(rule, view)[0]


def _require_distribution(rule: Technique, what: str, rows: Tensor, target: Tensor) -> None:
    sums = rows.double().sum(-1)
    require(bool((rows >= 0).all()), f"{rule}: its {what} has the entry {float(rows.min()):.3g}; a probability is at least 0")
    require(bool(((sums - 1).abs() < 1e-4).all()), f"{rule}: its {what} sums to {float(sums[(sums - 1).abs().argmax()]):.6g}; make it 1")
    require(not bool((rows[target == 0] > 0).any()), f"{rule}: its {what} gives a probability to a token that the target never takes")


def verify_views(traits: VerifierTraits) -> Iterator[VerifyView]:
    """Yield candidates of the kinds that the rule judges: greedy and sampled rows, with and without masks, at draft probabilities far apart."""
    rng = np.random.default_rng(17)
    kinds = sorted(traits.kinds)
    for _ in range(VIEWS):
        target, logits = zip(*(_target(rng) for _ in range(ROWS)), strict=True)
        draft = rng.dirichlet([0.5] * VOCAB, ROWS)
        tokens = [int(rng.choice(VOCAB, p=row)) for row in draft]
        drawn = rng.choice(kinds, ROWS)
        rows = None if not any(drawn) else torch.from_numpy(draft).float()
        yield VerifyView(torch.tensor(tokens), torch.from_numpy(drawn), torch.stack(target), torch.stack(logits), rows)


def path_views(traits: VerifierTraits) -> Iterator[PathView]:
    """Yield trees and chains of 1 to NODES nodes; each node is drawn from its parent's row as its kind says."""
    rng = np.random.default_rng(19)
    kinds = sorted(traits.kinds)
    for number in range(VIEWS):
        size = int(rng.integers(1, NODES + 1))
        chain = number % 2 == 0 or traits.shape == "chain"
        parents = [i - 1 if chain else int(rng.integers(ROOT, i)) for i in range(size)]
        kind = [int(rng.choice(kinds)) for _ in range(1 + size)]  # of the nodes below each node
        rows = rng.dirichlet([0.5] * VOCAB, 1 + size)
        tokens: list[int] = []
        for i, parent in enumerate(parents):
            left = rows[parent + 1].copy()
            if kind[parent + 1] != NodeKind.SAMPLED:
                left[[tokens[j] for j in range(i) if parents[j] == parent]] = 0
            tokens.append(int(left.argmax() if kind[parent + 1] == NodeKind.DELTA else rng.choice(VOCAB, p=left / left.sum())))
        of_node = [kind[parent + 1] for parent in parents]
        row_ids = [-1 if drawn == NodeKind.DELTA else parent + 1 for drawn, parent in zip(of_node, parents, strict=True)]
        target, logits = zip(*(_target(rng) for _ in range(1 + size)), strict=True)
        yield PathView(
            tokens, parents, of_node, torch.stack(target), torch.stack(logits), _below(rng), torch.from_numpy(rows).float(), row_ids
        )  # fmt: skip


def _target(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return one row of probabilities with the scores behind it, [VOCAB] both: masked in half the cases, one-hot in a third."""
    scores = torch.from_numpy(rng.normal(size=VOCAB) * 2).float()
    if rng.random() < 0.5:
        scores[rng.permutation(VOCAB)[:3]] = -torch.inf
    if rng.random() < 1 / 3:
        return torch.zeros(VOCAB).index_fill_(0, scores.argmax(), 1.0), scores
    return scores.softmax(-1), scores


def _below(rng: np.random.Generator) -> Any:
    def below(probability: float) -> bool:
        require(0.0 <= float(probability) <= 1.0, f"view.below was asked for {float(probability)}; a probability lies between 0 and 1")
        return bool(rng.random() < probability)

    return below


def _tensors(view: VerifyView | PathView) -> list[tuple[str, Tensor]]:
    return [(name, value) for name in type(view).__slots__ if isinstance(value := getattr(view, name), Tensor)]


def _described(answer: object) -> str:
    return f"a tensor {list(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
