"""The walk from the last committed tokens down the accepted paths, one token at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from accelplug._errors import PluginError
from accelplug.hooks.capabilities import judges_paths, verifier_traits
from accelplug.hooks.drafting import ROOT, NodeKind
from accelplug.hooks.registry import Technique
from accelplug.hooks.verifying import VerifyView, residual, without
from accelplug.hosts.choices import check_distribution, left_by, probabilities
from accelplug.hosts.hf.device import upload
from accelplug.hosts.hf.paths import Paths
from accelplug.hosts.hf.processors import of_row
from accelplug.hosts.hf.request import Requests
from accelplug.hosts.hf.tree import Tree


@dataclass(slots=True)
class Verdict:
    """What one step decided: how many tokens every row gained, and the draft nodes that they came from."""

    paths: list[list[int]]
    emitted: int = 0
    lossy: int = 0
    done: bool = False

    def add(self, children: Sequence[int | None], *, done: bool) -> bool:
        """Count one committed token per row and the nodes they came from; return whether the walk ends."""
        self.emitted += 1
        self.done = done
        for path, child in zip(self.paths, children, strict=True):
            if child is not None:
                path.append(child)
        return done or None in children


def likeliest(logits: Tensor) -> list[list[int]]:
    """Return every position's best token, the first where several are equal, [rows, width] of [rows, width, vocab_size].

    On CPUs torch's argmax takes four times as long in bfloat16 as its maximum does, which knows the place too: as long as a twentieth of a small model's step.
    """
    best: list[list[int]] = logits.max(-1).indices.tolist()
    return best


class Chance:
    """Where the walk's random numbers come from: torch's default generator, as in plain ``generate()``."""

    def draw(self, probabilities: Tensor) -> list[int]:
        """Draw one token from each row, [n, vocab_size]."""
        tokens: list[int] = torch.multinomial(probabilities, num_samples=1).squeeze(1).tolist()
        return tokens

    def below(self, probability: float, *, always: bool = False) -> float | None:
        """Draw a uniform number and return it if it lies below `probability`.

        Certain cases draw nothing, unless the number itself is wanted `always`.
        """
        if not 0.0 < probability < 1.0 and not always:
            return 0.0 if probability >= 1.0 else None
        uniform = float(torch.rand(()))
        return uniform if uniform < probability else None


class Walk:
    """Decides one token per row after the other, until a row's drafts fail or run out, or every row has stopped.

    All rows take a step down their trees together. So processors see whole batches, once per committed token and in
    order, exactly as in plain ``generate()``: stateful ones work, and so do those that look at the row's number.
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
        parameters: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> None:
        self.rule, self.traits = rule, verifier_traits(rule)
        self.processors = processors
        self._of_rows: dict[int, Any] = {}
        self.do_sample = do_sample
        self.parameters = {name: torch.from_numpy(values) for name, values in (parameters or {}).items()}  # name -> [rows of the call]
        self.chance = chance or Chance()
        self.scores: list[Tensor] | None = [] if keep_scores else None
        self.logits: list[Tensor] | None = [] if keep_logits else None
        self.lossless = self.traits.lossless is not None
        self.own_residual = getattr(rule.instance, "residual", residual)
        self.paths = Paths(self) if judges_paths(rule) else None
        self.plain = not processors and not do_sample and self.lossless and not keep_scores and not keep_logits and self.paths is None

    def __call__(self, logits: Tensor, trees: Sequence[Tree], requests: Requests) -> Verdict:
        """Verify the rows' trees with `logits` [count, 1 + num_nodes, vocab_size] and commit what follows."""
        return self._down(logits, likeliest(logits) if self.plain else None, trees, requests)

    def apart(self, logits: Tensor, trees: Sequence[Tree], rows: Sequence[Requests]) -> list[Verdict]:
        """Verify every row as a batch of its own, so that none waits for another."""
        if not self.plain:
            return [self(logits[i : i + 1], trees[i : i + 1], row) for i, row in enumerate(rows)]
        best = likeliest(logits)  # the only wait for the device
        return [self._down(logits[i : i + 1], best[i : i + 1], trees[i : i + 1], row) for i, row in enumerate(rows)]

    def processors_of(self, row: int) -> Any:
        """Return the processors as they are for one row of the call."""
        if row not in self._of_rows:
            self._of_rows[row] = of_row(self.processors, row)
        return self._of_rows[row]

    def _down(self, logits: Tensor, best: list[list[int]] | None, trees: Sequence[Tree], requests: Requests) -> Verdict:
        verdict = Verdict([[] for _ in trees])
        nodes: list[int] = [ROOT] * len(trees)
        decisions = None if self.paths is None else self.paths.decide(logits, trees, requests)
        while True:
            if self.paths is not None and decisions is not None:
                tokens, children = self.paths.take(decisions, nodes, verdict, requests)
            elif best is not None:
                tokens = [row[node + 1] for row, node in zip(best, nodes, strict=True)]
                children = [tree.follow(node, token) for tree, node, token in zip(trees, nodes, tokens, strict=True)]
            else:
                tokens, children = self._decide(self._process(logits, nodes, requests), trees, nodes, verdict, requests)
            if requests.num_over:
                children = [self._keep_pace(row, nodes, trees, requests, child) for row, child in enumerate(children)]
            if verdict.add(children, done=requests.append(tokens, self.scores)):
                return verdict
            nodes = [node for node in children if node is not None]

    def _keep_pace(self, row: int, nodes: list[int], trees: Sequence[Tree], requests: Requests, child: int | None) -> int | None:
        """Let a row that is padding follow its padding drafts, so that it holds up nobody."""
        return trees[row].follow(nodes[row], requests.pad_token_id) if requests.is_over(row) else child

    def _process(self, logits: Tensor, nodes: list[int], requests: Requests) -> Tensor:
        if len(nodes) == 1:
            rows = logits[:, nodes[0] + 1]
        else:
            rows = logits[torch.arange(len(nodes), device=logits.device), upload(nodes, logits.device) + 1]
        # [count, vocab_size], a copy: processors may write into it
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32), copy=len(nodes) == 1)
        if self.logits is not None:
            self.logits.append(rows.clone())
        processors = self.processors if requests.count > 1 else self.processors_of(requests.numbers[0])
        scores: Tensor = processors(requests.ids(), rows)
        if self.scores is not None:
            self.scores.append(scores)
        return scores

    def _decide(
        self, scores: Tensor, trees: Sequence[Tree], nodes: list[int], verdict: Verdict, requests: Requests
    ) -> tuple[list[int], list[int | None]]:
        """Return every row's next token and the draft node it came from, if any."""
        if self.lossless and all(tree.kinds is None for tree in trees):
            # Drawing as plain decoding does and looking whether it was drafted is the rule for point masses, and it
            # takes the same random numbers as plain decoding.
            tokens = self.chance.draw(scores.softmax(-1)) if self.do_sample else scores.argmax(-1).tolist()
            return tokens, [tree.follow(node, token) for tree, node, token in zip(trees, nodes, tokens, strict=True)]
        judged = [
            self._judge(scores[row : row + 1], tree, nodes[row], verdict, self._parameters(requests.numbers[row]))
            for row, tree in enumerate(trees)
        ]
        return [token for token, _ in judged], [child for _, child in judged]

    def _parameters(self, number: int) -> dict[str, Tensor]:
        """Return what a row of the call sets of the rule's options, name -> [1]."""
        return {name: values[number : number + 1] for name, values in self.parameters.items()}

    def _judge(
        self, scores: Tensor, tree: Tree, node: int, verdict: Verdict, parameters: Mapping[str, Tensor]
    ) -> tuple[int, int | None]:
        """Judge siblings in drawing order (recursive rejection sampling, arXiv 2402.14160, section 3)."""
        target = probabilities(scores, greedy=not self.do_sample)
        rows: dict[int, Tensor] = {}  # what the earlier siblings left of each draft row
        for child in tree.children_of(node):
            view = self._view(scores, target, tree, child, rows, parameters)
            token = tree.tokens[child]
            probability = 0.0 if scores[0, token] == -torch.inf else self._ask(view)
            if (uniform := self.chance.below(probability, always=not self.lossless)) is not None:
                verdict.lossy += uniform >= float(view.target_at_tokens() / view.draft_at_tokens())
                return token, child
            target = self._left(view)
            if tree.kind(child) == NodeKind.WITHOUT_REPLACEMENT and tree.row_ids is not None:
                assert view.draft is not None
                rows[tree.row_ids[child]] = without(view.draft, view.tokens)
        return (self.chance.draw(target)[0] if self.do_sample else int(target.argmax())), None

    def _view(
        self, scores: Tensor, target: Tensor, tree: Tree, child: int, rows: dict[int, Tensor], parameters: Mapping[str, Tensor]
    ) -> VerifyView:
        draft = None
        if tree.kind(child) != NodeKind.DELTA and tree.rows is not None and tree.row_ids is not None:
            row = tree.row_ids[child]
            draft = rows.get(row, tree.rows[row : row + 1].to(target))
        tokens = upload([tree.tokens[child]], scores.device)
        kinds = upload([int(tree.kind(child))], scores.device)
        return VerifyView(tokens, kinds, target, scores, draft, {name: value.to(scores.device) for name, value in parameters.items()})

    def _left(self, view: VerifyView) -> Tensor:
        """Return what the rejection of one candidate leaves, [1, vocab_size]."""
        left = left_by(self.rule, self.own_residual, view)
        if self.own_residual is not residual and left.device.type == "cpu":
            check_distribution(self.rule, "residual", left)
        return left

    def _ask(self, view: VerifyView) -> float:
        probability = self.rule.call(lambda shown: float(self.rule.instance.accept(shown)), view)
        if not 0.0 <= probability <= 1.0:
            raise PluginError(f"{self.rule} returned the acceptance probability {probability}; it lies between 0 and 1")
        return probability
