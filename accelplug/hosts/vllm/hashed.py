"""Random numbers that are hashed from seeds: the same on every tensor-parallel rank, without a generator that would have to be kept in step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

_AT_ONCE: Final = 64


def mixed(seeds: Tensor, *keys: Tensor | int) -> Tensor:
    """Return numbers of 64 bits that depend on the seeds and the keys alone, of the same shape, int64.

    Source: the finaliser of SplitMix64, Steele et al. 2014, "Fast splittable pseudorandom number generators", figure 15.

    :param seeds: int64.
    """
    for key in (*keys, 0):
        seeds = (seeds ^ key) + -7046029254386353131
        seeds = (seeds ^ _shifted(seeds, 30)) * -4658895280553007687
        seeds = (seeds ^ _shifted(seeds, 27)) * -7723592293110705685
        seeds = seeds ^ _shifted(seeds, 31)
    return seeds


def uniforms(seeds: Tensor, *keys: Tensor | int) -> Tensor:
    """Return numbers of [0, 1) that depend on the seeds and the keys alone, of the same shape."""
    return _shifted(mixed(seeds, *keys), 11).double() * 2.0**-53


def stream(seed: Tensor) -> Iterator[float]:
    """Return numbers of [0, 1), one after the other, that depend on the seed [] alone, which lies in host memory."""
    begin = 0
    while True:
        yield from uniforms(seed, torch.arange(begin, begin + _AT_ONCE)).tolist()
        begin += _AT_ONCE


def _shifted(values: Tensor, by: int) -> Tensor:
    """Shift to the right as if there were no sign."""
    return (values >> by) & ((1 << (64 - by)) - 1)
