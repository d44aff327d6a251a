"""Walks under a mask: along a given text, or by chance."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from accelplug.hooks import CompiledGrammar, Matcher, Vocabulary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    BoolArray = NDArray[np.bool_]

MOST_TOKENS: Final = 200


class Walk(NamedTuple):
    """A text drawn by chance, and how it came to its end.

    :param came: ``ended`` by an EOS, ``stuck`` where the mask let nothing follow, ``cut`` after `MOST_TOKENS`.
    """

    text: str
    came: Literal["ended", "stuck", "cut"]


def legal_by_mask(matcher: Matcher, text: str, vocabulary: Vocabulary) -> bool:
    """Whether each token of a text, and then an EOS, is set in the mask at its place."""
    import torch

    if vocabulary.encode is None:
        return False
    row = torch.zeros((len(vocabulary) + 31) // 32, dtype=torch.int32)
    words = row.numpy()
    for token in [*vocabulary.encode(text), vocabulary.eos_token_ids[0]]:
        matcher.fill(row)
        if not words[token // 32] >> token % 32 & 1:
            return False
        if matcher.accept([token]) != 1:
            return False
    return True


def forced_of(matcher: Matcher, text: str, vocabulary: Vocabulary) -> tuple[int, int]:
    """Return how many of a text's tokens, EOS included, are forced and drafted rightly, and how many tokens there are."""
    tokens = [*(vocabulary.encode(text) if vocabulary.encode else ()), vocabulary.eos_token_ids[0]]
    forced = at = 0
    while at < len(tokens):
        guess = list(matcher.forced())
        right = next((n for n, (one, other) in enumerate(zip(guess, tokens[at:], strict=False)) if one != other), min(len(guess), len(tokens) - at))
        forced += right
        step = tokens[at : at + max(1, right)]
        if matcher.accept(step) < len(step):
            return 0, 0  # not a text of this grammar
        at += len(step)
    return forced, len(tokens)


@lru_cache(maxsize=4)
def _kinds(vocabulary: Vocabulary) -> tuple[BoolArray, BoolArray]:
    """Return which tokens bring JSON to an end, and which are more than blanks."""
    import numpy as np

    closing = np.array([bool(token) and not token.strip(b'"}],:0123456789') for token in vocabulary.tokens])
    return closing, np.array([bool(token.strip()) for token in vocabulary.tokens])


def walk(compiled: CompiledGrammar, vocabulary: Vocabulary, chance: random.Random) -> Walk:
    """Write a text by drawing legal tokens, those that close something more often."""
    import numpy as np
    import torch

    matcher, row, written = compiled.matcher(), torch.zeros((len(vocabulary) + 31) // 32, dtype=torch.int32), b""
    for step in range(MOST_TOKENS):
        matcher.fill(row)
        legal = np.unpackbits(row.numpy().view(np.uint8), bitorder="little")[: len(vocabulary)].astype(bool)
        token = _draw(legal, vocabulary, chance, step)
        if token is None:
            return Walk(written.decode(errors="replace"), "stuck")
        if token in vocabulary.eos_token_ids:
            return Walk(written.decode(errors="replace"), "ended")
        matcher.accept([token])
        written += vocabulary.tokens[token]
    return Walk(written.decode(errors="replace"), "cut")


def _draw(legal: BoolArray, vocabulary: Vocabulary, chance: random.Random, step: int) -> int | None:
    closing, more = _kinds(vocabulary)
    ends = [token for token in vocabulary.eos_token_ids if legal[token]]
    if ends and chance.random() < 0.7:
        return ends[0]
    for kind, share in ((closing, 0.4 + min(0.5, step / 100)), (more, 1.0)):
        found = (legal & kind).nonzero()[0]
        if len(found) and chance.random() < share:
            return int(found[chance.randrange(len(found))])
    left = legal.nonzero()[0]
    return int(left[chance.randrange(len(left))]) if len(left) else None


def example(compiled: CompiledGrammar, vocabulary: Vocabulary, tries: int = 20) -> str | None:
    """Return a short text that the mask allows and the final check passes, None if none was found."""
    chance = random.Random(0)
    walks = [walk(compiled, vocabulary, chance) for _ in range(tries)]
    found = [text for text, came in walks if came == "ended" and compiled.check(text) is None]
    return min(found, key=len, default=None)
