"""What drafts are worth: counted acceptance against measured steps. Techniques and hosts decide by it how many tokens to draft, and when to try again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MEMORY = 0.9  # how much of what was counted stays from one judged draft to the next
HOPE = 1.0  # accepted tokens presumed at first, so that a request begins with drafts and not with waiting
DOUBT = 0.125  # rejected tokens presumed at first
MARGIN = 1.05  # what drafting must promise over a plain step: costs are measured, and where they seem equal any hope would do for ever
TRY = 2  # tokens drafted to find out whether more are worth it
_SHORTEST_PAUSE, _LONGEST_PAUSE = 4, 4096

Seconds = npt.NDArray[np.floating]  # [most] what steps over 1, 2, ... positions take


def seconds_by_width(table: Mapping[int, float], most: int) -> Seconds:
    """Return a step's seconds over 1, 2, ... `most` positions, between those measured along straight lines.

    A step takes no longer than a wider one, whose figure may come from a calmer moment. Wider ones than were measured are thought to take
    no longer, so that they are tried: a line on through two figures with noise in them often denied them for good.

    :param table: positions -> seconds, 1 among them.
    """
    widths = sorted(table)
    least = np.minimum.accumulate([table[width] for width in reversed(widths)])[::-1]
    seconds: Seconds = np.interp(np.arange(1, most + 1), widths, least)
    return seconds


class ByWidth:
    """`seconds_by_width`, worked out anew when what was measured changed; most steps leave that as it was."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._measured: tuple[tuple[int, float], ...] = ()

    def __call__(self, table: Mapping[int, float]) -> Seconds | None:
        """Return them; None until a plain step was measured, the measure of all others."""
        if 1 not in table:
            return None
        measured = tuple(table.items())
        if measured != self._measured:
            self._measured, self._seconds = measured, seconds_by_width(table, self.most)
        return self._seconds


def may_pay(rate: float) -> bool:
    """Whether drafts whose tokens are right so often could be worth it if they cost nothing, however many they are."""
    return MARGIN * (1.0 - rate) <= 1.0


def best_length(rate: float, seconds: Seconds, most: int) -> int:
    """Return how many tokens to draft: those of most tokens per second, none where that promises little more.

    :param rate: how likely each token is right if those before it are.
    :param seconds: of steps over 1, 2, ... positions, [1 + most] or more.
    """
    gains = (rate ** np.arange(most + 1)).cumsum() / seconds[: most + 1]  # of no draft, one token, ...
    best = int(gains.argmax())
    return 0 if gains[best] < MARGIN * gains[0] else best


@dataclass(slots=True)
class Pause:
    """When to try again after giving up: ever more rarely.

    :param longest: steps.
    """

    longest: int = _LONGEST_PAUSE
    length: int = _SHORTEST_PAUSE
    left: int = 0
    is_trying: bool = False

    def tries(self) -> bool:
        """Whether to draft in this step although it is not known to be worth it."""
        self.left = max(0, self.left - 1)
        self.is_trying = not self.left
        return self.is_trying

    def spent(self) -> None:
        """Wait, twice as long each time, where what was drafted was a try."""
        if self.is_trying:
            self.left = self.length
            self.length = min(2 * self.length, self.longest)

    def over(self) -> None:
        """Wait no more."""
        self.length, self.left = _SHORTEST_PAUSE, 0
