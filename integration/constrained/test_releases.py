"""The oldest and the newest releases of the grammar engines that may be installed pass the tests of grammars, each in a process of its own.

The environment holds those that vLLM wants, and pip gives the newest to whoever installs without vLLM.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ("llguidance", "xgrammar", "outlines-core")


def wanted(which: str) -> list[str]:
    """Return what pip is asked for, from the ranges of the extra: their lower ends, or as they are."""
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["grammar"]
    ranges = [one for text in extra if (one := Requirement(text)).name in ENGINES]
    assert len(ranges) == len(ENGINES)
    if which == "newest":
        return [str(one) for one in ranges]
    return [f"{one.name}=={next(bound.version for bound in one.specifier if bound.operator == '>=')}" for one in ranges]


@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_releases_at_either_end_pass(which: str, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(tmp_path), *wanted(which)]
    fetched = subprocess.run(pip, check=False, capture_output=True, text=True)
    if fetched.returncode:
        pytest.skip(f"pip cannot fetch {wanted(which)}: {fetched.stderr.strip()[-200:]}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", str(ROOT / "tests" / "constrained")]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=False, capture_output=True, text=True)
    print(sorted(path.name for path in tmp_path.glob("*.dist-info")), done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout[-3000:]
