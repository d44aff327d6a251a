"""What a host's steps take, by their width: the clock of techniques, which read none themselves."""

from __future__ import annotations

from collections import deque
from statistics import median

_RECENT = 5  # steps that count
_ENOUGH = 3  # steps before their median is told: the first ones of a width are slow


class StepCosts:
    """Seconds per step by the number of positions verified.

    :ivar seconds: width -> median of the latest steps.
    """

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        self.latest: dict[int, deque[float]] = {}

    def add(self, width: int, seconds: float) -> None:
        """Count one step."""
        latest = self.latest.setdefault(width, deque(maxlen=_RECENT))
        latest.append(seconds)
        if len(latest) >= _ENOUGH:
            self.seconds[width] = median(latest)
