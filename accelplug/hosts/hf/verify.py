"""The walk from the last committed token down the accepted path, one token at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from accelplug.hooks.capabilities import verifier_traits
from accelplug.hooks.drafting import ROOT, NodeKind
from accelplug.hooks.registry import Technique
from accelplug.hooks.verifying import VerifyView, residual
from accelplug.hosts.hf.request import Request
from accelplug.hosts.hf.tree import Tree


@dataclass(slots=True)
class Verdict:
    """What one step decided: the tokens that were appended, and the draft nodes that some of them came from."""

    emitted: int = 0
    path: list[int] = field(default_factory=list)
    lossy: int = 0
    done: bool = False

    def add(self, child: int | None, *, done: bool) -> bool:
        """Count one committed token and the draft node it came from; return whether the walk ends."""
        self.emitted += 1
        self.done = done
        if child is not None:
            self.path.append(child)
        return done or child is None


class Chance:
    """Where the walk's random numbers come from: torch's default generator, as in plain ``generate()``."""

    def draw(self, probabilities: Tensor) -> int:
        """Draw one token from a row [1, vocab_size]."""
        return int(torch.multinomial(probabilities, num_samples=1))

    def below(self, probability: float) -> float | None:
        """Draw a uniform number and return it if it lies below `probability`; certain cases draw nothing."""
        if not 0.0 < probability < 1.0:
            return 0.0 if probability >= 1.0 else None
        uniform = float(torch.rand(()))
        return uniform if uniform < probability else None


class Walk:
    """Decides tokens one by one and appends them to the request until a draft fails or the request stops.

    Processors are stepped once per committed token and in order, never on a rejected prefix, so stateful ones work.
    """

    def __init__(
        self,
        rule: Technique,
        processors: Any,
        *,
        do_sample: bool,
        keep_scores: bool = False,
        keep_logits: bool = False,
        chance: Chance | None = None,
    ) -> None:
        self.rule, self.traits = rule, verifier_traits(rule)
        self.processors = processors
        self.do_sample = do_sample
        self.chance = chance or Chance()
        self.scores: list[Tensor] | None = [] if keep_scores else None
        self.logits: list[Tensor] | None = [] if keep_logits else None
        self.lossless = self.traits.lossless is not None
        self.own_residual = getattr(rule.instance, "residual", residual)
        self.plain = not processors and not do_sample and self.lossless and not keep_scores and not keep_logits

    def __call__(self, logits: Tensor, tree: Tree, request: Request) -> Verdict:
        """Verify `tree` with `logits` [1 + num_nodes, vocab_size] and append what follows to the request."""
        if self.plain:
            return self._argmax_walk(logits, tree, request)
        verdict, node = Verdict(), ROOT
        while True:
            scores = self._process(logits[node + 1 : node + 2], request)
            token, child = self._decide(scores, tree, tree.children_of(node), verdict)
            if verdict.add(child, done=request.append(token, self.scores)) or child is None:
                return verdict
            node = child

    def _argmax_walk(self, logits: Tensor, tree: Tree, request: Request) -> Verdict:
        best, verdict, node = logits.argmax(-1).tolist(), Verdict(), ROOT
        while True:
            token = best[node + 1]
            child = next((c for c in tree.children_of(node) if tree.tokens[c] == token), None)
            if verdict.add(child, done=request.append(token, None)) or child is None:
                return verdict
            node = child

    def _process(self, row: Tensor, request: Request) -> Tensor:
        # [1, vocab_size], a copy since processors may write into it
        row = row.to(dtype=torch.promote_types(row.dtype, torch.float32), copy=True)
        if self.logits is not None:
            self.logits.append(row.clone())
        scores: Tensor = self.processors(request.ids(), row)
        if self.scores is not None:
            self.scores.append(scores)
        return scores

    def _decide(self, scores: Tensor, tree: Tree, children: Any, verdict: Verdict) -> tuple[int, int | None]:
        """Return the next token and the draft node it came from, if any."""
        if self.lossless and all(tree.kind(child) == NodeKind.DELTA for child in children):
            # Drawing as plain decoding does and looking whether it was drafted is the rule for point masses, and it
            # takes the same random numbers as plain decoding.
            token = self.chance.draw(scores.softmax(-1)) if self.do_sample else int(scores.argmax())
            return token, next((child for child in children if tree.tokens[child] == token), None)
        return self._judge(scores, tree, children, verdict)

    def _judge(self, scores: Tensor, tree: Tree, children: Any, verdict: Verdict) -> tuple[int, int | None]:
        """Judge siblings in drawing order (recursive rejection sampling, arXiv 2402.14160, section 3)."""
        target = scores.softmax(-1)
        if not self.do_sample:
            target = torch.zeros_like(target).scatter_(1, scores.argmax(-1, keepdim=True), 1.0)
        rows: dict[int, Tensor] = {}  # what the earlier siblings left of each draft row
        for child in children:
            view = self._view(scores, target, tree, child, rows)
            token = tree.tokens[child]
            probability = 0.0 if scores[0, token] == -torch.inf else self._ask(view)
            if (uniform := self.chance.below(probability)) is not None:
                verdict.lossy += uniform >= float(view.target_at_tokens() / view.draft_at_tokens())
                return token, child
            target = self._rest(view)
            if tree.kind(child) == NodeKind.WITHOUT_REPLACEMENT and tree.row_ids is not None:
                rows[tree.row_ids[child]] = _without(view)
        return (self.chance.draw(target) if self.do_sample else int(target.argmax())), None

    def _view(self, scores: Tensor, target: Tensor, tree: Tree, child: int, rows: dict[int, Tensor]) -> VerifyView:
        draft = None
        if tree.kind(child) != NodeKind.DELTA and tree.rows is not None and tree.row_ids is not None:
            row = tree.row_ids[child]
            draft = rows.get(row, tree.rows[row : row + 1].to(target))
        tokens = torch.tensor([tree.tokens[child]], device=scores.device)
        kinds = torch.tensor([tree.kind(child)], device=scores.device)
        return VerifyView(tokens, kinds, target, scores, draft)

    def _ask(self, view: VerifyView) -> float:
        try:
            return float(self.rule.instance.accept(view))
        except Exception as exc:
            self.rule.blame(exc)
            raise

    def _rest(self, view: VerifyView) -> Tensor:
        try:
            rest: Tensor = self.own_residual(view)
        except Exception as exc:
            self.rule.blame(exc)
            raise
        return rest


def _without(view: VerifyView) -> Tensor:
    """Return the draft row without the candidate, renormalised; a row with nothing left stays as it was."""
    assert view.draft is not None
    left = view.draft.scatter(1, view.tokens.unsqueeze(1), 0.0)
    total = left.sum(-1, keepdim=True)
    return (left / total).where(total > 0, view.draft)
