"""Gives the tests of `integration/vllm` the machine that these checks are for, and leaves out what it or its release cannot do."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

if find_spec("vllm") is not None:
    from packaging.version import Version
    from place import ENGINE, MACHINE, Machine, missing

    from accelplug.hosts.vllm.compat import V2_FROM

    from fixtures import *  # noqa: F403  # isort: skip  place puts their folder on the path

    @pytest.fixture(scope="session")
    def machine() -> Machine:
        return MACHINE

    def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
        """Skip, with one reason, all tests with an engine where none can run, and those of the V2 runner before it takes drafters."""
        reason, release = missing(), ENGINE.version() or "0"
        for item in items:
            if HERE not in item.path.parents or not item.path.name.startswith("test_vllm_"):
                continue
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
            elif "v2" in item.name and Version(release) < Version(V2_FROM):
                item.add_marker(pytest.mark.skip(reason=f"vLLM's V2 runner takes drafters from {V2_FROM} on, and {release} is installed"))
