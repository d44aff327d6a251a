"""Atoms about numbers, put together."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
        """Whether the interval certainly has no number, or no integer where integers are meant."""
        if self.integer and self.fractional:
            return True
        if self.low is None or self.high is None:
            return False
        low, high = self.low.value, self.high.value
        if self.integer:
            low = math.floor(low) + 1 if self.low.exclusive else math.ceil(low)
            high = math.ceil(high) - 1 if self.high.exclusive else math.floor(high)
            return bool(low > high)
        return bool(low > high) or (low == high and (self.low.exclusive or self.high.exclusive))

    @property
    def step(self) -> Any:
        """What the numbers are multiples of, None for anything: the least common multiple of all steps."""
        fractions = [Fraction(str(step)) for step in self.steps]
        if not fractions:
            return None
        below = math.lcm(*(one.denominator for one in fractions))
        found = Fraction(math.lcm(*(int(one * below) for one in fractions)), below)
        return int(found) if found.denominator == 1 else float(found)

    def divided(self, point: int) -> tuple[Numbers, Numbers]:
        """Return the numbers below a point, and those from it on."""
        here: list[Atom] = [bound for bound in (self.low, self.high) if bound is not None]
        here += [Multiple(step) for step in self.steps] + ([Integer()] if self.integer else [])
        return Numbers.of((*here, Bound(point, lower=False, exclusive=True))), Numbers.of(
            (*here, Bound(point, lower=True, exclusive=False))
        )
