"""Suffix decoding: draft what most often followed the last tokens before, the further the longer they match and the longer such drafts have lasted.

Paper      Oliaro et al. 2024, "SuffixDecoding", arXiv 2411.04975; here over the request's own prompt and output, and finished answers on demand
Output     unchanged (the verifier decides)
Needs      committed token ids only; trees where shape="tree"
Hosts      transformers, vllm
Devices    cpu, cuda
Cost       host: two hash tables, tens of microseconds a step, 0.4 KB per token, 0.3 KB of finished answers; device: a pass over the tokens, no memory
Good for   agents, edits and loops: long repeats are drafted far ahead, doubtful ones hardly, and none where they keep going wrong
Poor for   open-ended chat, where little repeats
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from typing import Final, Literal

from accelplug.hooks.context import BuildContext
from accelplug.hooks.drafting import CommitView, DeviceDrafts, DeviceView, DrafterTraits, Drafts, DraftView, IntArray
from accelplug.hooks.options import option
from accelplug.spec.record import Record
from accelplug.spec.texts import LONG, Finished, Found, Guess, Text, grow

_PLACES: Final = 16
"""On the device every place is compared with every other, so there are at most so many."""


@dataclass(slots=True)
class Suffix:
    """Draft the likeliest continuation by counts; of all match lengths, the one from which most tokens are expected.

    A token's chance is the share of its parent's places that go on with it, times how likely the request's copies have gone on lately.
    On the device the longest match is taken, and the chance is the share alone: how copies went is not kept there.
    """

    num_tokens: int = option(64, ge=1, le=512, per_request=True, help="most tokens to draft")
    min_match: int = option(2, ge=1, le=16, help="shortest match: how many of the last tokens must have occurred before")
    max_match: int = option(64, ge=1, le=256, help="longest match; longer ones count as this long")
    factor: float = option(4.0, ge=0, le=16, help="tokens drafted for each token matched")
    min_chance: float = option(0.3, ge=0, le=1, help="least probability of a drafted token, by counts and by how drafts went lately")
    max_places: int = option(32, ge=1, le=1024, help="how many earlier occurrences are counted, the newest first")
    shape: Literal["chain", "tree"] = option("chain", help="'chain', or 'tree' of every likely continuation")
    scope: Literal["request", "process"] = option("request", help="'process' drafts from the answers of finished requests, too")
    memory: int = option(64, ge=1, le=65536, help="of scope='process': about how many MB of answers to keep")
    context: InitVar[BuildContext | None] = None
    finished: Finished = field(init=False, repr=False)
    _ends: tuple[int, ...] = field(init=False, repr=False)
    _texts: dict[int, Text] = field(init=False, repr=False, default_factory=dict)
    _records: dict[int, Record] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self, context: BuildContext | None) -> None:
        self._ends = () if context is None else context.eos_token_ids
        self.finished = Finished(self.memory << 20, self.max_places)

    @property
    def traits(self) -> DrafterTraits:
        """The options decide the shape and the scope."""
        return DrafterTraits(shape=self.shape, scope=self.scope, continues=True)

    @property
    def kept_bytes(self) -> int:
        """About what the answers of finished requests take."""
        return self.finished.bytes

    def start(self, slots: IntArray) -> None:
        """Begin with an empty text in each slot."""
        for slot in slots.tolist():
            self._texts[slot], self._records[slot] = Text(self.min_match), Record()

    def finish(self, slots: IntArray) -> None:
        """Free the text of each slot, and keep its answer where the user wants that."""
        for slot in slots.tolist():
            text = self._texts.pop(slot, None)
            self._records.pop(slot, None)
            if text is not None and self.scope == "process":
                self.finished.add(text.tokens[max(text.prompt - LONG, 0) :])

    def observe(self, view: CommitView) -> None:
        """Add what was committed."""
        for i, slot in enumerate(view.slots.tolist()):
            text, history = self._texts[slot], view.history(i)
            if len(history) > len(text.tokens):
                self._records[slot].learn(history[len(text.tokens) :].tolist() if text.tokens else ())
            text.extend(history)

    def propose(self, view: DraftView) -> Drafts:
        """Weigh the continuations after every match length."""
        wanted = view.parameters.get("num_tokens")
        guesses = []
        for i, slot in enumerate(view.slots.tolist()):
            most = min(int(view.budgets[i]), self.num_tokens if wanted is None else int(wanted[i]))
            ahead = 0 if view.ahead is None else int(view.ahead[i])
            guesses.append(self._guess(slot, most, view.history(i)[-ahead:].tolist() if ahead else []) if most > 0 else ([], []))
        return Drafts.trees(guesses) if self.shape == "tree" else Drafts.chains([tokens for tokens, _ in guesses])

    def _guess(self, slot: int, most: int, ahead: list[int]) -> Guess:
        """Return the best guess, unless such guesses have kept going wrong in this request."""
        text, record = self._texts[slot], self._records[slot]
        best = self._best(text.places(self.max_places, self.max_match, ahead), text.tokens, most, record.goes_on)
        if self.scope != "request":
            tail = [*text.tokens[-max(self.max_match, LONG) :], *ahead]
            others = self._best(*self.finished.find(tail[-max(self.max_match, LONG) :], most), most, record.goes_on)
            best = max(best, others, key=lambda found: found[0])
        _, length, guess = best
        if not guess[0]:
            return [], []
        by = length.bit_length()
        came_true = record.rates.get(by, 1.0) if ahead else record.guess(by, guess)  # the next committed token says nothing of this guess
        return guess if came_true >= self.min_chance else ([], [])

    def _best(self, found: Found, text: list[int], most: int, goes_on: float) -> tuple[float, int, Guess]:
        """Return how many tokens are expected to be right, the match length they follow, and the guess, after the best one."""
        best: tuple[float, int, Guess] = (0.0, 0, ([], []))
        for length in sorted({length for length, _ in found}, reverse=True):
            if (limit := min(most, int(length * self.factor))) <= best[0]:
                break  # shorter matches can only draft less
            places = [place for matched, place in found if matched >= length]
            branches = None if self.shape == "tree" else 1
            guess, score = grow(text, places, limit, self.min_chance, branches, goes_on, self._ends)
            best = max(best, (score, length, guess), key=lambda found: found[0])
        return best

    @property
    def propose_on_device(self) -> Callable[[DeviceView], DeviceDrafts] | None:
        """Drafting on the device; None for trees, and for finished answers, which are kept in host memory."""
        return self._longest if (self.shape, self.scope) == ("chain", "request") else None

    def _longest(self, view: DeviceView) -> DeviceDrafts:
        """Of the longest match's newest places, draft what follows the one that the others agree with furthest."""
        import torch

        from accelplug.spec import on_device

        tokens, lengths = on_device.rows_of(view)
        near = max(self.min_match, LONG)
        matched = on_device.matches(tokens, lengths, near)
        places, found = on_device.best_places(matched, lengths, self.min_match, min(self.max_places, _PLACES))
        length = on_device.match_lengths(tokens, lengths, places, max(self.max_match, near)) * found
        longest = length.amax(1, keepdim=True)
        found = found & (length == longest)
        guesses = on_device.following(tokens, lengths, places, view.num_tokens)
        same = (guesses.unsqueeze(1) == guesses.unsqueeze(2)).cumprod(3, dtype=torch.uint8) * found[:, None, :, None]
        agreeing = same.sum(2)  # [num_reqs, num_places, num_tokens] how many places go on as this one does, so far
        limit = (longest.double() * self.factor).long().clamp(max=self.num_tokens).unsqueeze(2)
        chance = agreeing.double() / found.sum(1).clamp(min=1)[:, None, None]
        likely = (chance >= self.min_chance) & (torch.arange(view.num_tokens, device=tokens.device) < limit)
        right = torch.where(found, (agreeing * likely).sum(2), -1)
        rank = torch.arange(right.shape[1], 0, -1, device=tokens.device)
        best = (right * (_PLACES + 1) + rank).argmax(1)[:, None, None].expand(-1, 1, view.num_tokens)
        guess, counts = guesses.gather(1, best).squeeze(1).long(), likely.gather(1, best).sum((1, 2))
        return DeviceDrafts(guess, on_device.through_first(guess, counts, self._ends).int())
