"""How a request's drafts fared: what keeps going wrong is held back until it would have been right, and what breaks off early is cut."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from accelplug.hooks.drafting import ROOT

_MEMORY = 0.8  # how much of a rate stays from one guess to the next
_RUNS_MEMORY = 0.9  # the same of how far guesses went
_LONG_RUN = 60  # tokens that a guess is presumed to be right for at first
Guess = tuple[Sequence[int], Sequence[int]]
"""Tokens and parents."""


@dataclass(slots=True)
class Record:
    """How often one request's guesses came true lately, by what they went by, and how far; with what nothing is known of, all is well.

    A guess counts whether it was verified or not, since the tokens that came tell: holding drafts back costs no knowledge.
    """

    rates: dict[Hashable, float] = field(default_factory=dict)
    guessed: dict[Hashable, Guess] = field(default_factory=dict)  # in the last step: what they went by -> the nodes
    right: float = 0.0  # tokens of recent guesses that came
    broken: float = 0.0  # recent guesses that began right and were ended by another token

    def guess(self, by: Hashable, guess: Guess) -> float:
        """Note what may come next; return how often such guesses held the first token that came, 0 to 1."""
        self.guessed[by] = guess
        return self.rates.get(by, 1.0)

    @property
    def goes_on(self) -> float:
        """How likely a guess that was right so far is right about the next token, too."""
        return (self.right + _LONG_RUN) / (self.right + self.broken + _LONG_RUN + 1)

    def learn(self, came: Sequence[int]) -> None:
        """Judge what was guessed by the tokens that came next."""
        for by, guess in self.guessed.items():
            right, is_broken = followed(guess, came)
            self.rates[by] = _MEMORY * self.rates.get(by, 1.0) + (1 - _MEMORY) * (right > 0)
            if right:
                self.right = _RUNS_MEMORY * self.right + right
                self.broken = _RUNS_MEMORY * self.broken + is_broken
        self.guessed.clear()


def followed(guess: Guess, came: Sequence[int]) -> tuple[int, bool]:
    """Return how many of the tokens that came the guess held, one behind the other, and whether another one than it held came then."""
    tokens, parents = guess
    nodes = {(parent, token): node for node, (token, parent) in enumerate(zip(tokens, parents, strict=True))}
    node, right = ROOT, 0
    for token in came:
        if (below := nodes.get((node, token))) is None:
            return right, node in set(parents)
        node, right = below, right + 1
    return right, False
