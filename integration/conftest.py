"""Two processes share the tests under ``pytest -n 2``: a file is one process's, and so are vLLM's engines, which are started once."""

from __future__ import annotations

import os
from typing import Any

import pytest

FIRST = "integration/vllm/"
"""What takes the longest begins at once."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep the order, and leave the other process its core: what torch computes here is small."""
    config.option.loadscopereorder = False
    if os.environ.get("PYTEST_XDIST_WORKER"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a process begin with vLLM's engines, where there are several."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share out files, those of vLLM's engines together."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return FIRST if nodeid.startswith(FIRST) else nodeid.partition("::")[0]

    return Files(config, log)
