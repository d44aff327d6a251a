"""Where the end of every request's tokens stood before, found on the device: operations of fixed shapes, none of which waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from accelplug.hooks.drafting import DeviceView


def rows_of(view: DeviceView) -> tuple[Tensor, Tensor]:
    """Return every request's tokens, [num_reqs, width] int32, and how many they are, [num_reqs, 1] int64."""
    return view.tokens[view.slots], view.lengths.long().unsqueeze(1)


def last(tokens: Tensor, lengths: Tensor, count: int) -> Tensor:
    """Return each row's last tokens, the very last one first, [num_reqs, count]; where a row has fewer, its first token again."""
    return tokens.gather(1, (lengths - 1 - torch.arange(count, device=tokens.device)).clamp(min=0))


def matches(tokens: Tensor, lengths: Tensor, longest: int) -> Tensor:
    """Return how many tokens before each place equal the last ones of its row, at most `longest`, [num_reqs, width] int32.

    A place is the position of the token that followed; from a row's length on there is none, and 0 is returned.
    """
    width = tokens.shape[1]
    run = torch.arange(width, device=tokens.device) < lengths
    matched, tail = torch.zeros_like(tokens), last(tokens, lengths, longest)
    for n in range(1, min(longest, width - 1) + 1):
        run[:, n - 1] = False  # fewer than n tokens stand before it
        run[:, n:].logical_and_(tokens[:, :-n] == tail[:, n - 1 : n])
        matched += run
    return matched


def best_places(matched: Tensor, lengths: Tensor, least: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the places of the longest matches, among equal ones the newest first, and which of them are places at all.

    :param matched: what `matches` returned.
    :param least: the shortest match that counts.
    :returns: [num_reqs, count] each, `count` being the width at most; in place of a missing one the row's last token.
    """
    width = matched.shape[1]
    score = torch.where(matched >= least, matched.long() * width + torch.arange(width, device=matched.device), -1)
    best = score.topk(min(count, width)).values
    found = best >= 0
    return torch.where(found, best % width, (lengths - 1).clamp(min=0)), found


def match_lengths(tokens: Tensor, lengths: Tensor, places: Tensor, longest: int) -> Tensor:
    """Return how many tokens before a few places equal the last ones of their row, at most `longest`, [num_reqs, num_places] int64."""
    before = places.unsqueeze(2) - 1 - torch.arange(longest, device=tokens.device)
    there = _at(tokens, before.clamp(min=0))
    same = (there == last(tokens, lengths, longest).unsqueeze(1)) & (before >= 0)
    return same.cumprod(2).sum(2)


def following(tokens: Tensor, lengths: Tensor, places: Tensor, count: int) -> Tensor:
    """Return the tokens from each place on, [num_reqs, num_places, count]; where a row ends they repeat from the place on."""
    period = (lengths - places).clamp(min=1).unsqueeze(2)
    return _at(tokens, places.unsqueeze(2) + torch.arange(count, device=tokens.device) % period)


def through_first(tokens: Tensor, counts: Tensor, ends: Sequence[int]) -> Tensor:
    """Return how many of the first `counts` tokens stand before or at the first one that ends a text, [num_reqs]."""
    is_end = torch.zeros_like(tokens, dtype=torch.bool)
    for end in ends:
        is_end |= tokens == end
    count = tokens.shape[1]
    first = torch.where(is_end, torch.arange(1, count + 1, device=tokens.device), count).amin(1)
    return torch.minimum(counts, first)


def _at(tokens: Tensor, positions: Tensor) -> Tensor:
    return tokens.gather(1, positions.flatten(1)).view(positions.shape)
