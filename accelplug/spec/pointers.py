"""Input copying on the device: where every request's output stands in a span of its prompt, kept in tensors of fixed shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from accelplug.hooks.drafting import DeviceDrafts
from accelplug.spec import on_device

if TYPE_CHECKING:
    from torch import Tensor

    from accelplug.hooks.drafting import DeviceView, IntArray

NOWHERE: Final = -1


def span(view: DeviceView, start: int, end: int | None) -> tuple[Tensor, Tensor]:
    """Return where each request's span begins and ends among its tokens, as a slice of its prompt would, [num_reqs, 1] each.

    :param start: of requests that set none, as `end`.
    """
    assert view.prompt_lengths is not None, "who asks has looked"
    prompts, given = view.prompt_lengths.long(), view.parameters
    begins = given.get("span_start", torch.full_like(prompts, start))
    ends = given.get("span_end", prompts if end is None else torch.full_like(prompts, end))
    both = torch.stack([begins, ends])
    counted = torch.where(both < 0, both + prompts, both).clamp(min=0).minimum(prompts).unsqueeze(2)
    return counted[0], counted[1]


class Pointers:
    """The place in the span that comes next, `NOWHERE` where the output has left it; for all slots.

    Beside it stand how many of the slot's tokens were followed so far, 0 for a new request, and the place behind the last one copied.

    :param near: so many tokens behind the last one copied are searched for the output's last, should no n-gram tell the place.
    """

    def __init__(self, view: DeviceView, max_ngram: int, near: int) -> None:
        self.max_ngram, self.near = max_ngram, near
        self.state = torch.zeros(3, view.tokens.shape[0], dtype=torch.int64, device=view.tokens.device)

    def start(self, slots: IntArray) -> None:
        """Begin anew in each slot, without copying anything to the device."""
        for slot in slots.tolist():
            self.state[:, slot] = 0

    def propose(self, view: DeviceView, begin: Tensor, end: Tensor, most: int) -> DeviceDrafts:
        """Follow what was committed since the last call, and copy on.

        :param begin: of each request's span, [num_reqs, 1]; as `end`.
        :param most: tokens to draft.
        """
        tokens, lengths = on_device.rows_of(view)
        assert view.prompt_lengths is not None, "who asks has looked"
        prompts = view.prompt_lengths.long().unsqueeze(1)
        seen, place, left = self.state[:, view.slots].unsqueeze(2)
        is_new = seen == 0
        seen, place, left = torch.where(is_new, prompts, seen), torch.where(is_new, begin, place), torch.where(is_new, begin, left)
        fresh, agreeing = lengths - seen, _agreeing(tokens, seen, place, lengths, end, view.num_tokens + 1)
        left = torch.where(agreeing > 0, place + agreeing, left)
        place = torch.where(agreeing < fresh, self._found(tokens, lengths, prompts, begin, end, left), place + agreeing)
        self.state[:, view.slots] = torch.stack([lengths, place, left]).squeeze(2)
        ahead = torch.arange(view.num_tokens, device=tokens.device)
        copied = tokens.gather(1, (place + ahead).minimum(end - 1).clamp(min=0)).long()
        counts = torch.where(place == NOWHERE, 0, end - place).clamp(min=0, max=min(most, view.num_tokens))
        return DeviceDrafts(copied, counts.squeeze(1).int())

    def _found(self, tokens: Tensor, lengths: Tensor, prompts: Tensor, begin: Tensor, end: Tensor, left: Tensor) -> Tensor:
        """Return the place behind the output's last tokens, where as many of them as tell stand in the span just once, else the nearest."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        matched = on_device.matches(tokens, lengths, self.max_ngram).long()
        matched = matched.minimum(places - begin).minimum(lengths - prompts).clamp(min=0) * (places <= end)
        longest = matched.amax(1, keepdim=True)
        is_longest = matched == longest
        # Where the longest match has one place, some n-gram stands there alone; where it has more, every n-gram stands in more.
        alone = (longest > 0) & (is_longest.sum(1, keepdim=True) == 1)
        positions = left + torch.arange(self.near, device=tokens.device)
        is_last = tokens.gather(1, positions.clamp(max=tokens.shape[1] - 1)) == on_device.last(tokens, lengths, 1)
        nearest = torch.where(is_last & (positions < end), positions + 1, tokens.shape[1] + 1).amin(1, keepdim=True)
        nearest = torch.where(nearest > tokens.shape[1], NOWHERE, nearest)
        return torch.where(alone, is_longest.long().argmax(1, keepdim=True), nearest)


def _agreeing(tokens: Tensor, seen: Tensor, place: Tensor, lengths: Tensor, end: Tensor, most: int) -> Tensor:
    """Return how many tokens from `seen` on, at most `most`, are those from `place` on, [num_reqs, 1]."""
    ahead, last = torch.arange(most, device=tokens.device), tokens.shape[1] - 1
    said, there = (tokens.gather(1, (start + ahead).clamp(min=0, max=last)) for start in (seen, place))
    is_open = (seen + ahead < lengths) & (place + ahead < end) & (place != NOWHERE)
    return ((said == there) & is_open).cumprod(1).sum(1, keepdim=True)
