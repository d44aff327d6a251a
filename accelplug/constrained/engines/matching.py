"""What every engine's matcher and compiled grammar share: where a text ends, and what is said about it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from accelplug.hooks import GrammarStatement, Matcher, Vocabulary

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


Made = TypeVar("Made")
MOST_VOCABULARIES: Final = 8


class ByVocabulary(Generic[Made]):
    """Something an engine makes once for each vocabulary; the last few are kept."""

    def __init__(self, make: Callable[[Vocabulary], Made]) -> None:
        self._make, self._lock = make, Lock()
        self._made: OrderedDict[str, Made] = OrderedDict()

    def __call__(self, vocabulary: Vocabulary) -> Made:
        """Return what was made for a vocabulary of the same content."""
        with self._lock:
            if vocabulary.digest not in self._made:
                self._made[vocabulary.digest] = self._make(vocabulary)
                if len(self._made) > MOST_VOCABULARIES:
                    self._made.popitem(last=False)
            self._made.move_to_end(vocabulary.digest)
            return self._made[vocabulary.digest]


def in_one_line(words: object, most: int = 300) -> str:
    """Return what an engine says as one line, without the frames and the state of its own code."""
    return " ".join(str(words).partition("<backtrace>")[0].partition("<state>")[0].split())[:most]


class EndingMatcher:
    """A matcher that keeps the EOS tokens away from its engine, so that all engines end, and take an end back, alike.

    An engine's matcher says how to `_advance`, `_retreat`, `_look` ahead and `_fill`, and whether the text may end here.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._ends = frozenset(vocabulary.eos_token_ids)
        self._ended = False

    def _advance(self, tokens: list[int]) -> int:
        raise NotImplementedError

    def _retreat(self, count: int) -> None:
        raise NotImplementedError

    def _look(self, tokens: list[int]) -> int:
        """Return how many tokens are legal, without moving."""
        count = self._advance(tokens)
        if count:
            self._retreat(count)
        return count

    def _ends_behind(self, tokens: list[int]) -> bool:
        """Whether the text may end behind tokens that are all legal."""
        self._advance(tokens)
        may_end = self._may_end()
        if tokens:
            self._retreat(len(tokens))
        return may_end

    def _fill(self, row: Tensor) -> None:
        raise NotImplementedError

    def _may_end(self) -> bool:
        raise NotImplementedError

    def _forced(self) -> Sequence[int]:
        return ()

    def fill(self, row: Tensor) -> None:
        """Write the legal tokens."""
        if self._ended:
            row.zero_()
        else:
            self._fill(row)

    def accept(self, tokens: Sequence[int]) -> int:
        """Advance up to the first illegal token."""
        if self._ended:
            return 0
        inside = self._inside(tokens)
        count = self._advance(inside)
        if count == len(inside) < len(tokens) and self._may_end():
            self._ended = True
            return count + 1
        return count

    def rollback(self, count: int) -> None:
        """Take tokens back, an EOS first."""
        if self._ended and count:
            self._ended = False
            count -= 1
        if count:
            self._retreat(count)

    def validate(self, tokens: Sequence[int]) -> int:
        """Return how many tokens are legal."""
        if self._ended:
            return 0
        inside = self._inside(tokens)
        count = self._look(inside)
        return count + (count == len(inside) < len(tokens) and self._ends_behind(inside))

    def forced(self) -> Sequence[int]:
        """Return what must follow."""
        return () if self._ended else self._forced()

    @property
    def is_terminated(self) -> bool:
        """Whether an EOS was accepted."""
        return self._ended

    def _inside(self, tokens: Sequence[int]) -> list[int]:
        inside = []
        for token in tokens:
            if token in self._ends:
                break
            inside.append(int(token))
        return inside


def with_ends(bits: np.ndarray[tuple[int], np.dtype[np.uint32]], ends: frozenset[int], *, set_them: bool) -> None:
    """Set or clear the EOS tokens in a row of bits."""
    for end in ends:
        if set_them:
            bits[end // 32] |= 1 << end % 32
        else:
            bits[end // 32] &= 0xFFFFFFFF ^ (1 << end % 32)


@dataclass(frozen=True, eq=False)
class Compiled:
    """A compiled grammar: how to begin a text in it, what is enforced, and the final check.

    :param begin: returns a fresh matcher.
    :param finish: returns what is wrong with a finished text, None if nothing is.
    """

    statement: GrammarStatement
    begin: Callable[[], Matcher]
    finish: Callable[[str], str | None]

    def matcher(self) -> Matcher:
        """Return a fresh matcher."""
        return self.begin()

    def check(self, text: str) -> str | None:
        """Return what is wrong with a finished text."""
        return self.finish(text)
