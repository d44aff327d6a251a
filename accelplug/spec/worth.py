"""How many drafted tokens pay for themselves: counted acceptance against measured steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MEMORY = 0.9  # how much of what was counted stays from one judged draft to the next
DOUBT = 0.5  # rejected tokens presumed at first
TRY = 2  # tokens drafted to find out whether more are worth it
_SHORTEST_PAUSE, _LONGEST_PAUSE = 4, 4096
_PATIENCE, _RAREST = 8, 4  # wrong guesses in a row after which guesses become half as frequent, and every how many steps they stay


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
class Pause:
    """When to try again after giving up: ever more rarely."""

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
            self.length = min(2 * self.length, _LONGEST_PAUSE)

    def over(self) -> None:
        """Wait no more."""
        self.length, self.left = _SHORTEST_PAUSE, 0


@dataclass(slots=True)
class Worth:
    """How one request's drafts fared, recent ones counting more, and when to try again after giving up."""

    accepted: float = 0.0
    judged: float = 0.0
    drafted: int = 0  # in the last step
    guess: int | None = None  # what was thought to come next in the last step, and not drafted
    pause: Pause = field(default_factory=Pause)
    wrong: int = 0  # guesses in a row
    since: int = 0  # steps since the last guess was asked for

    def learn(self, accepted: int, token: int) -> None:
        """Count the last draft, each of its tokens up to the first rejected one; or the guess, by the `token` that came."""
        judged = min(accepted + 1, self.drafted)
        if self.guess is not None:
            accepted, judged = int(token == self.guess), 1
            self.wrong = 0 if accepted else self.wrong + 1
        if judged:
            self.accepted, self.judged = MEMORY * self.accepted + accepted, MEMORY * self.judged + judged
        if self.pause.is_trying and 0 < accepted == self.drafted:
            self.pause.over()  # one right try does not make up for all that went wrong: go on trying

    def length(self, seconds: Sequence[float], most: int) -> int:
        """Return how many tokens to draft: those of most tokens per second.

        :param seconds: of steps over 1, 2, ... positions.
        """
        self.pause.is_trying = False
        rate = self.accepted / (self.judged + DOUBT)
        gain, likely, best, highest = 1.0, 1.0, 0, 1.0 / seconds[0]
        for count in range(1, most + 1):
            likely *= rate
            gain += likely
            if gain / seconds[count] > highest:
                best, highest = count, gain / seconds[count]
        if best:
            self.pause.over()
        return best

    def tries(self) -> int:
        """Return how many tokens to draft although they are not known to be worth it."""
        return TRY if self.pause.tries() else 0

    def guesses(self) -> bool:
        """Whether to ask what would be drafted although it is not worth it: a search costs something too, so wrong guesses make it rarer."""
        self.since += 1
        if self.since < min(1 << self.wrong // _PATIENCE, _RAREST):
            return False
        self.since = 0
        return True

    def went(self, drafted: int, guess: int | None) -> None:
        """Note what was drafted; a try that found nothing to draft cost nothing and is repeated."""
        self.drafted, self.guess = drafted, guess
        if drafted:
            self.pause.spent()
