"""A target and drafts given by tables, verified by the Transformers host's own walk: every outcome with its exact probability.

A test of a rule by samples needs thousands of them to see an error of a per cent. On a vocabulary of three tokens all
outcomes can be listed instead, and a right rule differs from the target's distribution by rounding only.

One step is enumerated, to the full depth of its drafts, and what it leaves open is completed by the target itself: a
later step begins at a context of its own, so a rule that is exact for one step from any context is exact for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList

from accelplug.hooks.discovery import load_registry
from accelplug.hooks.drafting import ROOT, NodeKind
from accelplug.hooks.registry import Technique
from accelplug.hosts.hf.request import Requests
from accelplug.hosts.hf.tree import Tree
from accelplug.hosts.hf.verify import Chance, Walk
from accelplug.testing.building import require

VOCAB: Final = 3

Context = tuple[int, ...]
Table = Callable[[Context], Tensor]
"""Context -> distribution of the next token, [VOCAB]."""


class Draft(Protocol):
    """Draws the drafts of one step."""

    @property
    def depth(self) -> int:
        """How many levels the deepest drafts have."""

    def __call__(self, chance: Any, context: Context, budget: int, /) -> Tree:
        """Draft at most `budget` levels after the context."""


def table(seed: int, *, masked: bool = False) -> Table:
    """Return a random distribution for every context, float64 [VOCAB].

    :param masked: one token of each, another one from context to context, is forbidden.
    """

    @cache
    def row(context: Context) -> Tensor:
        generator = np.random.default_rng([seed, *(token + 1 for token in context)])
        probabilities = generator.dirichlet([0.7] * VOCAB)
        if masked:
            probabilities[generator.integers(VOCAB)] = 0
        return torch.from_numpy(probabilities / probabilities.sum())

    return row


class Enumeration(Chance):
    """Takes every outcome of every choice once, and keeps the probability of the run it is in."""

    def __init__(self) -> None:
        self.todo: list[tuple[int, ...]] = [()]

    def outcomes(self, run: Callable[[Enumeration], Any]) -> dict[Any, float]:
        """Run until no choice is left untried; return the probability of each outcome."""
        found: dict[Any, float] = {}
        while self.todo:
            self.script, self.taken, self.weight = self.todo.pop(), tuple[int, ...](), 1.0
            outcome = run(self)
            found[outcome] = found.get(outcome, 0.0) + self.weight
        return found

    def choose(self, probabilities: list[float]) -> int:
        """Take one of the possible outcomes, and note the others for later runs."""
        possible = [i for i, p in enumerate(probabilities) if p > 0]
        step = len(self.taken)
        if step < len(self.script):
            chosen = self.script[step]
        else:
            chosen = possible[0]
            self.todo += [(*self.taken, other) for other in possible[1:]]
        self.taken += (chosen,)
        self.weight *= probabilities[chosen]
        return chosen

    def draw(self, probabilities: Tensor) -> list[int]:
        """Take one token from each row."""
        return [self.choose(row.tolist()) for row in probabilities]

    def below(self, probability: float, *, always: bool = False) -> float | None:
        """Take both answers, one after the other; certain ones are no choice."""
        if not 0.0 < probability < 1.0:
            return super().below(probability, always=always)
        return 0.0 if self.choose([probability, 1.0 - probability]) == 0 else None


@dataclass
class Judged:
    """What became of the drafts, over all outcomes of any number of steps. Levels count from 1.

    :ivar nodes: (``accepted`` or ``rejected``, level, kind) -> how often; only nodes behind accepted ones are counted.
    :ivar ends: (nodes accepted, levels drafted) -> how often.
    """

    nodes: Counter[tuple[str, int, NodeKind]] = field(default_factory=Counter)
    ends: Counter[tuple[int, int]] = field(default_factory=Counter)

    def count(self, tree: Tree, path: list[int]) -> None:
        """Count one step's accepted path, and the siblings passed over on the way."""
        at = ROOT
        for level, node in enumerate([*path, None], start=1):
            for sibling in tree.children_of(at):
                event = "accepted" if sibling == node else "rejected"
                self.nodes[event, level, NodeKind(tree.kind(sibling))] += 1
                if sibling == node:
                    break
            at = ROOT if node is None else node
        self.ends[len(path), max(tree.depths())] += 1

    def add(self, other: Judged) -> None:
        """Count what another one counted."""
        self.nodes.update(other.nodes)
        self.ends.update(other.ends)


