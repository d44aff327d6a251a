"""Atoms about numbers, put together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from accelplug.constrained.schema.atoms import Atom, Bound, Fractional, Integer, Multiple


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
        bounds = [atom for atom in branch if isinstance(atom, Bound)]
        low = max((bound for bound in bounds if bound.lower), key=lambda bound: (bound.value, bound.exclusive), default=None)
        high = min((bound for bound in bounds if not bound.lower), key=lambda bound: (bound.value, not bound.exclusive), default=None)
        steps = tuple(dict.fromkeys(atom.step for atom in branch if isinstance(atom, Multiple)))
        fractional = any(isinstance(atom, Fractional) for atom in branch)
        return cls(any(isinstance(atom, Integer) for atom in branch), low, high, steps, fractional)

    @property
    def is_empty(self) -> bool:
        """Whether certainly no number is left: between the bounds, among the multiples, of the integers or of the others."""
        step = self._step
        if self.fractional and step is not None and step.denominator == 1:
            return True
        if self.low is None or self.high is None:
            return False
        low, high = Fraction(str(self.low.value)), Fraction(str(self.high.value))
        if step is not None:
            first = math.ceil(low / step) + (self.low.exclusive and low % step == 0)
            last = math.floor(high / step) - (self.high.exclusive and high % step == 0)
            return first > last
        return low > high or (low == high and (self.low.exclusive or self.high.exclusive))

    @property
    def _step(self) -> Fraction | None:
        """The least common multiple of all steps, integers being the multiples of 1; None for anything."""
        fractions = [Fraction(str(step)) for step in self.steps] + ([Fraction(1)] if self.integer else [])
        if not fractions:
            return None
        below = math.lcm(*(one.denominator for one in fractions))
        return Fraction(math.lcm(*(int(one * below) for one in fractions)), below)

    @property
    def step(self) -> int | float | None:
        """What the numbers are multiples of, in an integer's or a float's form; None for anything."""
        found = self._step
        return None if found is None else int(found) if found.denominator == 1 else float(found)

    def divided(self) -> tuple[Numbers, Numbers]:
        """Return the absolute values of the numbers below 0, and the numbers from 0 on."""
        below = [Bound(-bound.value, not bound.lower, bound.exclusive) for bound in (self.low, self.high) if bound is not None]
        above = [bound for bound in (self.low, self.high) if bound is not None]
        zero = Bound(0, lower=True, exclusive=False)
        rest: list[Atom] = [*map(Multiple, self.steps), *([Integer()] if self.integer else [])]
        return Numbers.of((*rest, *below, replace(zero, exclusive=True))), Numbers.of((*rest, *above, zero))

    def spelled(self) -> Iterator[Numbers]:
        """Split multiples of a fraction by how many digits stand behind the point: 0.50 and 0.5 are one number, and both may be written."""
        for digits in range(len(repr(self.step).partition(".")[2]) + 1):
            found = replace(self, steps=(*self.steps, Fraction(1, 10**digits)))
            if not found.is_empty:
                yield found
