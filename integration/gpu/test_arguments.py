"""What engines and servers on a GPU would be told is what vLLM takes; this needs no GPU."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("vllm")

import accelplug_testbed
from jobs import RUNNERS
from machine import FURTHER, Cuda, flags
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

FURTHER_ARGUMENTS = ({}, {"attention_backend": "TRITON_ATTN", "compilation_config": {"custom_ops": ["none"]}})


@pytest.mark.parametrize("further", FURTHER_ARGUMENTS)
@pytest.mark.parametrize("runner", RUNNERS)
def test_a_server_is_told_what_an_engine_is(runner: str, further: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FURTHER, json.dumps(further))
    told, model = Cuda().arguments(runner), str(accelplug_testbed.path())
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    of_server = EngineArgs.from_cli_args(parser.parse_args(["--model", model, *flags(told)]))
    of_engine = EngineArgs(model=model, **told)
    assert {name: getattr(of_server, name) for name in told} == {name: getattr(of_engine, name) for name in told}
    assert (of_engine.enforce_eager, of_engine.async_scheduling) == (False, {"v1": None, "v2": False, "v2-async": True}[runner])


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_environment_asks_for_the_runner(runner: str) -> None:
    environment = Cuda().environment(runner, serve=True)
    assert environment["VLLM_USE_V2_MODEL_RUNNER"] == ("0" if runner == "v1" else "1")
    assert "v2_on_cpu" not in environment["PYTHONPATH"]
    assert environment["TRITON_F32_DEFAULT"] == "ieee"
