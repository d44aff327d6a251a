"""The examples of the README, of docs/testing.md and of docs/tutorial.md run as they are written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from blocks import PAGES, Block, blocks, named

from accelplug.testing.vllm_processes import vllm_environment

EXAMPLES = [block for block in blocks() if block.mark == "run"]


def test_every_python_block_is_an_example_that_runs():
    assert len(EXAMPLES) == sum(page.read_text(encoding="utf-8").count("```python") for page in PAGES) == 8


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: f"{block.page} line {block.line}")
def test_an_example_runs(block: Block, tmp_path: Path):
    script = tmp_path / "example.py"
    script.write_text(block.code)
    environment = vllm_environment(runner="v1")
    command = [sys.executable, *(["-m", "pytest"] if block.label == "pytest" else []), str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    if block.label == "vllm":
        assert "'prompt_lookup'" in done.stdout


@pytest.mark.parametrize("name", ["main", "tests"])
def test_the_two_commands_are_shell_that_bash_can_read(name: str):
    subprocess.run(["bash", "-n", "-c", named(name)], check=True)


def test_the_plugin_of_the_readme_is_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (plugin,) = [block for block in EXAMPLES if "hookimpl" in block.code]
    (tmp_path / "readme_plugin.py").write_text(plugin.code)
    monkeypatch.syspath_prepend(tmp_path)
    import readme_plugin

    import accelplug

    entry, _ = accelplug.load_registry([readme_plugin], entry_points=False).find("drafter", "echo(times=3)")
    assert entry.owner.plugin == "readme_plugin"
