"""Matchers of one grammar, set to whatever text is asked for: from the one that stands nearest, so that nothing is read twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from accelplug.hooks.masking import CompiledGrammar, Matcher

_NEAR = 8  # tokens to read for which a matcher is moved rather than a fresh one made
_MOST = 64


@dataclass(slots=True)
class Position:
    """A matcher and the legal text it stands behind.

    :ivar strayed: the text asked for goes on with a token that is illegal here.
    """

    matcher: Matcher
    tokens: list[int] = field(default_factory=list)
    strayed: bool = False

    def move(self, tokens: Sequence[int]) -> Position:
        """Stand behind `tokens`, or behind as many of them as are legal."""
        shared = _shared(self.tokens, tokens)
        if shared < len(self.tokens):
            self.matcher.rollback(len(self.tokens) - shared)
            del self.tokens[shared:]
        fresh = tokens[shared:]
        taken = self.matcher.accept(fresh) if fresh else 0
        self.tokens += fresh[:taken]
        self.strayed = taken < len(fresh)
        return self


class Positions:
    """The matchers of one grammar. Rows need not say which they are: a text finds the matcher that has read most of it."""

    def __init__(self, compiled: CompiledGrammar) -> None:
        self.compiled = compiled
        self.kept: list[Position] = []

    def at(self, tokens: list[int]) -> Position:
        """Return a matcher behind `tokens`; its position is only good until the next call."""
        nearest, shared = None, -1
        for position in self.kept:
            if (found := _shared(position.tokens, tokens)) > shared:
                nearest, shared = position, found
        if nearest is None or (len(tokens) - shared > _NEAR and len(self.kept) < _MOST):
            nearest = Position(self.compiled.matcher())
            self.kept.append(nearest)
        return nearest.move(tokens)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts begin with alike, by comparing ever smaller slices."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
