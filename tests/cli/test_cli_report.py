"""What a measurement means: the pure part of ``accelplug run``."""

from __future__ import annotations

import dataclasses

import pytest

from accelplug.cli import report
from accelplug.cli.job import Measurement, Output

STATS = {"drafted": 4, "accepted": 3, "acceptance": 0.75, "tokens_per_forward": 2.0, "lossy_accepts": 0, "techniques": []}
PLAIN = [5, 6, 7, 8]


@pytest.fixture
def described(job):
    """Describe a run of these tokens against plain ones."""

    def describe(tokens=PLAIN, margins=(1.0, 2.0, 3.0, 4.0), plain=PLAIN, dtype="float32", **changes):
        side = None if plain is None else Output(plain, "plain", [2.0, 1.0, 4.0])
        measured = Measurement(Output(tokens, "text", [1.0, 0.5, 2.0]), side, margins and list(margins), STATS, dtype, "method", {})
        return report.document(dataclasses.replace(job, **changes), measured)

    return describe


def test_speeds_are_medians_and_the_ratio_is_theirs(described):
    found = described()
    assert (found["plain_tokens_per_s"], found["tokens_per_s"], found["ratio"]) == (2.0, 4.0, 2.0)


def test_equal_outputs_are_identical(described):
    found = described(margins=(1.0, 0.00005, 3.0, 4.0))
    assert (found["identical"], found["first_difference"], found["near_ties"], report.status(found)) == (True, None, 1, 0)
    assert report.verdict(found) == "identical to plain generation, 4 tokens; 1 near-tie (margin under 0.0001) on the way"


@pytest.mark.parametrize(("tokens", "position", "found_there"), [([5, 9, 7, 8], 1, 9), ([5, 6], 2, None), ([5, 6, 7, 8, 9], 4, 9)])
def test_the_first_difference_is_found_in_every_shape(described, tokens, position, found_there):
    parting = described(tokens)["first_difference"]
    assert (parting["position"], parting["accelerated"]) == (position, found_there)
    assert parting["plain"] == (PLAIN[position] if position < len(PLAIN) else None)
    assert parting["margin"] == (position + 1.0 if position < len(PLAIN) else None)


def test_a_real_difference_is_bad_news(described):
    found = described([5, 9, 7, 8])
    assert report.verdict(found) == "DIFFERENT from plain generation at token 1, where plain's two best logits are 2 apart"
    assert report.status(found) == 1


def test_a_difference_past_plains_end_has_no_margin_and_is_bad_news(described):
    found = described([5, 6, 7, 8, 9])
    assert report.status(found) == 1
    assert report.verdict(found) == "DIFFERENT from plain generation at token 4"


def test_a_near_tie_is_none(described):
    found = described([5, 9, 7, 8], margins=(1.0, 0.03, 3.0, 0.01), dtype="bfloat16")
    assert (found["identical"], report.status(found)) == (False, 0)
    assert report.verdict(found).startswith(
        "identical up to a near-tie at token 1, where plain's two best logits are 0.03 apart (bfloat16; 2 near-ties"
    )
    assert report.status(described([5, 9, 7, 8], margins=(1.0, 0.03, 3.0, 4.0))) == 1, "float32 does not excuse the same margin"


def test_sampling_claims_a_distribution_and_no_margins(described):
    found = described([5, 9, 7, 8], margins=None, temperature=0.8)
    assert (found["identical"], found["near_ties"], report.status(found)) == (False, None, 0)
    assert "keeps in distribution only" in report.verdict(found)


def test_a_lossy_run_may_differ(described):
    assert report.status(described([5, 9, 7, 8], allow_lossy=True)) == 0


def test_without_a_plain_run_nothing_is_claimed(described):
    found = described(plain=None, margins=None)
    assert [found[key] for key in ("ratio", "identical", "first_difference", "near_ties")] == [None] * 4
    assert report.verdict(found) == "not compared; add --compare"
    assert report.status(found) == 0
