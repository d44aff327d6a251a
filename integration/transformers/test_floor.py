"""The oldest release of Transformers that is said to work does: part of the host's tests, on it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from accelplug.hosts.hf.compat import ENGINE

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("test_session.py", "test_edges.py", "test_greedy_exact.py", "test_encoder_decoder.py")
LEFT_OUT = "not every_row and not equals_plain and not hard_event"  # the long ones


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Put the release into a folder, without what it needs but for the one package whose range moved since."""
    folder = tmp_path_factory.mktemp("floor")
    wanted = [f"transformers=={ENGINE.tested_from}.*", "huggingface_hub>=1.5,<2"]
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *wanted],
        check=False,
        capture_output=True,
        text=True,
    )
    if pip.returncode:
        pytest.skip(f"pip cannot fetch {wanted[0]}: {pip.stderr.strip()[-200:]}")
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def test_the_oldest_release_passes(floor):
    found = subprocess.run(
        [sys.executable, "-c", "import transformers; print(transformers.__version__)"],
        env=floor,
        check=False,
        capture_output=True,
        text=True,
    )
    assert found.stdout.startswith(ENGINE.tested_from), found.stderr
    tests = [str(ROOT / "tests" / "hosts" / "hf" / name) for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-k", LEFT_OUT, *tests]
    done = subprocess.run(command, env=floor, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
