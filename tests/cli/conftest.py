from __future__ import annotations

import pytest

from accelplug.cli.job import Job


@pytest.fixture
def job() -> Job:
    """A greedy comparison of three rounds; nothing in it is loaded."""
    return Job(
        host="transformers", model="model", prompt="prompt", drafter="prompt_lookup", verifier="token_wise", max_new_tokens=8,
        temperature=0.0, seed=0, dtype="auto", compare=True, rounds=3, threads=None, allow_lossy=False,
    )  # fmt: skip
