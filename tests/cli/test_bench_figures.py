"""The arithmetic of ``accelplug bench``: intervals that hold, ratios that are paired, copy ratios."""

from __future__ import annotations

import numpy as np
import pytest

from accelplug.cli.bench.figures import bootstrap, copy_ratio, paired_ratio


def test_the_interval_covers_the_true_median_as_often_as_it_says():
    draw = np.random.default_rng(1)
    intervals = [bootstrap(list(np.exp(draw.normal(size=25)))) for _ in range(300)]  # the median of a log-normal is 1
    covered = np.mean([low <= 1 <= high for low, high in intervals])
    assert 0.91 <= covered <= 0.99
    wider = [bootstrap(list(np.exp(draw.normal(size=9)))) for _ in range(100)]
    assert np.median([high - low for low, high in wider]) > np.median([high - low for low, high in intervals])


def test_the_interval_of_equal_values_is_that_value():
    assert bootstrap([2.5] * 7) == (2.5, 2.5)
    assert bootstrap([3.0]) == (3.0, 3.0)


def test_the_interval_holds_the_median_and_stays_among_the_values():
    found = paired_ratio([4.0, 6.0, 5.0, 9.0, 7.0], [1.0, 2.0, 2.5, 3.0, 2.0])
    assert 2.0 <= found.low <= found.median == 3.0 <= found.high <= 4.0
    assert found == paired_ratio([4.0, 6.0, 5.0, 9.0, 7.0], [1.0, 2.0, 2.5, 3.0, 2.0]), "a fixed seed"


def test_what_slows_whole_rounds_down_cancels():
    slow = [1.0, 5.0, 1.3, 40.0, 0.2]
    found = paired_ratio([3.0 * s for s in slow], [1.5 * s for s in slow])
    assert (found.low, found.median, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_rounds_that_are_not_pairs_are_a_bug():
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("prompt", "output", "ratio"),
    [
        ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], 3 / 6),  # the first three tokens end n-grams that begin in the prompt
        ([1, 2, 3, 4], [5, 6, 7, 8], 0.0),
        ([9], [1, 2, 3, 4, 1, 2, 3, 4], 1 / 8),  # copied from the output itself
        ([7] * 8, [7] * 5, 1.0),
        ([7] * 8, [], 0.0),
        ([1], [1], 0.0),
    ],
)
def test_the_copy_ratio_counts_tokens_that_end_a_known_ngram(prompt, output, ratio):
    assert copy_ratio(prompt, output) == pytest.approx(ratio)


def test_an_ngram_inside_the_prompt_alone_counts_for_nothing():
    assert copy_ratio([1, 2, 3, 4, 1, 2, 3, 4], [9]) == 0.0
