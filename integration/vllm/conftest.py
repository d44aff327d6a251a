"""Fixtures for real vLLM engines in subprocesses. Run with ``pytest integration/vllm``; one engine lives at a time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from batches import ALL
from jobs import HERE, Run, engine, run_engines


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, small enough for Triton's interpreter."""
    return tiny_model.make(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH in which the distribution 'adversaries' is installed."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(HERE / "adversaries.py", folder)
    info = folder / "adversaries-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: adversaries\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text("[accelplug]\nadversaries = adversaries\n")
    return folder


@pytest.fixture(scope="session")
def run(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run engines in one subprocess and return what each did, by name."""

    def run(runner: str, *engines: object, **more: str) -> dict[str, object]:
        return run_engines(tmp_path_factory.mktemp("job"), site, runner, *engines, **more)

    return run


@pytest.fixture(scope="session")
def plain(run: Run, model_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """What vLLM generates without a drafter, batch by batch: one engine for every module that compares with it."""
    done = run("v1", engine(model_dir, "plain", *ALL.values()))["plain"]
    return dict(zip(ALL, done["outputs"], strict=True))
