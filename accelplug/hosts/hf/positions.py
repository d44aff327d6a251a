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

    def leads_to(self, tokens: list[int]) -> bool:
        """Whether `tokens` begin with the text that it stands behind."""
        length = len(self.tokens)
        # The last token first: it tells most texts apart, and nothing is copied for it.
        return self.tokens[-1:] == tokens[length - 1 : length] and self.tokens == tokens[:length]

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
        behind = max((position for position in self.kept if position.leads_to(tokens)), key=lambda found: len(found.tokens), default=None)
        if behind is not None and len(tokens) - len(behind.tokens) <= _NEAR:  # as nearly always: a row is asked about its next tokens
            return behind.move(tokens)
        nearest, shared = None, -1
        for position in self.kept:
            if (found := _shared(position.tokens, tokens)) > shared:
                nearest, shared = position, found
        if nearest is None or (len(tokens) - shared > _NEAR and len(self.kept) < _MOST):
            nearest = Position(self.compiled.matcher())
            self.kept.append(nearest)
        return nearest.move(tokens)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts begin with alike, by comparing ever larger slices, then ever smaller ones.

    Most texts part early, and that is then seen without looking at the rest of them.
    """
    found, step, most = 0, 16, min(len(one), len(other))
    while found < most and one[found : found + step] == other[found : found + step]:
        found, step = found + step, 2 * step
    while step := step // 2:
        if one[found : found + step] == other[found : found + step]:
            found += step
    return min(found, most)
