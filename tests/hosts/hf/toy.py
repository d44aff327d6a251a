"""A target and a drafter given by tables, and every outcome of a decoding run with its exact probability."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList

from accelplug.hooks import load_registry
from accelplug.hosts.hf.request import Requests
from accelplug.hosts.hf.tree import EMPTY, Tree
from accelplug.hosts.hf.verify import Chance, Walk

VOCAB, TOKENS = 3, 3
Draft = Callable[["Enumeration", tuple[int, ...], int], Tree]


def table(seed: int) -> Callable[[tuple[int, ...]], Tensor]:
    """Return a random distribution for every context, float64 [VOCAB]."""

    def row(context: tuple[int, ...]) -> Tensor:
        generator = np.random.default_rng([seed, *(token + 1 for token in context)])
        return torch.from_numpy(generator.dirichlet([0.7] * VOCAB))

    return row


class Enumeration(Chance):
    """Takes every outcome of every choice once, and keeps the probability of the run it is in."""

    def __init__(self) -> None:
        self.todo: list[tuple[int, ...]] = [()]

    def outcomes(self, run: Callable[[Enumeration], Any]) -> dict[Any, float]:
        found: dict[Any, float] = {}
        while self.todo:
            self.script, self.taken, self.weight = self.todo.pop(), (), 1.0
            outcome = run(self)
            found[outcome] = found.get(outcome, 0.0) + self.weight
        return found

    def choose(self, probabilities: list[float]) -> int:
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
        return [self.choose(row.tolist()) for row in probabilities]

    def below(self, probability: float, *, always: bool = False) -> float | None:
        if not 0.0 < probability < 1.0:
            return super().below(probability, always=always)
        return 0.0 if self.choose([probability, 1.0 - probability]) == 0 else None


def target_joint(target: Callable[[tuple[int, ...]], Tensor]) -> dict[tuple[int, ...], float]:
    joint = {}
    for sequence in itertools.product(range(VOCAB), repeat=TOKENS):
        joint[sequence] = float(np.prod([target(sequence[:i])[token] for i, token in enumerate(sequence)]))
    return joint


def decoded_joint(
    target: Callable[[tuple[int, ...]], Tensor], draft: Draft, verifier: object, processors: LogitsProcessorList | None = None
) -> dict[tuple[int, ...], float]:
    """Run the host's own walk over every outcome; return the joint distribution of the first TOKENS tokens."""
    rule = load_registry(entry_points=False).build("verifier", verifier, None)

    def run(chance: Enumeration) -> tuple[int, ...]:
        walk = Walk(rule, processors or LogitsProcessorList(), do_sample=True, chance=chance)
        request = Requests(torch.tensor([[VOCAB]]), StoppingCriteriaList(), max_length=1 + TOKENS, pad_token_id=0, on_device=True)
        tree, done = EMPTY, False
        while not done:
            context = tuple(request.tokens[0, 1 : request.length].tolist())
            done = walk(_logits(target, context, tree)[None], [tree], request).done
            context = tuple(request.tokens[0, 1 : request.length].tolist())
            tree = draft(chance, context, TOKENS - len(context) - 1)
        return tuple(request.tokens[0, 1 : 1 + TOKENS].tolist())

    return Enumeration().outcomes(run)


def _logits(target: Callable[[tuple[int, ...]], Tensor], context: tuple[int, ...], tree: Tree) -> Tensor:
    contexts = [context]
    for node, token in enumerate(tree.tokens):
        parent = node - 1 if tree.parents is None else tree.parents[node]
        contexts.append((*contexts[parent + 1], token))
    return torch.stack([target(c).log() for c in contexts])


def total_variation(one: dict[Any, float], other: dict[Any, float]) -> float:
    return 0.5 * sum(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in {*one, *other})
