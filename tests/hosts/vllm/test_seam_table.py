"""The table of seams says of a wheel what its source says."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.version import Version

from accelplug.hosts.seams import Seam

OLD = {
    "vllm/__init__.py": "from vllm.config import VllmConfig as Config",
    "vllm/config/__init__.py": "from .vllm import *\nif True:\n    FLAG: bool = False\n",
    "vllm/config/vllm.py": """
class Base:
    def inherited(self, a): ...
class VllmConfig(Base):
    worker: str
    number: int = 0
    def steady(self, a, *, b=1): ...
    def moving(self, a, old): ...
    def any(self, **more): ...
    def _get_v2_model_runner_unsupported_features(self):
        if speculative_config.method in ("ngram",):
            pass
        elif speculative_config.method not in ("eagle3", "mtp"):
            pass
        if speculative_config.parallel_drafting and speculative_config.method not in ("dflash",):
            pass
""",
}
SOURCE = "vllm/config/vllm.py"
CHANGES = {"a, old)": "a, new)", 'elif speculative_config.method not in ("eagle3", "mtp")': "elif False"}
NEW = OLD | {SOURCE: functools.reduce(lambda text, change: text.replace(*change), CHANGES.items(), OLD[SOURCE])}


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("seams", Path(__file__).resolve().parents[3] / "docs" / "seams.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def releases(table, tmp_path_factory):
    found = {}
    for version, files in (("0.1", OLD), ("0.2", NEW)):
        wheel = tmp_path_factory.mktemp("wheels") / f"vllm-{version}-py3-none-any.whl"
        with ZipFile(wheel, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
        found[Version(version)] = table.Release(wheel)
    return found


@pytest.mark.parametrize(
    ("path", "parameters", "cells"),
    [
        ("VllmConfig.steady", ("a", "b"), ["yes", "yes"]),
        ("VllmConfig.inherited", ("a",), ["yes", "yes"]),
        ("VllmConfig.moving", ("a",), ["yes", "+`new` -`old`"]),
        ("VllmConfig.moving", ("a", "old"), ["yes", "lacks `old`"]),
        ("VllmConfig.moving", (), ["yes", "yes"]),
        ("VllmConfig.any", ("whatever",), ["yes", "yes"]),
        ("VllmConfig", ("worker", "number"), ["yes", "yes"]),
        ("VllmConfig.gone", (), ["-", "-"]),
        ("FLAG", (), ["yes", "yes"]),
        ("Nothing", (), ["-", "-"]),
    ],
)
def test_what_a_release_has_of_a_seam(table, releases, path, parameters, cells):
    seam = Seam(f"vllm.config:{path}", parameters)
    old, new = (release.parameters(seam) for release in releases.values())
    assert [table.cell(seam, old, None), table.cell(seam, new, old)] == cells


@pytest.mark.parametrize(
    ("method", "cells"), [("ngram", ["refused", "refused"]), ("eagle3", ["yes", "yes"]), ("custom_class", ["refused", "yes"]), ("mtp", ["yes", "yes"])]
)
def test_what_the_v2_runner_takes(table, releases, method, cells):
    assert [table.admitted(release, method) for release in releases.values()] == cells


def test_a_seam_that_the_page_lacks_and_one_that_is_no_seam_are_found(table, monkeypatch):
    assert table.stale() == []
    seams = (*table.compat.ENGINE.seams[1:], Seam("vllm.new:Seam"))
    monkeypatch.setattr(table.compat, "ENGINE", dataclasses.replace(table.compat.ENGINE, seams=seams))
    assert table.stale() == ["vllm.new:Seam is missing", f"{table.compat.FRONT_END[0].path} is no seam"]


def test_what_is_said_of_releases_is_on_record(table):
    """Older ones are admitted where their tests passed; of the one that is not, every seam was found."""
    lines = [line.strip("| ").split(" | ") for line in table.PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    releases = lines[0][1:]
    engine, ran = table.compat.ENGINE, json.loads((table.PAGE.parents[1] / "integration/vllm/results/releases.json").read_text())
    passed = {".".join(release.split(".")[:2]) for release, found in ran.items() if set(found["tests"].values()) == {"passed"}}
    older = [release for release in releases if Version(engine.tested_from) <= Version(release) < Version(table.compat.V2_FROM)]
    assert set(older) == passed
    assert engine.releases[0][0] == f"{older[0]} to {older[-1]}"
    assert (releases[-1], engine.releases[-1][0]) == (engine.tested_below, engine.tested_below)
    cells = {line[0]: line[-1] for line in lines if line[0].startswith("`vllm")}
    assert not [path for path, cell in cells.items() if cell.startswith(("-", "lacks")) and not cell.startswith("-`")]
