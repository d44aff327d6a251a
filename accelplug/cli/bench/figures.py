"""The arithmetic of a benchmark: copy ratios, medians, and how sure they are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

COPY_NGRAM: Final = 4
COPY_BINS: Final = (0.0, 0.5, 0.8, 0.95, 0.99)
"""Where bins of copy ratios begin; the last one holds what is copied whole."""
RESAMPLES: Final = 2000
CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and the interval that resampling puts around it."""

    median: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Return the three numbers as JSON values."""
        return {"median": self.median, "low": self.low, "high": self.high}


def copy_ratio(prompt: Sequence[int], output: Sequence[int], ngram: int = COPY_NGRAM) -> float:
    """Return the share of output tokens that end an n-gram which occurred before, in the prompt or in the output.

    It is what a drafter that only copies can hope for; 0 for no output.
    """
    tokens = [*prompt, *output]
    seen: set[tuple[int, ...]] = set()
    copied = 0
    for end in range(ngram, len(tokens) + 1):
        found = tuple(tokens[end - ngram : end])
        copied += end > len(prompt) and found in seen
        seen.add(found)
    return copied / len(output) if output else 0.0


def copy_bin(ratio: float) -> tuple[float, float]:
    """Return the bounds of the bin that holds a copy ratio; the upper one is outside it unless it is 1."""
    number = bisect_right(COPY_BINS, ratio)
    return COPY_BINS[number - 1], [*COPY_BINS, 1.0][number]


def paired_ratio(base: Sequence[float], own: Sequence[float]) -> Interval:
    """Return how many times faster `own` was than `base`, from seconds of the same rounds.

    The ratio is taken round by round, so that what slowed a whole round down cancels; the interval is a percentile
    bootstrap of the median over rounds (Efron 1979), with a fixed seed.
    """
    ratios = [b / o for b, o in zip(base, own, strict=True)]
    low, high = bootstrap(ratios)
    return Interval(median(ratios), low, high)


def bootstrap(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the percentile interval of the median of `values`, by resampling them with replacement."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), size=(RESAMPLES, len(values)))  # [resamples, n]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.median(drawn, axis=1), (tail, 100 - tail))
    return float(low), float(high)
