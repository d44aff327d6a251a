"""Runs the engines of these tests on a CPU. Run with ``pytest integration/vllm``; one engine works at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures import *  # noqa: F403  every fixture, as pytest finds them in a conftest
from jobs import CPU
from machine import Machine

BY_HAND_HERE = ("test_rules[v2]", "test_a_plugins_drafts_that_were_drawn[v2-token_wise-True]")
"""Minutes in Triton's interpreter; V2 with asynchronous scheduling, which has the same sampler, runs them by default."""


@pytest.fixture(scope="session")
def machine() -> Machine:
    return CPU


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.name in BY_HAND_HERE and item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.by_hand)