def take_step(  # noqa: PLR0913 - what a step depends on
    chance: Chance,
    target: Table,
    draft: Draft,
    rule: Technique,
    processors: LogitsProcessorList | None = None,
    *,
    context: Context = (),
    do_sample: bool = True,
    judged: Judged | None = None,
    parameters: Mapping[str, float] | None = None,
) -> Context:
    """Draft once after the context and let the host's own walk verify it; return the context and what was emitted."""
    # Scores are kept so that greedy decoding asks the rule as well.
    sent = {name: np.asarray([value]) for name, value in (parameters or {}).items()}
    walk = Walk(rule, processors or LogitsProcessorList(), do_sample=do_sample, keep_scores=not do_sample, chance=chance, parameters=sent)
    prompt = torch.tensor([[VOCAB, *context]])
    request = Requests(prompt, StoppingCriteriaList(), max_length=prompt.shape[1] + draft.depth + 1, pad_token_id=0, on_device=True)
    tree = draft(chance, context, draft.depth)
    verdict = walk(logits_of(target, context, tree)[None], [tree], request)
    if judged is not None:
        judged.count(tree, verdict.paths[0])
    return tuple(request.tokens[0, 1 : request.length].tolist())


def step(
    target: Table,
    draft: Draft,
    verifier: object,
    processors: LogitsProcessorList | None = None,
    *,
    context: Context = (),
    do_sample: bool = True,
    judged: Judged | None = None,
    parameters: Mapping[str, float] | None = None,
) -> dict[Context, float]:
    """Take one step through every outcome; return the probability of every text it ends with, the context included.

    :param verifier: a built technique, a name, or an object.
    :param judged: counts what became of the drafts.
    :param parameters: per-request options that the request sends, name -> value.
    :raises AssertionError: the drafts never were as deep as they say, so their last levels were not put to the test.
    """
    rule = verifier if isinstance(verifier, Technique) else load_registry(entry_points=False).build("verifier", verifier, None)  # type: ignore[arg-type]
    seen = Judged()
    outcomes = Enumeration().outcomes(
        lambda chance: take_step(chance, target, draft, rule, processors, context=context, do_sample=do_sample, judged=seen, parameters=parameters)
    )
    deepest = max(levels for _, levels in seen.ends)
    require(deepest == draft.depth, f"{type(draft).__name__} drafted {deepest} levels where it says {draft.depth}; draft as deep as `depth`, or lower it")
    if judged is not None:
        judged.add(seen)
    return outcomes


def completed(outcomes: dict[Context, float], target: Table, length: int) -> dict[Context, float]:
    """Return the distribution of texts of `length` tokens once plain sampling from the target has gone on with every outcome."""
    joint: dict[Context, float] = {}
    todo = list(outcomes.items())
    while todo:
        text, weight = todo.pop()
        if len(text) == length:
            joint[text] = joint.get(text, 0.0) + weight
        else:
            todo += [((*text, token), weight * p) for token, p in enumerate(target(text).tolist())]
    return joint


def error(target: Table, outcomes: dict[Context, float], context: Context = ()) -> float:
    """Return a step's total variation from the target: of the next tokens' joint distribution, as many as the step emits at most."""
    length = max(map(len, outcomes))
    return total_variation(completed(outcomes, target, length), completed({context: 1.0}, target, length))


def logits_of(target: Table, context: Context, tree: Tree) -> Tensor:
    """Return what the target says after the context and after each node, [1 + num_nodes, VOCAB]."""
    contexts = [context]
    for node, token in enumerate(tree.tokens):
        parent = node - 1 if tree.parents is None else tree.parents[node]
        contexts.append((*contexts[parent + 1], token))
    return torch.stack([target(c) for c in contexts]).log()


def total_variation(one: dict[Any, float], other: dict[Any, float]) -> float:
    """Return half the sum of the differences: 0 for equal distributions, 1 for disjoint ones."""
    return 0.5 * sum(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in {*one, *other})
