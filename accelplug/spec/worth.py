"""How one request's drafts fare: how many tokens to draft, and when to guess or to try."""

from __future__ import annotations

from dataclasses import dataclass, field

from accelplug.hooks.paying import DOUBT, HOPE, MEMORY, TRY, Pause, Seconds, best_length, may_pay

FIRST = 3.0  # plain steps that a first draft may take, where nothing is known yet and guesses will tell; at 2 it cut what copies an input whole
_PATIENCE, _HALVINGS = 8, 2  # wrong guesses in a row after which guesses become half as frequent, and how many times they do


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
        return may_pay(self.rate)

    def length(self, seconds: Seconds, most: int) -> int:
        """Return how many tokens to draft: those of most tokens per second.

        :param seconds: of steps over 1, 2, ... positions, [1 + most] or more.
        """
        self.pause.is_trying = False
        if not self.may_pay:
            return 0
        if self.hoping and self.guessing:
            return int((seconds[1 : most + 1] <= FIRST * seconds[0]).sum())
        best = best_length(self.rate, seconds, most)
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
        return step % self._every == 0

    def next_guess(self, step: int) -> int:
        """Return the first step behind this one in which it guesses."""
        return step - step % self._every + self._every

    @property
    def _every(self) -> int:
        """Every how many steps it guesses."""
        return 1 << min(self.wrong // _PATIENCE, _HALVINGS)

    def went(self, drafted: int, guess: int | None) -> None:
        """Note what was drafted; a try that found nothing to draft cost nothing and is repeated."""
        self.drafted, self.guess = drafted, guess
        if drafted:
            self.pause.spent()
