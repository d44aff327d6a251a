"""Real-world schemas by their instances, at the shares that hold for any sample of their corpus; skipped where the file is not at hand.

``python integration/constrained/test_development.py`` writes the counts of `results/development.json` again.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from functools import cache
from pathlib import Path

import pytest

from accelplug.cli.entry import main

HERE = Path(__file__).parent
SCHEMAS = HERE.parents[2] / "shared" / "data" / "maskbench" / "development.jsonl"
RATCHET = HERE / "results" / "development.json"
COUNTS = ("schemas", "right_by_mask", "right_with_check", "right", "refused", "wrong", "in_any_order", "walks", "walks_failed", "walks_stuck")

pytestmark = pytest.mark.skipif(not SCHEMAS.exists(), reason="maskbench is not beside this repository, in ../shared/data: it names no licence")


@cache
def summary():
    """Judge the file as a user would, and return its last line."""
    pytest.importorskip("llguidance")
    pytest.importorskip("mistral_common")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        main(["schema", str(SCHEMAS), "--json", "--walks", "4", "--forced"])
    return json.loads(said.getvalue().splitlines()[-1])["summary"]


def test_the_shares_hold():
    found = summary()
    assert found["right_by_mask"] >= 0.84 * found["schemas"]
    assert found["right"] >= 0.96 * found["schemas"]
    assert found["wrong"] == found["walks_stuck"] == 0
    assert found["walks"] > 2 * found["schemas"]
    assert found["walks_failed_share"] < 0.01


def test_no_count_gets_worse():
    found, before = summary(), json.loads(RATCHET.read_text())
    assert found["right_by_mask"] >= before["right_by_mask"]
    assert found["right"] >= before["right"]
    assert found["in_any_order"] <= before["in_any_order"]
    for way in ("spaced", "compact"):
        assert found[f"forced_share_{way}"] >= before[f"forced_share_{way}"] - 1e-3


if __name__ == "__main__":
    found = summary()
    RATCHET.parent.mkdir(exist_ok=True)
    kept = {name: value for name, value in found.items() if name in COUNTS or name.startswith("forced_share")}
    RATCHET.write_text(json.dumps(kept, indent=1) + "\n")
    sys.stdout.write(json.dumps(found) + "\n")
