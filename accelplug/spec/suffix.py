"""Suffix decoding: draft what most often followed the text at the end, as far as the match was long.

Paper      Oliaro et al. 2024, "SuffixDecoding", arXiv 2411.04975; here over the request's own prompt and output
Output     unchanged (the verifier decides)
Needs      committed token ids only; trees where shape="tree"
Hosts      transformers, vllm
Devices    cpu, cuda
Cost       host: two hash tables, tens of microseconds per step whatever the context; memory: about 0.4 KB per token
Good for   agents, edits and loops: long repeats are drafted far ahead, doubtful ones hardly
Poor for   open-ended chat, where little repeats
"""

from __future__ import annotations

import heapq
from array import array
from dataclasses import dataclass, field
from typing import Literal

from accelplug.hooks.drafting import ROOT, CommitView, DrafterTraits, Drafts, DraftView, IntArray
from accelplug.hooks.options import option

_LONG = 8  # size of the long n-gram: it finds the right place where a short one has many
Guess = tuple[list[int], list[int]]  # tokens and parents


class _Text:
    """One request's tokens. A place is the position after an n-gram; each knows the place of the same n-gram before it."""

    def __init__(self, min_match: int) -> None:
        self.sizes = sorted({min_match, max(min_match, _LONG)}, reverse=True)
        self.tokens: list[int] = []
        self.newest: list[dict[tuple[int, ...], int]] = [{} for _ in self.sizes]
        self.before = [array("i") for _ in self.sizes]  # place - size -> the place before it, or -1

    def extend(self, history: IntArray) -> None:
        """Add the n-grams that the new tokens followed; the one at the very end has no follower yet."""
        first, tokens = len(self.tokens), self.tokens
        tokens += history[first:].tolist()
        for size, newest, before in zip(self.sizes, self.newest, self.before, strict=True):
            begin = max(first - size, 0)
            shifted = (tokens[begin + i :] for i in range(size))
            for place, gram in zip(range(begin + size, len(tokens)), zip(*shifted, strict=False), strict=False):
                before.append(newest.get(gram, -1))
                newest[gram] = place

    def places(self, most: int, longest: int) -> list[tuple[int, int]]:
        """Return (match length, place) of those that share the last `_LONG` tokens, or, where none does, `min_match`; newest first."""
        for size, newest, before in zip(self.sizes, self.newest, self.before, strict=True):
            place = newest.get(tuple(self.tokens[-size:]), -1)
            found: list[tuple[int, int]] = []
            while place >= 0 and len(found) < most:
                found.append((self._match(place, size, longest), place))
                place = before[place - size]
            if found:
                return found
        return []

    def _match(self, place: int, known: int, longest: int) -> int:
        """Return how many tokens before `place` equal those at the end, `known` of them for certain."""
        tokens, length = self.tokens, known
        while length < min(longest, place) and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        return length

    def grow(self, places: list[int], most: int, min_chance: float, branches: int | None) -> tuple[Guess, float]:
        """Follow the places best first; return the nodes, and how many of them are expected to be right.

        :param min_chance: of a node: the share of its parent's places that go on with it, times the parent's chance.
        :param branches: children taken of a node, the most frequent first, among equals the newest; None for all.
        """
        tokens: list[int] = []
        parents: list[int] = []
        score, order, end = 0.0, 0, len(self.tokens)
        heap: list[tuple[float, int, int, int, list[int]]] = []
        parent, chance = ROOT, 1.0
        while True:
            if len(places) == 1 and not heap:  # nothing left to choose: copy
                copied = self.tokens[places[0] : places[0] + most - len(tokens)]
                return (tokens + copied, [*parents, *range(parent, parent + len(copied))]), score + chance * len(copied)
            following: dict[int, list[int]] = {}
            for place in places:
                if place < end:
                    following.setdefault(self.tokens[place], []).append(place + 1)
            total = sum(map(len, following.values()))
            for token, ahead in sorted(following.items(), key=lambda child: -len(child[1]))[:branches]:
                if (likely := chance * len(ahead) / total) >= min_chance:
                    order += 1
                    heapq.heappush(heap, (-likely, order, parent, token, ahead))
            if not heap or len(tokens) == most:
                return (tokens, parents), score
            negative, _, above, token, places = heapq.heappop(heap)
            parent, chance = len(tokens), -negative
            tokens.append(token)
            parents.append(above)
            score += chance


@dataclass(slots=True)
class Suffix:
    """Draft the likeliest continuation by counts; of all match lengths, the one from which most tokens are expected."""

    num_tokens: int = option(32, ge=1, le=256, per_request=True, help="most tokens to draft")
    min_match: int = option(2, ge=1, le=16, help="tokens at the end that must have stood before")
    max_match: int = option(64, ge=1, le=256, help="longest match told apart from longer ones")
    factor: float = option(1.0, ge=0, le=16, help="tokens drafted for each token matched")
    min_chance: float = option(0.1, ge=0, le=1, help="drafts less likely than this, by counts, are left out")
    max_places: int = option(32, ge=1, le=1024, help="newest earlier occurrences to count")
    shape: Literal["chain", "tree"] = option("chain", help="'chain', or 'tree' of every likely continuation")
    traits: DrafterTraits = field(init=False, repr=False)
    _texts: dict[int, _Text] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.traits = DrafterTraits(shape=self.shape)

    def start(self, slots: IntArray) -> None:
        """Begin with an empty text in each slot."""
        for slot in slots.tolist():
            self._texts[slot] = _Text(self.min_match)

    def finish(self, slots: IntArray) -> None:
        """Free the text of each slot."""
        for slot in slots.tolist():
            self._texts.pop(slot, None)

    def observe(self, view: CommitView) -> None:
        """Add what was committed."""
        for i, slot in enumerate(view.slots.tolist()):
            self._texts[slot].extend(view.history(i))

    def propose(self, view: DraftView) -> Drafts:
        """Weigh the continuations after every match length."""
        wanted = view.parameters.get("num_tokens")
        guesses = []
        for i, slot in enumerate(view.slots.tolist()):
            most = min(int(view.budgets[i]), self.num_tokens if wanted is None else int(wanted[i]))
            guesses.append(self._guess(self._texts[slot], most))
        return Drafts.trees(guesses) if self.shape == "tree" else Drafts.chains([tokens for tokens, _ in guesses])

    def _guess(self, text: _Text, most: int) -> Guess:
        best: tuple[float, Guess] = (0.0, ([], []))
        found = text.places(self.max_places, self.max_match) if most > 0 else []
        for length in sorted({length for length, _ in found}, reverse=True):
            if (limit := min(most, int(length * self.factor))) <= best[0]:
                break  # shorter matches can only draft less
            places = [place for matched, place in found if matched >= length]
            guess, score = text.grow(places, limit, self.min_chance, None if self.shape == "tree" else 1)
            best = max(best, (score, guess), key=lambda pair: pair[0])
        return best[1]
