"""A target and drafts given by tables, verified by the Transformers host's own walk: every outcome with its exact probability.

A test of a rule by samples needs thousands of them to see an error of a per cent. On a vocabulary of three tokens all
outcomes can be listed instead, and a right rule differs from the target's distribution by rounding only.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList

from accelplug.hooks.discovery import load_registry
from accelplug.hooks.registry import Technique
from accelplug.hosts.hf.request import Requests
from accelplug.hosts.hf.tree import EMPTY, Tree
from accelplug.hosts.hf.verify import Chance, Walk

VOCAB: Final = 3
TOKENS: Final = 3
"""How many tokens an outcome has."""

Context = tuple[int, ...]
Table = Callable[[Context], Tensor]
"""Context -> distribution of the next token, [VOCAB]."""
Draft = Callable[["Enumeration", Context, int], Tree]
"""(chance, context, depth allowed) -> the drafts after that context."""


def table(seed: int, *, masked: bool = False) -> Table:
    """Return a random distribution for every context, float64 [VOCAB].

    :param masked: one token of each, another one from context to context, is forbidden.
    """

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


def target_joint(target: Table) -> dict[Context, float]:
    """Return the probability of every sequence of TOKENS tokens under the target alone."""
    joint = {}
    for sequence in itertools.product(range(VOCAB), repeat=TOKENS):
        joint[sequence] = float(np.prod([target(sequence[:i])[token] for i, token in enumerate(sequence)]))
    return joint


def decoded_joint(
    target: Table,
    draft: Draft,
    verifier: object,
    processors: LogitsProcessorList | None = None,
    *,
    do_sample: bool = True,
    events: Counter[str] | None = None,
) -> dict[Context, float]:
    """Run the host's own walk over every outcome; return the joint distribution of the first TOKENS tokens.

    :param verifier: a built technique, a name, or an object.
    :param events: counts drafted nodes that were ``accepted`` and ``rejected``, over all runs.
    """
    rule = verifier if isinstance(verifier, Technique) else load_registry(entry_points=False).build("verifier", verifier, None)  # type: ignore[arg-type]

    def run(chance: Enumeration) -> Context:
        # Scores are kept so that greedy decoding asks the rule as well.
        walk = Walk(rule, processors or LogitsProcessorList(), do_sample=do_sample, keep_scores=not do_sample, chance=chance)
        request = Requests(torch.tensor([[VOCAB]]), StoppingCriteriaList(), max_length=1 + TOKENS, pad_token_id=0, on_device=True)
        tree, done = EMPTY, False
        while not done:
            verdict = walk(_logits(target, _context(request), tree)[None], [tree], request)
            done = verdict.done
            if events is not None:
                events.update(accepted=len(verdict.paths[0]), rejected=len(tree) - len(verdict.paths[0]))
            context = _context(request)
            tree = draft(chance, context, TOKENS - len(context) - 1)
        return _context(request)

    return Enumeration().outcomes(run)


def _context(request: Requests) -> Context:
    return tuple(request.tokens[0, 1 : request.length].tolist())


def _logits(target: Table, context: Context, tree: Tree) -> Tensor:
    contexts = [context]
    for node, token in enumerate(tree.tokens):
        parent = node - 1 if tree.parents is None else tree.parents[node]
        contexts.append((*contexts[parent + 1], token))
    return torch.stack([target(c).log() for c in contexts])


def total_variation(one: dict[Any, float], other: dict[Any, float]) -> float:
    """Return half the sum of the differences: 0 for equal distributions, 1 for disjoint ones."""
    return 0.5 * sum(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in {*one, *other})
