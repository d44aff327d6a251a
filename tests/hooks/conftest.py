from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import installed
import numpy as np
import pytest

from accelplug.hooks import BuildContext, Owner, Technique


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Install distributions for one test, which loads these and no others; their modules are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def install(distribution: str, source: str, **more: str) -> str:
        module = installed.install(tmp_path, distribution, source, **more)
        monkeypatch.setenv("ACCELPLUG_PLUGINS", installed.listed(tmp_path))
        return module

    yield install
    for name in set(sys.modules) - before:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


@pytest.fixture
def context() -> BuildContext:
    """An engine's context without an engine: the registry passes it on and looks at none of it."""

    def absent() -> object:
        raise AssertionError("no test of the registry reads weights")

    return BuildContext("transformers", 32, (0,), np.float32, "cpu", 8, 64, 4, absent, absent, absent)  # type: ignore[arg-type]


@pytest.fixture
def drafter() -> Callable[[object], Technique]:
    """Dress an object as a built drafter of a distribution named 'strange'."""
    return lambda instance: Technique("drafter", "odd", Owner("odd", "strange", "2.0"), instance, type(instance), "odd")
