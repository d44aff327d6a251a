"""Runs the engines of these tests on a CPU. Run with ``pytest integration/vllm``; one engine works at a time."""

from __future__ import annotations

import pytest
from fixtures import *  # noqa: F403  every fixture, as pytest finds them in a conftest
from jobs import CPU
from machine import Machine


@pytest.fixture(scope="session")
def machine() -> Machine:
    return CPU
