"""What a host's steps take, by their width: the clock of techniques, which read none themselves."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

_RECENT = 8  # steps that count
_ENOUGH = 2  # steps before they are told: the first one of a width is slow


class StepCosts:
    """Seconds per step by the number of positions verified, batches of like size apart: 1, 2 to 3, 4 to 7 requests, and so on.

    :param lasts: after how many steps without one of a width what was measured of that is forgotten, or up to twice as many; None for never.
    :ivar latest: of the batches that run now.
    """

    def __init__(self, lasts: int | None = None) -> None:
        self.lasts = lasts
        self._sizes: dict[int, _Table] = {}
        self._now = self._sizes[1] = _Table(lasts)

    def add(self, width: int, seconds: float, requests: int = 1) -> None:
        """Count one step of a batch of so many requests."""
        size = requests.bit_length()
        if (table := self._sizes.get(size)) is None:
            table = self._sizes[size] = _Table(self.lasts)
        table.add(width, seconds)
        self._now = table

    @property
    def latest(self) -> Mapping[int, Sequence[float]]:
        """Width -> the latest steps."""
        return self._now.latest

    @property
    def seconds(self) -> Mapping[int, float]:
        """Width -> the least of the latest steps, of every width that has enough of them: whatever else runs on the machine only adds."""
        return self._now.seconds


class _Table:
    """Batches of one size. Most sessions never ask, so figures wait until somebody does."""

    def __init__(self, lasts: int | None) -> None:
        self.lasts, self._steps, self._seen = lasts, 0, set[int]()
        self.latest: dict[int, deque[float]] = {}
        self._seconds: dict[int, float] = {}
        self._changed: set[int] = set()

    def add(self, width: int, seconds: float) -> None:
        if (latest := self.latest.get(width)) is None:
            latest = self.latest[width] = deque(maxlen=_RECENT)
        latest.append(seconds)
        self._changed.add(width)
        if self.lasts is not None:
            self._forget(width, self.lasts)

    def _forget(self, width: int, lasts: int) -> None:
        self._steps += 1
        self._seen.add(width)
        if self._steps % lasts:
            return
        for old in set(self.latest) - self._seen:
            del self.latest[old]
            self._seconds.pop(old, None)
            self._changed.discard(old)
        self._seen.clear()

    @property
    def seconds(self) -> dict[int, float]:
        for width in self._changed:
            if len(self.latest[width]) >= _ENOUGH:
                self._seconds[width] = min(self.latest[width])
        self._changed.clear()
        return self._seconds
