"""Whether a request's drafts are worth verifying: those that kept going wrong are held back until they would have been right."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

_MEMORY = 0.8  # how much of a rate stays from one guess to the next


@dataclass(slots=True)
class Record:
    """How often one request's guesses came true lately, by what they went by; with what nothing is known of, all is well.

    A guess counts whether it was verified or not, since the token that came tells: holding drafts back costs no knowledge.
    """

    rates: dict[Hashable, float] = field(default_factory=dict)
    guessed: dict[Hashable, set[int]] = field(default_factory=dict)  # in the last step: what they went by -> next tokens

    def guess(self, by: Hashable, tokens: set[int]) -> float:
        """Note the tokens that may come next; return how often such guesses held one that came, 0 to 1."""
        self.guessed[by] = tokens
        return self.rates.get(by, 1.0)

    def learn(self, came: int) -> None:
        """Judge what was guessed by the token that came next."""
        for by, tokens in self.guessed.items():
            self.rates[by] = _MEMORY * self.rates.get(by, 1.0) + (1 - _MEMORY) * (came in tokens)
        self.guessed.clear()
