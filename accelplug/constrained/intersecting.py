"""Several grammars on one text: what all of them allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from accelplug._errors import ConstraintError
from accelplug.constrained.engines.matching import Compiled
from accelplug.hooks import CompiledGrammar, GrammarSpec, GrammarStatement, Matcher, Vocabulary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

MOST_STEPS: Final = 500  # of looking for a text that all of them allow


class EveryMatcher:
    """A position in several grammars at once."""

    def __init__(self, matchers: Sequence[Matcher], width: int) -> None:
        self._matchers, self._width = matchers, width

    def fill(self, row: Tensor) -> None:
        """Write what all of them allow."""
        import torch

        self._matchers[0].fill(row)
        other = torch.empty_like(row)
        for matcher in self._matchers[1:]:
            matcher.fill(other)
            row &= other
        if not row.any() and (token := self._forced_by_one()) is not None:
            row.numpy().view("uint32")[token // 32] = 1 << token % 32

    def _forced_by_one(self) -> int | None:
        """Return a token that one of them forces and the others take, though their masks have not got it.

        Where llguidance forces a text its mask has that text's own split alone, and two that force texts of different lengths split them otherwise.
        Whatever all allow begins with what one of them forces.
        """
        first = (list(matcher.forced())[:1] for matcher in self._matchers)
        return next((token[0] for token in first if token and self.validate(token)), None)

    def accept(self, tokens: Sequence[int]) -> int:
        """Advance all of them, as far as each goes along."""
        count = self.validate(tokens)
        for matcher in self._matchers:
            matcher.accept(tokens[:count])
        return count

    def rollback(self, count: int) -> None:
        """Take tokens back everywhere."""
        for matcher in self._matchers:
            matcher.rollback(count)

    def validate(self, tokens: Sequence[int]) -> int:
        """Return how many of the tokens each of them allows."""
        for matcher in self._matchers:
            tokens = tokens[: matcher.validate(tokens)]
        return len(tokens)

    def forced(self) -> Sequence[int]:
        """Return what one of them forces and the others allow, else the only token that all of them allow."""
        if self.is_terminated:
            return ()
        found = [forced[: self.validate(forced)] for matcher in self._matchers if (forced := list(matcher.forced()))]
        longest = max(found, key=len, default=[])
        return longest or self._only()

    def _only(self) -> Sequence[int]:
        words = self._words()
        filled = words.nonzero()[0]
        if len(filled) != 1 or (word := int(words[filled[0]])) & (word - 1):
            return ()
        return [32 * int(filled[0]) + word.bit_length() - 1]

    def legal(self) -> list[int]:
        """Return the tokens that all of them allow."""
        import numpy as np

        found: list[int] = np.unpackbits(self._words().view(np.uint8), bitorder="little").nonzero()[0].tolist()
        return found

    def _words(self) -> NDArray[np.uint32]:
        import numpy as np
        import torch

        row = torch.zeros(-(-self._width // 32), dtype=torch.int32)
        self.fill(row)
        return row.numpy().view(np.uint32)

    @property
    def is_terminated(self) -> bool:
        """Whether an EOS was accepted."""
        return self._matchers[0].is_terminated


def intersected(specs: Sequence[GrammarSpec], parts: Sequence[CompiledGrammar], vocabulary: Vocabulary) -> Compiled:
    """Return the grammar of the texts that all parts allow.

    :raises ConstraintError: certainly there is none, as far as a short search sees.
    """

    def begin() -> EveryMatcher:
        return EveryMatcher([part.matcher() for part in parts], len(vocabulary))

    if _is_certainly_empty(begin(), vocabulary):
        raise ConstraintError(f"no text satisfies both {' and '.join(map(str, specs))}; drop one, or loosen it")
    return Compiled(_stated(parts), begin, _every([part.check for part in parts]))


def _stated(parts: Sequence[CompiledGrammar]) -> GrammarStatement:
    said = [part.statement for part in parts]
    enforced, checked = (
        tuple(f"{number}: {place}" for number, one in enumerate(said) for place in getattr(one, name)) for name in ("enforced", "checked")
    )
    return GrammarStatement(" & ".join(dict.fromkeys(one.engine for one in said)), enforced, checked)


def _every(checks: Sequence[Callable[[str], str | None]]) -> Callable[[str], str | None]:
    return lambda text: next((problem for check in checks if (problem := check(text)) is not None), None)


def _is_certainly_empty(matcher: EveryMatcher, vocabulary: Vocabulary) -> bool:
    """Go through the legal texts, deep first; True if all of them lead nowhere, False if one ends or there are too many."""
    choices = [_in_search_order(matcher, vocabulary)]
    for _ in range(MOST_STEPS):
        token = next(choices[-1], None)
        if token is None:
            choices.pop()
            if not choices:
                return True
            matcher.rollback(1)
        elif token in vocabulary.eos_token_ids:
            return False
        else:
            matcher.accept([token])
            choices.append(_in_search_order(matcher, vocabulary))
    return False


def _in_search_order(matcher: EveryMatcher, vocabulary: Vocabulary) -> Iterator[int]:
    """Return the legal tokens: the ends, then closing signs; of the others single bytes alone where those spell them.

    They do where the vocabulary has all and no longer token is forced.
    """
    single = {token[0]: number for number, token in enumerate(vocabulary.tokens) if len(token) == 1}
    legal = matcher.legal()
    if len(single) == 256:
        legal = [token for token in legal if token in vocabulary.eos_token_ids or len(vocabulary.tokens[token]) <= 1] or legal
    return iter(sorted(legal, key=lambda token: (token not in vocabulary.eos_token_ids, vocabulary.tokens[token] not in b'"}]')))
