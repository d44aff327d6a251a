"""Input copying: draft the rest of the input from the place that the output has reached, and find the place again after each change.

Paper      Ge et al. 2022, "Lossless Acceleration for Seq2seq Generation with Aggressive Decoding", arXiv 2205.10350, section 3.1
Output     unchanged (the verifier decides)
Needs      committed token ids only
Hosts      transformers, vllm
Devices    cpu, cuda
Cost       host: a table of the span's n-grams once per request, 0.35 KB per token of it, then microseconds a step; device: a pass over the tokens
Good for   answers that rewrite a part of their prompt from its beginning to its end: code edits, corrections
Poor for   answers that copy here and there, in another order: use prompt_lookup or suffix
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from accelplug._errors import PluginError
from accelplug.hooks.drafting import CommitView, DeviceDrafts, DeviceView, DrafterTraits, Drafts, DraftView, IntArray
from accelplug.hooks.options import option

if TYPE_CHECKING:
    from accelplug.spec.pointers import Pointers

_SEVERAL = -1
"""In place of a position: the n-gram stands in more than one."""

_NEAR = 8
"""So many tokens behind the last one copied are searched for the output's last, should no n-gram tell the place."""


class _Copying:
    """One request's source, and the position in it that comes next; None where the output has left it.

    :ivar seen: how many of the request's tokens were followed so far, its prompt included.
    :ivar left: the position behind the last token that was copied.
    """

    def __init__(self, source: list[int], max_ngram: int, seen: int) -> None:
        self.source, self.max_ngram, self.seen = source, max_ngram, seen
        self.behind: dict[tuple[int, ...], int] = {}  # n-gram -> the position behind its only occurrence
        for size in range(1, max_ngram + 1):
            shifted = (source[i:] for i in range(size))
            for end, gram in enumerate(zip(*shifted, strict=False), size):
                self.behind[gram] = _SEVERAL if gram in self.behind else end
        self.output: list[int] = []
        self.position: int | None = 0
        self.left = 0

    def advance(self, tokens: Sequence[int]) -> None:
        """Follow the output: along the source while it agrees, and from the place that fits where it does not."""
        self.seen += len(tokens)
        for token in tokens:
            self.output.append(token)
            at = self.position
            if at is not None and at < len(self.source) and self.source[at] == token:
                self.position = self.left = at + 1
            else:
                self.position = self._unique() or self._nearest(token)
        del self.output[: -self.max_ngram]

    def _unique(self) -> int | None:
        """Return the position behind the output's last tokens, by the fewest of them that stand in the source just once."""
        for size in range(1, min(self.max_ngram, len(self.output)) + 1):
            found = self.behind.get(tuple(self.output[-size:]))
            if found is None:  # nor does any longer one
                return None
            if found != _SEVERAL:
                return found
        return None

    def _nearest(self, token: int) -> int | None:
        """Return the position behind the token where it stands next, not far behind the last one that was copied."""
        near = self.source[self.left : self.left + _NEAR]
        return self.left + near.index(token) + 1 if token in near else None

    def moved(self, ahead: Sequence[int]) -> _Copying:
        """Return where the output would be behind tokens that are not committed."""
        found = copy.copy(self)
        found.output = list(self.output)
        found.advance(ahead)
        return found

    def rest(self, budget: int) -> list[int]:
        """Return what comes next in the source."""
        return [] if self.position is None or budget <= 0 else self.source[self.position : self.position + budget]


@dataclass(slots=True)
class InputCopy:
    """Copy on from the span of the prompt that the answer rewrites, by default the whole prompt.

    The prompt of an encoder-decoder model is what its encoder reads.

    Span positions count tokens of the prompt, without a batch's padding, negative ones from its end, as in a slice.
    """

    num_tokens: int = option(32, ge=1, le=512, per_request=True, help="most tokens to draft, up to the end of the span")
    span_start: int = option(0, per_request=True, help="where the span begins in the prompt")
    span_end: int | None = option(None, per_request=True, help="where it ends; None for the prompt's end")
    max_ngram: int = option(3, ge=1, le=16, help="longest n-gram of the output by which its place in the span is found again")
    traits: DrafterTraits = field(init=False, repr=False, default=DrafterTraits(continues=True))
    _prompts: dict[int, int] = field(init=False, repr=False, default_factory=dict)  # slot -> length of its prompt
    _slots: dict[int, _Copying] = field(init=False, repr=False, default_factory=dict)
    _pointers: Pointers | None = field(init=False, repr=False, default=None)  # the same on the device, once it is asked there

    def start(self, slots: IntArray) -> None:
        """Begin without a source in each slot: prompt and span come with the first step."""
        self.finish(slots)
        if self._pointers is not None:
            self._pointers.start(slots)

    def finish(self, slots: IntArray) -> None:
        """Free the source of each slot."""
        for slot in slots.tolist():
            self._prompts.pop(slot, None)
            self._slots.pop(slot, None)

    def observe(self, view: CommitView) -> None:
        """Note where each prompt ends: the first commit is all of it and one token of the answer."""
        for slot, length in zip(view.slots.tolist(), view.lengths.tolist(), strict=True):
            self._prompts.setdefault(slot, length - 1)

    def propose(self, view: DraftView) -> Drafts:
        """Follow what was committed since, then copy on."""
        wanted = view.parameters.get("num_tokens")
        guesses = []
        for i, slot in enumerate(view.slots.tolist()):
            tokens = view.history(i)
            if slot not in self._slots:
                self._slots[slot] = self._begin(view, i, tokens[: self._prompts[slot]])
            copying = self._slots[slot]
            end = len(tokens) - (0 if view.ahead is None else int(view.ahead[i]))
            copying.advance(tokens[copying.seen : end].tolist())
            if end < len(tokens):
                copying = copying.moved(tokens[end:].tolist())
            guesses.append(copying.rest(min(int(view.budgets[i]), self.num_tokens if wanted is None else int(wanted[i]))))
        return Drafts.chains(guesses)

    def _begin(self, view: DraftView, i: int, prompt: IntArray) -> _Copying:
        start, end = (view.parameters.get(name) for name in ("span_start", "span_end"))
        span = slice(self.span_start if start is None else start[i], self.span_end if end is None else end[i])  # an end of None is one
        given = prompt if view.inputs is None else view.inputs[i]
        return _Copying(given[span].tolist(), self.max_ngram, len(prompt))

    def propose_on_device(self, view: DeviceView) -> DeviceDrafts:
        """Do the same with tensor operations; of several tokens behind a change, the last ones alone tell where copying goes on."""
        from accelplug.spec.pointers import Pointers, span

        if view.prompt_lengths is None:
            raise PluginError("input_copy copies from prompts, and this host's DeviceView has no prompt_lengths; let it tell them")
        if self._pointers is None:
            self._pointers = Pointers(view, self.max_ngram, _NEAR)
        begin, end = span(view, self.span_start, self.span_end)
        return self._pointers.propose(view, begin, end, self.num_tokens)
