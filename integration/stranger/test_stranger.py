"""Somebody who has only wheels: accelplug's and a third party's, in an environment that never saw this repository.

The tests share one environment and run in order: the last ones take the wheels out again.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import accelplug_testbed
import pytest
import transformers

RUNNERS = ("v1", "v2", "v2-async")


@pytest.fixture(scope="session")
def environments(stranger):
    """Environment variables per runner, from the installed wheel; they outlive it."""
    code = f"import json; from accelplug.testing.vllm_processes import vllm_environment as e; print(json.dumps({{r: e(runner=r) for r in {RUNNERS}}}))"
    return json.loads(stranger.must("-c", code))


@pytest.fixture(scope="session")
def plain(stranger):
    """The greedy text, as Transformers generates it."""
    return stranger.drive("transformers")["plain"]


def test_the_plugin_is_as_small_as_the_documentation_says():
    source = (Path(__file__).parents[1] / "plugins/accelplug-echo/accelplug_echo.py").read_text()
    code = [line for line in source.splitlines() if line.strip() and not line.startswith('"""')]
    assert len(code) < 15


def test_the_wheel_holds_the_package_and_nothing_else(stranger):
    names = zipfile.ZipFile(stranger.wheels["accelplug"]).namelist()
    assert {"accelplug/py.typed", "accelplug/cli/entry.py", "accelplug/hosts/hf/loop.py"} <= set(names)
    assert {name.split("/")[0] for name in names} == {"accelplug", names[-1].split("/")[0]}


def test_what_is_imported_is_the_wheel(stranger):
    where = stranger.must("-c", "import accelplug, accelplug_echo; print(accelplug.__file__, accelplug_echo.__file__)").split()
    assert all(str(stranger.folder / "venv") in path for path in where)


def test_the_stranger_has_the_same_transformers(stranger):
    assert stranger.must("-c", "import transformers; print(transformers.__version__)").strip() == transformers.__version__


def test_the_plugin_is_listed(stranger):
    document = json.loads(stranger.must("-m", "accelplug", "plugins", "--json"))
    (echo,) = [row for row in document["plugins"] if row["name"] == "echo"]
    assert (echo["distribution"], echo["version"], echo["kind"]) == ("accelplug-echo", "1.2.3", "drafter")
    assert [option["name"] for option in echo["options"]] == ["times"]
    assert (document["broken"], document["conflicts"]) == ([], [])


def test_the_plugins_own_tests_pass(stranger):
    """The conformance kit comes out of the wheel, and the plugin under its installed name."""
    printed = stranger.must("-m", "pytest", "-q", "--import-mode=importlib", stranger.folder / "echo" / "test_echo.py")
    assert " passed" in printed
    assert "failed" not in printed


def test_on_transformers(stranger):
    stranger.forget_calls()
    found = stranger.drive("transformers")
    assert str(stranger.folder / "venv") in found["accelplug"]
    assert found["tokens"] == found["plain"]
    assert found["stats"]["drafted"] > 0
    assert found["stats"]["techniques"][0]["distribution"] == "accelplug-echo"
    # Asked before every forward but the prompt's, unless there is room for the target model's own token alone.
    assert len(stranger.calls.read_text()) >= found["stats"]["forwards"] - 2


def test_from_the_command_line(stranger):
    stranger.forget_calls()
    asked = (
        "--model",
        accelplug_testbed.path(),
        "--prompt",
        "one one one",
        "--drafter",
        "echo(times=1)",
        "--max-new-tokens",
        "8",
        "--rounds",
        "1",
    )
    found = json.loads(stranger.must("-m", "accelplug", "run", *asked, "--compare", "--dtype", "float32", "--json"))
    assert found["identical"] is True
    assert found["techniques"][0]["distribution"] == "accelplug-echo"
    assert stranger.calls.read_text()


@pytest.mark.parametrize("runner", ["v1", pytest.param("v2", marks=pytest.mark.by_hand), "v2-async"])
def test_on_vllm(stranger, environments, plain, runner):
    stranger.forget_calls()
    found = stranger.drive("vllm", "echo(times=3)", environment=environments[runner])
    assert found["tokens"] == plain
    assert found["status"]["runner"].lower().startswith(runner[:2])
    assert found["status"]["stats"]["drafted"] > 0
    assert found["status"]["drafter"]["distribution"] == "accelplug-echo"
    assert "switched_off" not in found["status"]["drafter"]
    assert len(stranger.calls.read_text()) >= 2


def test_without_the_plugin_its_name_is_unknown(stranger):
    stranger.must("-m", "pip", "uninstall", "--yes", "accelplug-echo")
    done = stranger.run("-m", "accelplug", "run", "--drafter", "echo", "--model", accelplug_testbed.path(), "--prompt", "one")
    assert done.returncode == 2
    assert "no drafter named 'echo' is installed" in done.stderr


def test_without_accelplug_vllm_is_as_if_it_had_never_been_there(stranger, environments):
    """Down to its configuration; that an engine then starts is shown by hand."""
    stranger.must("-m", "pip", "uninstall", "--yes", "accelplug")
    assert not stranger.installed("accelplug")
    code = "import sys; from vllm import EngineArgs; print(EngineArgs(sys.argv[1]).create_engine_config().parallel_config.worker_cls)"
    done = stranger.run("-c", code, accelplug_testbed.path(), environment=environments["v1"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "vllm.v1.worker.cpu_worker.CPUWorker"
    assert lines_about_us(done.stdout + done.stderr) == []


@pytest.mark.by_hand
def test_without_accelplug_vllm_starts_as_if_it_had_never_been_there(stranger, environments, plain):
    stranger.must("-m", "pip", "uninstall", "--yes", "accelplug")
    assert not stranger.installed("accelplug")
    after = stranger.drive("vllm", "none", environment=environments["v1"])
    assert after["tokens"] == plain
    assert lines_about_us(after["log"]) == []


def lines_about_us(log):
    return [line for line in log.splitlines() if "accelplug" in line.replace(str(accelplug_testbed.path()), "MODEL")]
