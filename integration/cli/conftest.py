from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import installed
import pytest

from accelplug.cli.entry import main


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder on the path of `command`'s process, for plugins of the test."""
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


@pytest.fixture
def install(site: Path) -> Callable[..., str]:
    return lambda distribution, source, **more: installed.install(site, distribution, source, **more)


@pytest.fixture
def command(site: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``accelplug ARGUMENTS`` in a process of its own, offline."""

    def run(*arguments: str, timeout: float = 900, **environment: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
        env = {**os.environ, "PYTHONPATH": path, "ACCELPLUG_PLUGINS": installed.listed(site), "HF_HUB_OFFLINE": "1", "COLUMNS": "200", **environment}
        return subprocess.run(
            [sys.executable, "-m", "accelplug", *arguments], capture_output=True, text=True, timeout=timeout, env=env, cwd=site, check=False
        )

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model of one layer, with the small model's tokenizer, in a folder as save_pretrained() writes it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    testbed = pytest.importorskip("accelplug_testbed", reason="pip install ./integration/testbed")
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = transformers.AutoTokenizer.from_pretrained(testbed.path())
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=320, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def here(site: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``accelplug ARGUMENTS`` in this process, where no plugin of the test takes part: to load the engines anew is most of what `command` takes."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(site)
        for name, value in {"ACCELPLUG_PLUGINS": "", "HF_HUB_OFFLINE": "1", "COLUMNS": "200", **environment}.items():
            monkeypatch.setenv(name, value)
        capfd.readouterr()
        status = main(list(arguments))
        return subprocess.CompletedProcess(["accelplug", *arguments], status, *capfd.readouterr())

    return run


@pytest.fixture
def refusal(
    command: Callable[..., subprocess.CompletedProcess[str]], here: Callable[..., subprocess.CompletedProcess[str]], site: Path
) -> Callable[..., str]:
    """Run a command that must be refused; return its one sentence."""

    def run(*arguments: str, **environment: str) -> str:
        done = (command if installed.listed(site) else here)(*arguments, **environment)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert "Traceback" not in done.stderr
        said = [line for line in done.stderr.splitlines() if line.startswith("accelplug: error: ")]
        assert len(said) == 1, done.stderr
        return said[0].removeprefix("accelplug: error: ")

    return run
