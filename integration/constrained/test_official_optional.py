"""The official JSON Schema test suite's optional files, apart: formats that constrain, expressions, what drafts leave open.

`tests/constrained/official_optional.json` holds the counts; ``python integration/constrained/test_official_optional.py`` writes them again.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest
from test_official_suite import DRAFTS, RATCHET, SUITE, best

OPTIONAL = RATCHET.with_name("official_optional.json")
DESCRIBES = {"draft7/optional/content.json": 4}
"""Where a keyword describes, in our reading, and the suite would have it constrain: contentMediaType and contentEncoding."""

pytestmark = pytest.mark.skipif(not SUITE.exists(), reason="the official test suite is not beside this repository, in ../shared/data")


def files():
    return [path.relative_to(SUITE).as_posix() for draft in DRAFTS for path in sorted((SUITE / draft / "optional").rglob("*.json"))]


def judged(name):
    """Count the tests of one file by what decides them; `format` constrains where the file is about that."""
    counts = Counter()
    for group in json.loads((SUITE / name).read_text()):
        schema = group["schema"]
        if isinstance(schema, dict):
            schema = {"$schema": DRAFTS[name.partition("/")[0]], **schema}
        counts.update(best(schema, group["tests"], "assert" if "/format" in name else "annotate"))
    return dict(sorted(counts.items()))


@pytest.mark.parametrize("name", files() if SUITE.exists() else [])
def test_no_file_gets_worse(name):
    pytest.importorskip("llguidance")
    found, before = judged(name), json.loads(OPTIONAL.read_text())["files"][name]
    assert found.get("wrong", 0) == DESCRIBES.get(name, 0)
    assert found.get("mask", 0) >= before.get("mask", 0)
    assert found.get("valid refused", 0) <= before.get("valid refused", 0)
    assert sum(found.values()) == sum(before.values())


if __name__ == "__main__":
    if not SUITE.exists():
        sys.exit(f"{SUITE} is not there")
    found = {name: judged(name) for name in files()}
    totals = sum((Counter(counts) for counts in found.values()), Counter())
    OPTIONAL.write_text(json.dumps({"files": found, "totals": dict(totals)}, indent=1) + "\n")
    print(totals)
