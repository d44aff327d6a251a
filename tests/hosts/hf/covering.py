"""Choices of settings in which every pair of values of two settings occurs together."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

Case = dict[str, str]


def pairs(case: Mapping[str, str]) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    """Return the pairs of values in a case."""
    return set(itertools.combinations(sorted(case.items()), 2))


def covering(settings: Mapping[str, Sequence[str]], seed: int = 0) -> list[Case]:
    """Return cases that cover every pair: each begins with a pair not seen yet and takes, setting by setting, the value that covers most."""
    rng, names = random.Random(seed), sorted(settings)
    left = {
        tuple(zip((one, other), values, strict=True))
        for one, other in itertools.combinations(names, 2)
        for values in itertools.product(settings[one], settings[other])
    }
    cases = []
    while left:
        case = dict(rng.choice(sorted(left)))
        for name in rng.sample(names, len(names)):
            if name not in case:
                values = rng.sample(list(settings[name]), len(settings[name]))
                case[name] = max(values, key=lambda value: len(left & pairs({**case, name: value})))
        left -= pairs(case)
        cases.append(case)
    return cases
