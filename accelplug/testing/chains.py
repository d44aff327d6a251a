"""The form of a rule that judges the chains of a whole batch on the device: as `choose` does, and without waiting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from accelplug.hooks.drafting import NodeKind
from accelplug.hooks.registry import Technique
from accelplug.hooks.verifying import ChainsView, VerifierTraits, VerifyView
from accelplug.hosts.choices import choose_on_device, probabilities
from accelplug.hosts.hf.tree import Tree
from accelplug.testing.building import require
from accelplug.testing.enumeration import VOCAB, Context, Draft, Enumeration, Table, logits_of

OURS: Final = 1
"""The request of the batch that is looked at; others stand before and behind it."""


def step_on_device(
    target: Table, draft: Draft, rule: Technique, *, lossless: bool, do_sample: bool = True, parameters: Mapping[str, tuple[float, float]] | None = None
) -> dict[Context, float]:
    """Take one step through every outcome, in a batch with others; return the probability of every text it ends with.

    :param draft: drafts chains.
    :param lossless: what the rule's traits say.
    :param parameters: per-request options, name -> the value that the others send, and the one that ours does.
    """
    return Enumeration().outcomes(lambda chance: _take(chance, target, draft, rule, parameters or {}, lossless=lossless, do_sample=do_sample))


def _take(
    chance: Enumeration, target: Table, draft: Draft, rule: Technique, parameters: Mapping[str, tuple[float, float]], *, lossless: bool, do_sample: bool
) -> Context:
    chain = draft(chance, (), draft.depth)
    chains = [[0, 0], [*chain.tokens, 0], [1]]  # padding behind the first one's draft, and behind ours
    scores = torch.cat([_neighbour(3), logits_of(target, (), chain), _neighbour(1), _neighbour(2)])
    rows = probabilities(scores, greedy=not do_sample)
    begins = torch.tensor([0, 3, 5 + len(chain)])
    view = _view(rows, scores, chains, torch.tensor([1, len(chain), 1]), chain, _below(chance))
    sent = {name: torch.tensor([values[request == OURS] for request in view.requests.tolist()]) for name, values in parameters.items()}
    view = replace(view, drafts=replace(view.drafts, parameters=sent))
    kept, rest, _ = choose_on_device(rule, view, lambda kept: (rows[begins + kept], scores[begins + kept]), lossless=lossless)
    last = chance.draw(rest[OURS][None])[0] if do_sample else int(rest[OURS].argmax())
    return (*chain.tokens[: int(kept[OURS])], last)


def _neighbour(count: int) -> Tensor:
    """Return some rows of scores, [count, VOCAB]."""
    return torch.linspace(0.0, 2.0, count * VOCAB, dtype=torch.float64).view(count, VOCAB)


def _view(
    target: Tensor, scores: Tensor, chains: Sequence[Sequence[int]], counts: Tensor, ours: Tree, below: Callable[[Tensor], Tensor]
) -> ChainsView:
    requests = torch.tensor([request for request, chain in enumerate(chains) for _ in chain])
    places = torch.tensor([place for chain in chains for place in range(len(chain))])
    tokens = torch.tensor([token for chain in chains for token in chain])
    kinds = [ours.kind(node) for node in range(len(ours))]
    kinds = [kinds[0], kinds[0], *kinds, kinds[0], kinds[0]]
    draft = _draft_rows(ours, kinds) if any(kind != NodeKind.DELTA for kind in kinds) else None
    rows = torch.arange(len(tokens)) + requests
    drafts = VerifyView(tokens, torch.tensor(kinds), target[rows], scores[rows], draft)
    return ChainsView(drafts, requests, places, counts, max(map(len, chains)), below)


def _draft_rows(ours: Tree, kinds: Sequence[int]) -> Tensor:
    """Return what every draft of the batch was drawn from; rows of deterministic drafts say nothing, and are no distributions."""
    assert ours.rows is not None
    assert ours.row_ids is not None
    other = torch.full((VOCAB,), 1 / VOCAB, dtype=torch.float64)
    rows = [other, other, *ours.rows[ours.row_ids], other, other]
    return torch.stack([row * (1 + (kind == NodeKind.DELTA)) for row, kind in zip(rows, kinds, strict=True)])


def _below(chance: Enumeration) -> Callable[[Tensor], Tensor]:
    """Return what takes both answers for our request's drafts, one after the other, and one of them for all others."""

    def below(asked: Tensor) -> Tensor:
        found = asked > 0.5
        found[OURS] = torch.tensor([chance.below(probability) is not None for probability in asked[OURS].tolist()])
        return found

    return below


def check_never_waits(rule: Technique, traits: VerifierTraits) -> None:
    """Ask with tensors that have shapes and no values: reading a value, or a shape that depends on one, fails. Nor may it write into them."""
    kind = min(traits.kinds)
    for drawn in {kind != NodeKind.DELTA, max(traits.kinds) != NodeKind.DELTA}:
        with FakeTensorMode(allow_non_fake_inputs=True):
            num_drafts, num_reqs, width = 5, 3, 2
            drafts = VerifyView(
                torch.zeros(num_drafts, dtype=torch.int64), torch.full((num_drafts,), int(max(traits.kinds) if drawn else kind)),
                torch.ones(num_drafts, VOCAB), torch.ones(num_drafts, VOCAB), torch.ones(num_drafts, VOCAB) if drawn else None,
            )  # fmt: skip
            indices = torch.zeros(num_drafts, dtype=torch.int64)
            view = ChainsView(drafts, indices, indices.clone(), torch.ones(num_reqs, dtype=torch.int64), width, lambda asked: asked > 0.5)
            try:
                choice = rule.instance.choose_on_device(view)
            except Exception as exc:
                said = str(exc).partition("\n")[0]
                raise AssertionError(
                    f"{rule} reads values of the device, or has shapes that depend on them ({type(exc).__name__}: {said}); "
                    "use operations of fixed shapes, such as torch.where"
                ) from exc
        shapes = choice.kept.shape, choice.rest.shape
        require(shapes == ((num_reqs,), (num_reqs, VOCAB)), f"{rule} has no fixed shapes without values: {list(map(list, shapes))}")
