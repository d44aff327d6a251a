"""Runs the engines of these tests on a CPU. Run with ``pytest integration/vllm``; one engine works at a time."""

from __future__ import annotations

import pytest
from fixtures import *  # noqa: F403  every fixture, as pytest finds them in a conftest
from jobs import CPU, engines_started
from machine import Machine

MOST = 9
"""Engines, of which those of `integration/cli`, `readme` and `stranger` come to six more."""


@pytest.fixture(scope="session")
def machine() -> Machine:
    return CPU


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"vLLM engines started by integration/vllm: {engines_started()}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where the tests that are not marked ``by_hand`` start more engines than they may; starting them is what takes the time."""
    if session.config.option.markexpr == "not by_hand" and engines_started() > MOST:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
