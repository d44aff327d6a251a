"""How many drafted tokens pay for themselves: counted acceptance against measured steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

MEMORY = 0.9  # how much of what was counted stays from one judged draft to the next
HOPE = 1.0  # accepted tokens presumed at first, so that a request begins with drafts and not with waiting
FIRST = 3.0  # plain steps that a first draft may take, where nothing is known yet and guesses will tell; at 2 it cut what copies an input whole
DOUBT = 0.125  # rejected tokens presumed at first
MARGIN = 1.05  # what drafting must promise over a plain step: costs are measured, and where they seem equal any hope would do for ever
TRY = 2  # tokens drafted to find out whether more are worth it
_SHORTEST_PAUSE, _LONGEST_PAUSE = 4, 4096
_PATIENCE, _RAREST = 8, 4  # wrong guesses in a row after which guesses become half as frequent, and every how many steps they stay

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
    """How one request's drafts fared, recent ones counting more, and when to try again after giving up.

    :param guessing: what would be drafted can be asked for and compared with what comes. So a first draft is as long as `FIRST`
        plain steps can pay for, and what came of it takes the place of all hope: guesses cost less than drafts do, and right ones bring it back.
    """

    guessing: bool = False
    accepted: float = HOPE
    judged: float = HOPE
    drafted: int = 0  # in the last step
    guess: int | None = None  # what was thought to come next in the last step, and not drafted
    pause: Pause = field(default_factory=Pause)
    hoping: bool = True  # nothing was judged yet
    wrong: int = 0  # guesses in a row

    def learn(self, accepted: int, token: int) -> None:
        """Count the last draft, each of its tokens up to the first rejected one; or the guess, by the `token` that came."""
        judged = min(accepted + 1, self.drafted)
        if self.guess is not None:
            accepted, judged = int(token == self.guess), 1
            self.wrong = 0 if accepted else self.wrong + 1
        if judged:
            if self.hoping and self.guessing:
                self.accepted = self.judged = 0.0
            self.hoping = False
            self.accepted, self.judged = MEMORY * self.accepted + accepted, MEMORY * self.judged + judged
        if self.pause.is_trying and 0 < accepted == self.drafted:
            self.pause.over()  # one right try does not make up for all that went wrong: go on trying

    @property
    def rate(self) -> float:
        """How likely the next drafted token is right."""
        return self.accepted / (self.judged + DOUBT)

    @property
    def may_pay(self) -> bool:
        """Whether a draft could be worth it if its tokens cost nothing, however many they are."""
        return MARGIN * (1.0 - self.rate) <= 1.0

    def length(self, seconds: Seconds, most: int) -> int:
        """Return how many tokens to draft: those of most tokens per second.

        :param seconds: of steps over 1, 2, ... positions, [1 + most] or more.
        """
        self.pause.is_trying = False
        if not self.may_pay:
            return 0
        if self.hoping and self.guessing:
            return int((seconds[1 : most + 1] <= FIRST * seconds[0]).sum())
        gains = (self.rate ** np.arange(most + 1)).cumsum() / seconds[: most + 1]  # of no draft, one token, ...
        best = int(gains.argmax())
        if gains[best] < MARGIN * gains[0]:
            best = 0
        if best:
            self.pause.over()
        return best

    def tries(self) -> int:
        """Return how many tokens to draft although they are not known to be worth it."""
        return TRY if self.pause.tries() else 0

    def guesses(self, step: int) -> bool:
        """Whether to ask what would be drafted although it is not worth it: a search costs something too, so wrong guesses make it rarer.

        :param step: of all requests together, so that those that are seldom asked are asked in the same steps.
        """
        return step % min(1 << self.wrong // _PATIENCE, _RAREST) == 0

    def went(self, drafted: int, guess: int | None) -> None:
        """Note what was drafted; a try that found nothing to draft cost nothing and is repeated."""
        self.drafted, self.guess = drafted, guess
        if drafted:
            self.pause.spent()
