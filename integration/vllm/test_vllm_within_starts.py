"""Behind all others of this folder: what they took, which is mostly the starting of engines."""

from __future__ import annotations

import pytest
from jobs import engines_started

MOST = 9
"""Engines, of which those of `integration/cli`, `readme` and `stranger` come to six more."""


def test_no_more_engines_are_started_than_may_be(pytestconfig: pytest.Config) -> None:
    """Those of the tests that are not marked ``by_hand``."""
    if pytestconfig.option.markexpr != "not by_hand" or not (started := engines_started()):
        pytest.skip("no engines were started, or all of them by hand")
    assert started <= MOST
