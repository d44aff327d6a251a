"""Prompt lookup: draft whatever followed the last n-gram the previous time it appeared.

Paper      Saxena 2023, "Prompt Lookup Decoding"; Yang et al. 2023, arXiv 2304.04487
Output     unchanged (the verifier decides)
Needs      committed token ids only; no weights, no hidden states
Hosts      transformers, vllm
Devices    cpu, cuda
Cost       host: a hash table, a few microseconds per step whatever the context; device: one pass over the tokens
Good for   answers that repeat their prompt: code edits, retrieval, summaries
Poor for   open-ended chat, where little repeats and a rejected draft costs a wider forward
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from accelplug._errors import OptionError
from accelplug.hooks.drafting import CommitView, DeviceDrafts, DeviceView, DrafterTraits, Drafts, DraftView, IntArray
from accelplug.hooks.options import option


class _Index:
    """One request's n-grams: for each size, n-gram -> position of the token that followed it most recently."""

    def __init__(self, sizes: range) -> None:
        self.sizes = sizes
        self.tokens: list[int] = []
        self.tables: list[dict[tuple[int, ...], int]] = [{} for _ in sizes]

    def extend(self, history: IntArray) -> None:
        """Add the n-grams that the new tokens followed; the one at the very end has no follower yet."""
        first = len(self.tokens)
        self.tokens += history[first:].tolist()
        tokens, end = self.tokens, len(self.tokens)
        if end - first > 32:
            self._extend_bulk(first)
            return
        for size, table in zip(self.sizes, self.tables, strict=True):
            for follower in range(max(first, size), end):
                table[tuple(tokens[follower - size : follower])] = follower

    def _extend_bulk(self, first: int) -> None:
        """Do the same for a prompt, ten times faster a token."""
        for size, table in zip(self.sizes, self.tables, strict=True):
            begin = max(first - size, 0)
            shifted = (self.tokens[begin + i :] for i in range(size))
            table.update(zip(zip(*shifted, strict=False), range(begin + size, len(self.tokens)), strict=False))

    def find(self, ahead: Sequence[int] = ()) -> int:
        """Return where the longest n-gram at the end was last followed by something, or -1.

        :param ahead: tokens that stand behind the indexed ones.
        """
        end = [*self.tokens[-self.sizes[-1] :], *ahead] if ahead else self.tokens
        for size, table in zip(reversed(self.sizes), reversed(self.tables), strict=True):
            if (position := table.get(tuple(end[-size:]))) is not None:
                return position
        return -1

    def following(self, count: int, ahead: Sequence[int] = ()) -> list[int]:
        """Return the tokens that followed there, repeated where the text ends before `count` of them."""
        begin = self.find(ahead) if count > 0 else -1
        if begin < 0:
            return []
        found = self.tokens[begin : begin + count]
        if ahead:
            found = [*found, *ahead][:count]
        return found if len(found) == count else (found * (count // len(found) + 1))[:count]


@dataclass(slots=True)
class PromptLookup:
    """Draft the continuation of the most recent earlier occurrence of the longest matching n-gram."""

    num_tokens: int = option(8, ge=1, le=128, per_request=True, help="tokens to draft")
    max_ngram: int = option(4, ge=1, le=16, help="longest n-gram to look for, tried first")
    min_ngram: int = option(2, ge=1, le=16, help="shortest n-gram that may match")
    traits: DrafterTraits = field(init=False, repr=False, default=DrafterTraits(continues=True))
    _indexes: dict[int, _Index] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.min_ngram > self.max_ngram:
            raise OptionError(f"prompt_lookup: min_ngram={self.min_ngram} exceeds max_ngram={self.max_ngram}; make it at most that")

    def start(self, slots: IntArray) -> None:
        """Begin with an empty index in each slot."""
        for slot in slots.tolist():
            self._indexes[slot] = _Index(range(self.min_ngram, self.max_ngram + 1))

    def finish(self, slots: IntArray) -> None:
        """Free the index of each slot."""
        for slot in slots.tolist():
            self._indexes.pop(slot, None)

    def observe(self, view: CommitView) -> None:
        """Index the n-grams that committed tokens followed."""
        for i, slot in enumerate(view.slots.tolist()):
            self._indexes[slot].extend(view.history(i))

    def propose(self, view: DraftView) -> Drafts:
        """Copy what followed; a match that overlaps the end repeats with its period."""
        wanted = view.parameters.get("num_tokens")
        most = itertools.repeat(self.num_tokens) if wanted is None else wanted.tolist()
        ends: Iterable[Sequence[int]] = itertools.repeat(())
        if view.ahead is not None and view.ahead.any():
            ends = [view.history(i)[-ahead:].tolist() if ahead else () for i, ahead in enumerate(view.ahead.tolist())]
        asked = zip(view.slots.tolist(), view.budgets.tolist(), most, ends, strict=False)
        return Drafts.chains([self._indexes[slot].following(min(budget, own), end) for slot, budget, own, end in asked])

    def propose_on_device(self, view: DeviceView) -> DeviceDrafts:
        """Do the same with tensor operations of fixed shapes: longest match, then most recent."""
        import torch

        from accelplug.spec import on_device

        tokens, lengths = on_device.rows_of(view)
        matched = on_device.matches(tokens, lengths, self.max_ngram)
        place, found = on_device.best_places(matched, lengths, self.min_ngram, 1)
        counts = torch.where(found.squeeze(1), min(self.num_tokens, view.num_tokens), 0)
        return DeviceDrafts(on_device.following(tokens, lengths, place, view.num_tokens).squeeze(1).long(), counts.int())
