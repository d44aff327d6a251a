"""Releases of which only the V1 runner takes drafters: V2 is refused there with the reason, and its seams are not expected."""

from __future__ import annotations

import re

import pytest

from accelplug import HostError
from accelplug.hosts.seams import Engine
from accelplug.hosts.vllm import compat, configure
from accelplug.hosts.vllm.settings import read_settings

pytest.importorskip("vllm")


@pytest.fixture(params=["0.28.0", "0.30.0+cpu", "0.31.0", "0.31.0+cpu"])
def older(request, monkeypatch) -> str:
    monkeypatch.setattr(Engine, "version", lambda self: request.param)
    return request.param


def test_v2_is_refused_with_the_reason(older, monkeypatch):
    monkeypatch.setattr("vllm.triton_utils.HAS_TRITON", True)
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    for runner in ("auto", "v2"):
        problem = configure._why_not_v2(read_settings({"drafter": "prompt_lookup", "runner": runner}))
        assert problem == f"vLLM {older} runs {compat.V1_ONLY}"


def test_v2s_seams_are_expected_from_0_32_on_alone(older, monkeypatch):
    assert compat.ENGINE.is_tested()
    later = {seam.path for seam in compat.AUDIT + compat.ANSWERS + compat.GRAMMARS + compat.LENGTHS + compat.V2}
    mislaid = {f"vllm.v1.sample.rejection_sampler:_{name}" for name in compat.LAUNCHERS}
    assert mislaid <= {seam.path for seam in compat.V1}
    paths = {seam.path for seam in compat.ENGINE.seams_here()}
    assert paths >= mislaid if older.startswith("0.30") else not paths & mislaid
    paths -= mislaid
    assert paths == {seam.path for seam in compat.FRONT_END + compat.WORKER + compat.V1} - later - mislaid
    monkeypatch.setattr(Engine, "version", lambda self: "0.32.0+cpu")
    assert {seam.path for seam in compat.ENGINE.seams_here()} - paths == later
    assert compat.ENGINE.restriction() is None


def test_a_rule_behind_vllms_drafter_on_v2_is_refused(older):
    class Config:
        speculative_config, use_v2_model_runner = object(), True

    with pytest.raises(HostError, match=r"verifier 'block' cannot be used: vLLM .* runs drafters and rules on the V1 .* set VLLM_USE_V2_MODEL_RUNNER=0"):
        configure._with_vllms_drafter(None, Config, read_settings({"verifier": "block"}))


@pytest.mark.parametrize("require", [compat.require_grammars, compat.require_audits, compat.require_answers, compat.require_lengths])
def test_grammars_and_audits_are_refused(older, require):
    with pytest.raises(HostError, match=rf"vllm {re.escape(older)} is outside the tested range >=0.32,<0.33; pip install 'vllm>=0.32,<0.33'"):
        require()
