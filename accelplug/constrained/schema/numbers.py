"""Atoms about numbers, put together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

from accelplug.constrained.regex.decimals import FRACTIONAL, INTEGER, NUMBER, integers_up_to, multiples, up_to
from accelplug.constrained.regex.tree import EVERY, NOTHING, Regex, both, without
from accelplug.constrained.schema.atoms import Atom, Bound, Fractional, Integer, Multiple

MOST_SIZE: Final = 10.0**100


@dataclass(frozen=True, slots=True)
class Numbers:
    """An interval of numbers or integers, and what they are multiples of."""

    integer: bool
    low: Bound | None
    high: Bound | None
    steps: tuple[Any, ...]
    fractional: bool = False

    @classmethod
    def of(cls, branch: tuple[Atom, ...]) -> Numbers:
        """Put the atoms of one branch together."""
        bounds = [bound for atom in branch if isinstance(atom, Bound) for bound in _reached(atom)]
        low = max((bound for bound in bounds if bound.lower), key=lambda bound: (bound.value, bound.exclusive), default=None)
        high = min((bound for bound in bounds if not bound.lower), key=lambda bound: (bound.value, not bound.exclusive), default=None)
        steps = tuple(dict.fromkeys(atom.step for atom in branch if isinstance(atom, Multiple)))
        fractional = any(isinstance(atom, Fractional) for atom in branch)
        return cls(any(isinstance(atom, Integer) for atom in branch), low, high, steps, fractional)

    @property
    def is_empty(self) -> bool:
        """Whether certainly no number is left: between the bounds, among the multiples, of the integers or of the others."""
        if self.fractional and self.step is not None and self.step.denominator == 1:
            return True
        if self.low is None or self.high is None:
            return False
        if self.step is not None:
            return _count(self.low, self.step) > _count(self.high, self.step)
        low, high = _exact(self.low), _exact(self.high)
        return low > high or (low == high and (self.low.exclusive or self.high.exclusive))

    @property
    def step(self) -> Fraction | None:
        """The least common multiple of all steps, integers being the multiples of 1; None for anything."""
        fractions = [Fraction(str(step)) for step in self.steps] + ([Fraction(1)] if self.integer else [])
        if not fractions:
            return None
        below = math.lcm(*(one.denominator for one in fractions))
        return Fraction(math.lcm(*(int(one * below) for one in fractions)), below)

    def whole(self, step: int) -> tuple[int | None, int | None]:
        """Return the least and the greatest multiple of a whole step within the bounds, None where there is no bound."""
        ends = (None if bound is None else _count(bound, Fraction(step)) * step for bound in (self.low, self.high))
        low, high = ends
        return low, high

    def mirrored(self) -> Numbers:
        """Return the same numbers with the other sign."""
        low, high = (None if one is None else Bound(-one.value, not one.lower, one.exclusive) for one in (self.high, self.low))
        return replace(self, low=low, high=high)

    @property
    def magnitudes(self) -> Regex | None:
        """The numbers from 0 on as an expression, None where multiples of the step have none."""
        if self.high is not None and (self.high.value < 0 or (self.high.value == 0 and self.high.exclusive)):
            return NOTHING
        if self.integer and not self.steps:
            return _integers(*self.whole(1))
        stepped = None if not self.steps or self.step is None else multiples(self.step)
        if self.steps and stepped is None:
            return None
        shape = INTEGER if self.integer else FRACTIONAL if self.fractional else NUMBER
        high = EVERY if self.high is None else up_to(self.high.value, exclusive=self.high.exclusive)
        low = NOTHING if self.low is None or self.low.value < 0 else up_to(self.low.value, exclusive=not self.low.exclusive)
        return both(shape, stepped or EVERY, high, without(low))


def _integers(low: int | None, high: int | None) -> Regex:
    """Return the integers between two bounds, those from 0 on."""
    found = INTEGER if high is None else integers_up_to(high) if high >= 0 else NOTHING
    return found if low is None or low <= 0 else both(found, without(integers_up_to(low - 1)))


def _reached(bound: Bound) -> Iterator[Bound]:
    """Leave a bound out, or round it, that expressions over digits would take hundreds of digits for: more is allowed then."""
    size, negative = abs(bound.value), bound.value < 0
    if size == 0 or 1 / MOST_SIZE <= size <= MOST_SIZE:
        yield bound
    elif size > 1:
        if bound.lower != negative:
            yield replace(bound, value=MOST_SIZE if bound.lower else -MOST_SIZE)
    elif bound.lower != negative:
        yield Bound(0, bound.lower, exclusive=True)
    else:
        yield replace(bound, value=1 / MOST_SIZE if not negative else -1 / MOST_SIZE)


def _exact(bound: Bound) -> Fraction:
    return Fraction(str(bound.value))


def _count(bound: Bound, step: Fraction) -> int:
    """Return how many steps the first multiple within a bound is away from 0."""
    value = _exact(bound)
    on_it = bound.exclusive and value % step == 0
    return math.ceil(value / step) + on_it if bound.lower else math.floor(value / step) - on_it
