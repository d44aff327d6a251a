"""Where the end of a text stood before, in it and in finished ones, and what followed there."""

from __future__ import annotations

import heapq
import math
import sys
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate, repeat
from operator import mul
from typing import Final

from accelplug.hooks.drafting import ROOT, IntArray

LONG: Final = 8  # size of the long n-gram: it finds the right place where a short one has many
GAP: Final = -1  # no token: a text ends here
Guess = tuple[list[int], list[int]]
"""Tokens and parents."""
Found = list[tuple[int, int]]
"""Match length and place of each earlier occurrence."""


class Text:
    """One request's tokens. A place is the position after an n-gram; each knows the place of the same n-gram before it."""

    def __init__(self, min_match: int) -> None:
        self.sizes = sorted({min_match, max(min_match, LONG)}, reverse=True)
        self.tokens: list[int] = []
        self.prompt = 0  # tokens of it
        self.newest: list[dict[tuple[int, ...], int]] = [{} for _ in self.sizes]
        self.before = [array("i") for _ in self.sizes]  # place - size -> the place before it, or -1

    def extend(self, history: IntArray) -> None:
        """Add the n-grams that the new tokens followed; the one at the very end has no follower yet."""
        first, tokens = len(self.tokens), self.tokens
        if not first:
            self.prompt = len(history) - 1
        tokens += history[first:].tolist()
        for size, newest, before in zip(self.sizes, self.newest, self.before, strict=True):
            begin = max(first - size, 0)
            shifted = (tokens[begin + i :] for i in range(size))
            for place, gram in zip(range(begin + size, len(tokens)), zip(*shifted, strict=False), strict=False):
                before.append(newest.get(gram, -1))
                newest[gram] = place

    def places(self, most: int, longest: int, ahead: Sequence[int] = ()) -> Found:
        """Return (match length, place) of those that share the last `LONG` tokens, or, where none does, `min_match`; newest first.

        :param ahead: tokens behind the text's own, of which nothing is remembered.
        """
        tail = [*self.tokens[-max(longest, self.sizes[0]) :], *ahead] if ahead else self.tokens
        for size, newest, before in zip(self.sizes, self.newest, self.before, strict=True):
            place = newest.get(tuple(tail[-size:]), -1)
            found: Found = []
            while place >= 0 and len(found) < most:
                found.append((self._match(place, tail, size, longest), place))
                place = before[place - size]
            if found:
                return found
        return []

    def _match(self, place: int, tail: list[int], known: int, longest: int) -> int:
        """Return how many tokens before `place` equal the last ones of `tail`, `known` of them for certain."""
        tokens, length = self.tokens, known
        while length < min(longest, place, len(tail)) and tokens[place - 1 - length] == tail[-1 - length]:
            length += 1
        return length


def grow(
    text: Sequence[int], places: list[int], most: int, min_chance: float, branches: int | None, goes_on: float, ends: Sequence[int] = ()
) -> tuple[Guess, float]:
    """Follow the places best first; return the nodes, and how many of them are expected to be right.

    :param places: in `text`, which may be several, with `GAP` between them.
    :param min_chance: of a node: the share of its parent's places that go on with it, times `goes_on`, times the parent's chance.
    :param branches: children taken of a node, the most frequent first, among equals the newest; None for all.
    :param goes_on: how likely text that was copied rightly so far is copied on.
    :param ends: tokens behind which nothing comes.
    """
    tokens: list[int] = []
    parents: list[int] = []
    score, order, end = 0.0, 0, len(text)
    heap: list[tuple[float, int, int, int, list[int]]] = []
    parent, chance = ROOT, 1.0
    while True:
        if len(places) == 1 and not heap:  # nothing left to choose: copy
            copied = list(text[places[0] : places[0] + min(most - len(tokens), reach(chance, goes_on, min_chance))])
            copied = until(copied, ends)
            score += chance * sum(accumulate(repeat(goes_on, len(copied)), mul))
            return (tokens + copied, [*parents, *range(parent, parent + len(copied))]), score
        following: dict[int, list[int]] = {}
        for place in places:
            if place < end and text[place] != GAP:
                following.setdefault(text[place], []).append(place + 1)
        total = sum(map(len, following.values()))
        for token, ahead in sorted(following.items(), key=lambda child: -len(child[1]))[:branches]:
            if (likely := chance * goes_on * len(ahead) / total) >= min_chance:
                order += 1
                heapq.heappush(heap, (-likely, order, parent, token, [] if token in ends else ahead))
        if not heap or len(tokens) == most:
            return (tokens, parents), score
        negative, _, above, token, places = heapq.heappop(heap)
        parent, chance = len(tokens), -negative
        tokens.append(token)
        parents.append(above)
        score += chance


