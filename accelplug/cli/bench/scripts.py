"""Outputs decided beforehand, for any tokenizer: what a drafter meets on them does not depend on what the model knows."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor

ALPHABET: Final = 16
LONGEST_NGRAM: Final = 6
REGIME: Final = 64
LONGEST_CHANGE: Final = 4
CERTAIN: Final = 1e4
"""Added to a scripted token's score: no logit comes near it, and nothing else is masked, so that nobody can read the script off a mask."""


@dataclass(frozen=True, slots=True)
class Script:
    """A prompt and the output that follows it, token ids."""

    prompt: list[int]
    output: list[int]


class Scripted:
    """A logits processor that makes the model say what was decided, one script per row of the batch.

    :param scripts: [rows, new_tokens] token ids.
    """

    def __init__(self, prompt_length: int, scripts: Tensor) -> None:
        self.prompt_length, self.scripts = prompt_length, scripts

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        """Return the scores with the scripted token far above all others; [rows, vocab_size]."""
        at = min(input_ids.shape[1] - self.prompt_length, self.scripts.shape[1] - 1)
        told = self.scripts[:, at : at + 1]
        return scores.scatter(1, told, scores.gather(1, told) + CERTAIN)


def adversarial(ordinary: Sequence[int], new_tokens: int, room: int, seed: int) -> Script | None:
    """Return a script on which every n-gram matches and every copied continuation is wrong.

    The prompt holds every pair of a small alphabet. Each next token differs from what followed the first and the latest
    occurrence of every n-gram at the end, of up to six tokens.

    :param ordinary: token ids to choose from.
    :param room: the most tokens, prompt and output, that the model takes.
    :returns: None where the model has no room, or the tokenizer too few tokens, for an alphabet of three.
    """
    size = min(ALPHABET, len(ordinary), math.isqrt(max(room - new_tokens - 2, 0)))
    if size < 3:
        return None
    draw = random.Random(seed)
    alphabet = draw.sample(list(ordinary), size)
    longest = min(LONGEST_NGRAM, (size - 1) // 2)  # two followers for each length, and one token must be left
    pairs = every_pair(alphabet)
    prompt = [*pairs, pairs[1]]  # so that the pair at the end has occurred before, too
    tokens = list(prompt)
    first: dict[tuple[int, ...], int] = {}
    latest: dict[tuple[int, ...], int] = {}
    for end in range(1, len(tokens)):
        _note(tokens, end, longest, first, latest)
    for _ in range(new_tokens):
        tails = [tuple(tokens[-n:]) for n in range(1, longest + 1)]
        copied = {table.get(tail) for table in (first, latest) for tail in tails}
        tokens.append(draw.choice([token for token in alphabet if token not in copied]))
        _note(tokens, len(tokens) - 1, longest, first, latest)
    return Script(prompt, tokens[len(prompt) :])


def _note(tokens: list[int], end: int, longest: int, first: dict[tuple[int, ...], int], latest: dict[tuple[int, ...], int]) -> None:
    """Remember which token followed each n-gram that ends before position `end`."""
    for n in range(1, min(longest, end) + 1):
        ngram = tuple(tokens[end - n : end])
        first.setdefault(ngram, tokens[end])
        latest[ngram] = tokens[end]


def every_pair(alphabet: Sequence[int]) -> list[int]:
    """Return a shortest sequence in which every ordered pair of tokens occurs: a de Bruijn sequence of order 2, closed."""
    tokens: list[int] = []
    for i, token in enumerate(alphabet):
        tokens.append(token)
        for later in alphabet[i + 1 :]:
            tokens += [token, later]
    return [*tokens, tokens[0]]


def regimes(ordinary: Sequence[int], new_tokens: int, room: int, seed: int) -> Script | None:
    """Return a script whose output copies its prompt and says something new by turns of 64 tokens.

    :returns: None where the model has no room for the prompt, or there are too few tokens.
    """
    if room < REGIME + new_tokens or len(ordinary) < 2 * REGIME:
        return None
    draw = random.Random(seed)
    passage = draw.sample(list(ordinary), REGIME)
    others = [token for token in ordinary if token not in set(passage)]
    output: list[int] = []
    while len(output) < new_tokens:
        output += passage
        output += draw.choices(others, k=REGIME)
    return Script(passage, output[:new_tokens])


def edited(code: Sequence[int], percent: int, new_tokens: int, room: int, seed: int) -> Script | None:
    """Return a script whose output is its prompt with such a share of the tokens changed, in runs of one to four.

    A change replaces as many tokens, or is put between two, or replaces twice as many. What it says is from elsewhere in the code.

    :param code: tokens of text that people wrote, the prompt is a part of it.
    :param percent: of the output's tokens.
    :returns: None where the model has no room for the prompt, or the code is too short.
    """
    length = 2 * new_tokens  # more than an output without insertions uses up, where changes take out twice what they say
    if room < length + new_tokens or len(code) < 2 * length:
        return None
    draw = random.Random(f"{seed} {percent}")
    begin = draw.randrange(len(code) - length)
    passage, elsewhere = list(code[begin : begin + length]), [*code[:begin], *code[begin + length :]]
    output, at = list[int](), 0
    for run, copied in _changes(round(new_tokens * percent / 100), new_tokens, draw):
        output += passage[at : at + copied]
        at += copied
        place = draw.randrange(len(elsewhere) - run)
        output += [_other(token, elsewhere, draw, passage[at : at + 2 * run]) for token in elsewhere[place : place + run]]
        at += draw.choice((0, run, 2 * run))
    return Script(passage, (output + passage[at:])[:new_tokens])


def _changes(changed: int, tokens: int, draw: random.Random) -> list[tuple[int, int]]:
    """Divide an output into changes: how long each is, and how many tokens are copied before it."""
    runs: list[int] = []
    while sum(runs) < changed:
        runs.append(min(draw.randint(1, LONGEST_CHANGE), changed - sum(runs)))
    places = sorted(draw.sample(range(tokens - changed), len(runs))) if runs else []
    return [(run, place - before) for run, place, before in zip(runs, places, [0, *places], strict=False)]


def _other(token: int, elsewhere: Sequence[int], draw: random.Random, avoided: Sequence[int]) -> int:
    """Return a token, another one where it would be a copy of what it stands in place of."""
    while token in avoided:
        token = draw.choice(elsewhere)
    return token
