"""The samplers that stand in a runner's place, without an engine: the target's distribution, and the same tokens for the same seeds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from jobs import HERE, environment
from scipy.stats import chisquare

NEVER = 1e-4


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_samplers(runner: str, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    command = [sys.executable, HERE / "drive_samplers.py", runner, result]
    done = subprocess.run(command, env=environment(runner), capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(result.read_text())
    if runner == "v2":
        assert found["kernels"] == {"ngram": [[3, 4, 1], [7, 7, 7]], "allowed": [[0, 2], list(range(40)), list(range(33))]}
        padded = {"drafts": [[40, 41], [2, 2], [40, 6]], "real": [0, 0, 2, 1], "kept": [0, 0, 2, 1]}
        assert found["padded"] == padded, "no padding is accepted"
    for rule in ("candidates", "paths"):
        outputs = found["runs"][rule]
        assert {len(output) for output in outputs} == {1, 2, 3}, "drafts failed and held"
        for depth, row in enumerate(found["target"]):
            assert p_value(row, Counter(output[depth] for output in outputs if output[:depth] == found["drafts"][:depth] and len(output) > depth)) > NEVER
        seeded = found["runs"][f"{rule}, seeded"]
        assert all(output == seeded[i % 7] for i, output in enumerate(seeded)), "the same seed, the same tokens"
        assert len({tuple(output) for output in seeded}) > 1


def p_value(row: list[float], counts: Counter[int]) -> float:
    """Return the chi-square test's p-value of the tokens behind one prefix."""
    possible = [token for token, probability in enumerate(row) if probability > 0]
    assert set(counts) <= set(possible), "a token outside top-k"
    assert counts.total() > 150
    return float(chisquare([counts[token] for token in possible], [row[token] * counts.total() for token in possible]).pvalue)