def reach(chance: float, goes_on: float, least: float) -> int:
    """Return how many tokens behind one of this chance have at least the least one."""
    if least <= 0 or goes_on >= 1:
        return sys.maxsize
    return max(0, math.floor(math.log(least / chance) / math.log(goes_on) + 1e-9))


def until(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Return the tokens up to the first that ends a text, itself included, or up to a gap, which is none."""
    for at, token in enumerate(tokens):
        if token == GAP:
            return tokens[:at]
        if token in ends:
            return tokens[: at + 1]
    return tokens


_BYTES_A_TOKEN: Final = 270  # of the table, and of the text itself
_BYTES_A_TEXT: Final = 500


class Finished:
    """The answers of finished requests, within a bound on their memory: those used longest ago are forgotten first.

    An n-gram knows its newest places by number of the answer and position in it.

    :param most_bytes: about what everything may take.
    :param most_places: of one n-gram.
    :ivar bytes: about what it takes now.
    """

    def __init__(self, most_bytes: int, most_places: int) -> None:
        self.most_bytes, self.most_places, self.bytes, self.count = most_bytes, most_places, 0, 0
        self.texts: OrderedDict[int, array[int]] = OrderedDict()
        self.places: dict[int, array[int]] = {}  # hash of the n-gram -> number << 32 | place

    def add(self, tokens: Sequence[int]) -> None:
        """Remember an answer; forget others where it takes the room."""
        if len(tokens) <= LONG or _cost(tokens) > self.most_bytes:
            return
        number, self.count = self.count, self.count + 1
        self.texts[number] = array("i", tokens)
        self.bytes += _cost(tokens)
        for place in range(LONG, len(tokens)):
            known = self.places.setdefault(hash(tuple(tokens[place - LONG : place])), array("q"))
            known.append(number << 32 | place)
            del known[: -self.most_places]
        while self.bytes > self.most_bytes:
            self._forget()

    def _forget(self) -> None:
        number, text = self.texts.popitem(last=False)
        self.bytes -= _cost(text)
        tokens = text.tolist()
        for gram in {hash(tuple(tokens[place - LONG : place])) for place in range(LONG, len(tokens))}:
            left = array("q", [code for code in self.places.get(gram, ()) if code >> 32 != number])
            if left:
                self.places[gram] = left
            else:
                self.places.pop(gram, None)

    def find(self, tail: Sequence[int], most: int) -> tuple[Found, list[int]]:
        """Return the places of the last `LONG` tokens, newest first, in one text of what followed there, `most` tokens each.

        :param tail: the end of a request's text; its length is the longest match told apart from longer ones.
        """
        found: Found = []
        following: list[int] = []
        for code in reversed(self.places.get(hash(tuple(tail[-LONG:])), ())):
            number, place = code >> 32, code & 0xFFFFFFFF
            text, length = self.texts[number], 0
            while length < min(len(tail), place) and text[place - 1 - length] == tail[-1 - length]:
                length += 1
            if length >= LONG:  # no other n-gram of the same hash
                self.texts.move_to_end(number)
                found.append((length, len(following)))
                following += [*text[place : place + most], GAP]
        return found, following


def _cost(tokens: Sequence[int]) -> int:
    return _BYTES_A_TEXT + _BYTES_A_TOKEN * len(tokens)
