"""The oldest and the newest release of Transformers that are said to work do: parts of the host's tests, each in a process of its own.

The environment holds a release between the two, which vLLM wants.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from accelplug.hosts.hf.compat import ENGINE

ROOT = Path(__file__).resolve().parents[2]
CHOSEN = "(not every_row and not equals_plain and not hard_event) or batches_equal"  # the long ones are left out
HEADS = "test_heads.py::test_greedy_output_and_candidates_are_transformers_own"
EXIT = "test_candidates.py::test_an_early_exit_leaves_the_model_alone"
PACKED = "test_continuous.py::test_every_packed_request_is_what_plain_generate_writes_alone"
OLDEST = (
    "test_session.py", "test_edges.py", "test_greedy_exact.py", "test_encoder_decoder.py", "test_several.py", "test_whole.py", "test_rotary.py",
    "test_left_out.py", "test_hidden.py", HEADS, EXIT, PACKED,
)  # fmt: skip
OF_NEWEST = "test_padding.py::test_padding_that_plain_generate_loses_sight_of_is_refused"
NEWEST = (*OLDEST, "test_static_cache.py", OF_NEWEST, "test_paths.py::test_batches_equal_plain_generate", "test_quantised_cache.py::test_hqq")
HQQ = ["hqq==0.2.8.post1", "termcolor==3.3.0"]
"""Not in the environment, where every process that loads Transformers' caches would load it too, and with it most of torch, for seconds."""
RELEASES = {
    "oldest": ([f"transformers=={ENGINE.tested_from}.*", "huggingface_hub>=1.5,<2"], OLDEST),  # and the one package whose range moved since
    "newest": ([f"transformers{ENGINE.tested_range}", *HQQ], NEWEST),
}


@pytest.mark.parametrize("which", RELEASES)
def test_a_release_at_either_end_passes(tmp_path, which):
    wanted, tests = RELEASES[which]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(tmp_path), *wanted]
    fetched = subprocess.run(pip, check=False, capture_output=True, text=True)
    if fetched.returncode:
        pytest.skip(f"pip cannot fetch {wanted[0]}: {fetched.stderr.strip()[-200:]}")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    print_version = "import transformers; print('.'.join(transformers.__version__.split('.')[:2]))"
    found = subprocess.run([sys.executable, "-c", print_version], env=environment, check=False, capture_output=True, text=True)
    assert found.stdout.strip() == (ENGINE.tested_from if which == "oldest" else newest()), found.stderr
    paths = [str(ROOT / "tests" / "hosts" / "hf" / name) for name in tests]
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "--tb=short", "-p", "no:cacheprovider", "-k", CHOSEN, *paths]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert which == "oldest" or "needs hqq" not in done.stdout


def newest() -> str:
    """Return the last minor release in the tested range."""
    major, minor = ENGINE.tested_below.split(".")
    return f"{major}.{int(minor) - 1}"
