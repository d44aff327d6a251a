from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelplug_testbed
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "accelplug")
OURS = ("accelplug", "__editable__", "__pycache__", "sitecustomize", "pip", "setuptools")
PROMPT = "values = [" + "0, " * 12
NEW_TOKENS = 16


@dataclass(frozen=True)
class Stranger:
    """A virtual environment outside the repository: it sees the engines, and of accelplug only wheels."""

    folder: Path
    wheels: dict[str, Path]

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    @property
    def calls(self) -> Path:
        """The file in which echo counts its calls."""
        return self.folder / "calls"

    def run(self, *arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        env = {**inherited, "HF_HUB_OFFLINE": "1", **(environment or {}), "ACCELPLUG_PLUGINS": "accelplug-echo", "ACCELPLUG_ECHO_CALLS": str(self.calls)}
        command = [str(self.python), *map(str, arguments)]
        return subprocess.run(command, env=env, cwd=self.folder, capture_output=True, text=True, timeout=1200, check=False)

    def must(self, *arguments: object) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return done.stdout

    def drive(self, engine: str, *more: object, environment: dict[str, str] | None = None) -> dict[str, Any]:
        """Run one engine on the small model; return what it answered, with its log."""
        script = Path(__file__).with_name(f"drive_{engine}.py")
        answered = self.folder / "answer.json"
        answered.unlink(missing_ok=True)
        done = self.run(script, answered, accelplug_testbed.path(), PROMPT, NEW_TOKENS, *more, environment=environment)
        log = done.stdout + done.stderr
        assert done.returncode == 0, log[-8000:]
        return {**json.loads(answered.read_text()), "log": log}

    def installed(self, name: str) -> bool:
        return self.run("-c", f"import importlib.metadata as m; m.version({name!r})").returncode == 0

    def forget_calls(self) -> None:
        self.calls.unlink(missing_ok=True)


def link_engines(folder: Path) -> None:
    """Make everything installed here visible there, except accelplug, whose editable metadata would shine through."""
    folder.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith(OURS) and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)


def build_wheel(source: Path, into: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(into), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = into.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    """Build both wheels from copies of the sources, and install them where the repository cannot be seen."""
    folder = tmp_path_factory.mktemp("stranger")
    copy = folder / "source"
    copy.mkdir()
    for name in SOURCES:
        source = REPOSITORY / name
        shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__")) if source.is_dir() else shutil.copy(source, copy)
    shutil.copytree(REPOSITORY / "integration/plugins/accelplug-echo", folder / "echo")
    wheels = {"accelplug": build_wheel(copy, folder / "dist"), "accelplug-echo": build_wheel(folder / "echo", folder / "dist-echo")}
    link_engines(folder / "engines")
    venv.create(folder / "venv", with_pip=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "engines.pth").write_text(f"{folder / 'engines'}\n")
    made = Stranger(folder, wheels)
    made.must("-m", "pip", "install", "--no-deps", "--no-index", *wheels.values())
    return made
