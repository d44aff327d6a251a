"""What a host's steps take, by their width: the clock of techniques, which read none themselves."""

from __future__ import annotations

from collections import deque

_RECENT = 8  # steps that count
_ENOUGH = 2  # steps before they are told: the first one of a width is slow


class StepCosts:
    """Seconds per step by the number of positions verified. Most sessions never ask, so figures wait until somebody does."""

    def __init__(self) -> None:
        self.latest: dict[int, deque[float]] = {}
        self._seconds: dict[int, float] = {}
        self._changed: set[int] = set()

    def add(self, width: int, seconds: float) -> None:
        """Count one step."""
        if (latest := self.latest.get(width)) is None:
            latest = self.latest[width] = deque(maxlen=_RECENT)
        latest.append(seconds)
        self._changed.add(width)

    @property
    def seconds(self) -> dict[int, float]:
        """Width -> the least of the latest steps, of every width that has enough of them: whatever else runs on the machine only adds."""
        for width in self._changed:
            if len(self.latest[width]) >= _ENOUGH:
                self._seconds[width] = min(self.latest[width])
        self._changed.clear()
        return self._seconds
