"""How many drafted tokens pay for themselves: counted acceptance against measured steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_MEMORY = 0.9  # how much of what was counted stays from one judged draft to the next
_DOUBT = 0.5  # rejected tokens presumed at first
_TRY = 2  # tokens drafted to find out whether more are worth it
_SHORTEST_PAUSE, _LONGEST_PAUSE = 4, 4096


def seconds_by_width(table: Mapping[int, float], most: int) -> list[float]:
    """Return a step's seconds over 1, 2, ... `most` positions, between and beyond those measured along straight lines.

    :param table: positions -> seconds, 1 among them. A plain step takes no longer than any other: one measured in another
        context would make useless drafts look cheap.
    """
    known = sorted(table)
    plain = min(table.values())
    if len(known) == 1:
        return [plain] * most
    seconds, right = [plain], 1
    for width in range(2, most + 1):
        while width > known[right] and right + 1 < len(known):
            right += 1
        low, high = known[right - 1], known[right]
        slope = (table[high] - table[low]) / (high - low)
        seconds.append(table[high] if width == high else table[low] + max(slope, 0.0) * (width - low))
    return seconds


@dataclass(slots=True)
class Worth:
    """How one request's drafts fared, recent ones counting more, and when to try again after giving up."""

    accepted: float = 0.0
    judged: float = 0.0
    drafted: int = 0  # in the last step
    guess: int | None = None  # what was thought to come next in the last step, and not drafted
    pause: int = _SHORTEST_PAUSE
    wait: int = 0
    is_trying: bool = False

    def learn(self, accepted: int, token: int) -> None:
        """Count the last draft, each of its tokens up to the first rejected one; or the guess, by the `token` that came."""
        judged = min(accepted + 1, self.drafted)
        if self.guess is not None:
            accepted, judged = int(token == self.guess), 1
        if judged:
            self.accepted, self.judged = _MEMORY * self.accepted + accepted, _MEMORY * self.judged + judged
        if self.is_trying and 0 < accepted == self.drafted:
            self.pause, self.wait = _SHORTEST_PAUSE, 0  # one right try does not make up for all that went wrong: go on trying

    def length(self, seconds: Sequence[float], most: int) -> int:
        """Return how many tokens to draft: those of most tokens per second.

        :param seconds: of steps over 1, 2, ... positions.
        """
        self.is_trying = False
        rate = self.accepted / (self.judged + _DOUBT)
        gain, likely, best, highest = 1.0, 1.0, 0, 1.0 / seconds[0]
        for count in range(1, most + 1):
            likely *= rate
            gain += likely
            if gain / seconds[count] > highest:
                best, highest = count, gain / seconds[count]
        if best:
            self.pause, self.wait = _SHORTEST_PAUSE, 0
        return best

    def tries(self) -> int:
        """Return how many tokens to draft although they are not known to be worth it."""
        self.wait = max(0, self.wait - 1)
        self.is_trying = not self.wait
        return _TRY if self.is_trying else 0

    def went(self, drafted: int, guess: int | None) -> None:
        """Note what was drafted; a try that found nothing to draft cost nothing and is repeated."""
        self.drafted, self.guess = drafted, guess
        if drafted and self.is_trying:
            self.wait = self.pause
            self.pause = min(2 * self.pause, _LONGEST_PAUSE)
