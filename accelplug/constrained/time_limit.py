"""A limit of seconds on what judges values: everything there that may take long looks at it as it goes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from accelplug._errors import ConstraintError

_UNTIL: Final = ContextVar("until", default=math.inf)


class OutOfTimeError(ConstraintError):
    """Judging took longer than its limit.

    :ivar what: what was judged then.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} takes longer to judge a value by than the limit of seconds; simplify it")
        self.what = what


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Limit what is judged inside, in this thread; a limit inside another only shortens it."""
    token = _UNTIL.set(min(_UNTIL.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _UNTIL.reset(token)


def seconds_left(what: str) -> float:
    """Return the seconds that are left, infinity where there is no limit.

    :param what: what is judged now, for the sentence.
    :raises OutOfTimeError: none are.
    """
    until = _UNTIL.get()
    if until == math.inf:
        return until
    left = until - time.monotonic()
    if left <= 0:
        raise OutOfTimeError(what)
    return left
