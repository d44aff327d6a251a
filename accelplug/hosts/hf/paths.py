"""Rules that judge a request's drafts as a whole: what they are shown, and what becomes of their answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from accelplug._errors import HostError
from accelplug.hooks.drafting import NodeKind
from accelplug.hooks.registry import Technique
from accelplug.hooks.verifying import Choice, PathView
from accelplug.hosts.choices import choose, probabilities
from accelplug.hosts.hf.processors import is_prefix_pure
from accelplug.hosts.hf.request import Requests
from accelplug.hosts.hf.tree import Tree

if TYPE_CHECKING:
    from accelplug.hosts.hf.verify import Verdict, Walk


@dataclass(frozen=True, slots=True)
class Decision:
    """What a rule decided for one row: an accepted path, and the token behind it."""

    logits: Tensor  # [1 + num_nodes, vocab_size] of the model
    scores: Tensor  # [1 + num_nodes, vocab_size] after processors
    path: Sequence[int] = ()
    tokens: Sequence[int] = ()  # one more than nodes in the path; none for a row that is over
    lossy: Collection[int] = ()  # the nodes of the path that a lossless rule would have rejected

    def at(self, step: int) -> tuple[int, int | None]:
        """Return the token of a step of the walk, and the node that it came from."""
        return (self.tokens[step] if step < len(self.tokens) else 0), (self.path[step] if step < len(self.path) else None)


class Paths:
    """Asks a walk's rule for one path per row, all at once, before the walk commits the first token.

    A batch in lockstep commits as many tokens as its shortest path has, and what a row loses is drafted and judged anew.
    A rule that is exact for one row stays exact: no row's tokens depend on where another row ends.
    """

    def __init__(self, walk: Walk) -> None:
        check_processors(walk.rule, walk.processors)
        self.walk = walk

    def decide(self, logits: Tensor, trees: Sequence[Tree], requests: Requests) -> list[Decision]:
        """Judge every row's tree with `logits` [count, 1 + num_nodes, vocab_size]; return one decision per row."""
        return [self._decide(row, logits[row, : 1 + len(tree)], tree, requests) for row, tree in enumerate(trees)]

    def take(
        self, decisions: Sequence[Decision], nodes: Sequence[int], verdict: Verdict, requests: Requests
    ) -> tuple[list[int], list[int | None]]:
        """Return every row's next token and the node it came from; record scores and logits as a walk does."""
        found = [decision.at(verdict.emitted) for decision in decisions]
        verdict.lossy += sum(child in decisions[row].lossy for row, (_, child) in enumerate(found) if not requests.is_over(row))
        if self.walk.logits is not None:
            self.walk.logits.append(torch.stack([decision.logits[node + 1] for decision, node in zip(decisions, nodes, strict=True)]))
        if self.walk.scores is not None:
            self.walk.scores.append(torch.stack([decision.scores[node + 1] for decision, node in zip(decisions, nodes, strict=True)]))
        return [token for token, _ in found], [child for _, child in found]

    def _decide(self, row: int, logits: Tensor, tree: Tree, requests: Requests) -> Decision:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scores = self._process(logits, tree, requests, row) if self.walk.processors else logits
        if requests.is_over(row):
            return Decision(logits, scores)
        target = probabilities(scores, greedy=not self.walk.do_sample)
        choice = self._ask(scores, target, tree, requests.numbers[row]) if len(tree) else Choice((), target[0])
        last = self.walk.chance.draw(choice.rest[None])[0] if self.walk.do_sample else int(choice.rest.argmax())
        return Decision(logits, scores, choice.path, [*(tree.tokens[node] for node in choice.path), last], choice.lossy)

    def _process(self, logits: Tensor, tree: Tree, requests: Requests, row: int) -> Tensor:
        """Run processors on every node's own prefix, all nodes of one depth in a call: their prefixes are equally long."""
        ids = requests.ids()[row]
        prefixes: list[list[int]] = [[]]
        for token, parent in zip(tree.tokens, tree.above, strict=True):
            prefixes.append([*prefixes[parent + 1], token])
        scores = torch.empty_like(logits)
        processors = self.walk.processors_of(requests.numbers[row])
        for depth in range(max(map(len, prefixes)) + 1):
            slots = [slot for slot, prefix in enumerate(prefixes) if len(prefix) == depth]
            drafted = torch.tensor([prefixes[slot] for slot in slots], dtype=ids.dtype, device=ids.device)
            whole = torch.cat([ids.expand(len(slots), -1), drafted.view(len(slots), depth)], 1)
            scores[slots] = processors(whole, logits[slots])  # a copy of the rows: processors may write into it
        return scores

    def _ask(self, scores: Tensor, target: Tensor, tree: Tree, number: int) -> Choice:
        rule, chance = self.walk.rule, self.walk.chance
        view = PathView(
            tokens=tree.tokens,
            parents=tree.above,
            kinds=tree.kinds or [NodeKind.DELTA] * len(tree),
            target=target,
            logits=scores,
            below=lambda probability: chance.below(probability) is not None,
            rows=tree.rows,
            row_ids=tree.row_ids,
            parameters={name: float(values[number]) for name, values in self.walk.parameters.items()},
        )
        return choose(rule, view, lossless=self.walk.lossless)


def check_processors(rule: Technique, processors: Any) -> None:
    """Refuse processors for which it matters that rejected drafts are shown to them.

    :raises HostError: naming the first one.
    """
    for processor in processors or ():
        if not is_prefix_pure(processor):
            raise HostError(
                f"{rule} has processors run on rejected drafts too, and {type(processor).__name__} may remember its calls or look at the "
                "batch; use verifier 'token_wise', or say prefix_pure = True in its class if a row's tokens and scores are all it needs"
            )
