"""Several processes share the tests (``pytest -n 2 --dist loadgroup``): a file is one process's, and so are vLLM's engines, which are started once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

FIRST = "integration/vllm/"
"""What takes the longest begins at once."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep the order, and leave the other process its core: what torch computes here is small."""
    config.option.loadscopereorder = False
    if os.environ.get("PYTEST_XDIST_WORKER"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group the tests by file, those of vLLM's engines together and first, in the processes that run them."""
    if not config.getoption("loadgroup", default=False):
        return
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))
    for item, group in zip(items, _groups(items), strict=True):
        item.add_marker(pytest.mark.xdist_group(group))


def _groups(items: list[pytest.Item]) -> Iterator[str]:
    for item in items:
        yield FIRST if item.nodeid.startswith(FIRST) else item.nodeid.partition("::")[0]
