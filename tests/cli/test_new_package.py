"""``accelplug new``: the package it writes is small, clean and right, and what cannot be made is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import accelplug
from accelplug import OptionError
from accelplug.cli.entry import main
from accelplug.cli.new.command import check_kind, check_names, names_of
from accelplug.hooks.registry import HOOKS

KINDS = {"drafter": 30, "verifier": 30, "grammar": 100}
"""Kind -> the most lines of the module that `new` writes."""
REPOSITORY = Path(accelplug.__file__).parents[1]


@pytest.fixture(scope="module", params=KINDS)
def package(request, tmp_path_factory):
    """A new package of each kind: its folder and module."""
    folder = tmp_path_factory.mktemp("new")
    name = f"accelplug-own-{request.param}"
    assert main(["new", name, "--kind", request.param, "--directory", str(folder), "--json"]) == 0
    return folder / name, name.replace("-", "_")


def clean(folder, *command):
    """Run a tool of the author in the package's folder; its complaints are the failure."""
    env = {**os.environ, "MYPYPATH": f"src{os.pathsep}{REPOSITORY}", "PYTHONPATH": f"src{os.pathsep}{REPOSITORY}"}
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_module_is_short(package):
    folder, module = package
    assert len((folder / "src" / module / "__init__.py").read_text().splitlines()) <= KINDS[module.removeprefix("accelplug_own_")]


@pytest.mark.parametrize("command", [("check", "."), ("format", "--check", ".")], ids=" ".join)
def test_it_is_clean_at_once(package, command):
    pytest.importorskip("ruff")
    clean(package[0], "ruff", *command)


def test_its_types_are_right_at_once(package, tmp_path):
    pytest.importorskip("mypy")
    own = (package[0] / "pyproject.toml").read_text()
    # Reading the engines takes mypy a minute, and neither kind has more of them than one name.
    skipped = '\n[[tool.mypy.overrides]]\nmodule = ["torch.*", "transformers.*", "accelplug.hosts.*"]\nfollow_imports = "skip"\n'
    (tmp_path / "pyproject.toml").write_text(own + skipped)
    clean(package[0], "mypy", "--config-file", str(tmp_path / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache"))


def test_types_are_found_in_an_editable_accelplug_too(tmp_path):
    """It is a path on sys.path; an import hook, which is what setuptools makes of other layouts, means nothing to type checkers."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    shutil.copytree(REPOSITORY / "accelplug", source / "accelplug", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    build = "import sys; from setuptools.build_meta import build_editable; build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as opened:
        assert [name for name in opened.namelist() if name.endswith(".py")] == []
        (path,) = [opened.read(name).decode().strip() for name in opened.namelist() if name.endswith(".pth")]
    assert (Path(path) / "accelplug" / "py.typed").is_file()


def test_its_own_test_passes(package):
    pytest.importorskip("transformers")
    clean(package[0], "pytest", "-q")


def test_its_readme_promises_the_hosts_that_run_its_kind(package):
    folder, module = package
    said = (folder / "README.md").read_text()
    assert ("inside Transformers and vLLM" in said) == module.endswith("drafter")


def test_it_is_listed_with_what_it_says_of_itself(package, monkeypatch):
    from accelplug.cli import plugins

    folder, module = package
    monkeypatch.syspath_prepend(folder / "src")
    registry = accelplug.load_registry([__import__(module)], entry_points=False)
    monkeypatch.setattr(plugins, "registry", lambda: registry)
    (found,) = [row for row in plugins.collect(None)["plugins"] if row["name"] == module.removeprefix("accelplug_")]
    assert found["problem"] is None
    assert "unknown" not in (found["exactness"], found["output"], found["hosts"])


def refused(capfd, *arguments):
    assert main(["new", *arguments]) == 2
    return capfd.readouterr().err.removeprefix("accelplug: error: ").strip()


def test_a_folder_that_is_there_is_left_alone(tmp_path, capfd):
    (tmp_path / "accelplug-mine").mkdir()
    asked = ("accelplug-mine", "--kind", "drafter", "--directory", str(tmp_path))
    assert main(["new", *asked]) == 0, "an empty one may be filled"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capfd.readouterr()
    assert "is there already; remove it, or choose another name or --directory" in refused(capfd, *asked)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    said = refused(capfd, "accelplug-mine", "--kind", "drafter", "--directory", str(tmp_path / "file"))
    assert said.startswith(f"cannot write {tmp_path / 'file' / 'accelplug-mine'} (")


def test_a_name_too_long_for_a_file_is_refused(tmp_path, capfd):
    said = refused(capfd, "a" * 300, "--kind", "drafter", "--directory", str(tmp_path))
    assert said.startswith(f"cannot write {tmp_path / ('a' * 300)} (OSError)")


@pytest.mark.parametrize("kind", [kind for kind in HOOKS if kind not in KINDS])
def test_a_kind_that_no_host_runs_is_refused(kind):
    with pytest.raises(OptionError, match=f"no host runs a '{kind}' yet, so there is no package to begin with; make a drafter, verifier or grammar"):
        check_kind(kind)


def test_a_kind_that_does_not_exist_is_refused(tmp_path, capfd):
    said = refused(capfd, "accelplug-x", "--kind", "drafters", "--directory", str(tmp_path))
    assert "there is no kind 'drafters'; make a drafter, verifier or grammar" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "module", "technique"),
    [("accelplug-bigram", "accelplug_bigram", "bigram"), ("My.Drafter", "my_drafter", "my_drafter"), ("a_b--c", "a_b_c", "a_b_c")],
)
def test_the_distribution_gives_module_and_technique(name, module, technique):
    assert names_of(name) == (module, technique)
    check_names("drafter", name, module, technique)


@pytest.mark.parametrize("name", ["", "1st", "accelplug-", "accelplug-2", "accelplug-class", "class", "a b", "../up", "a/b", "ä", "-x"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(OptionError, match="gives no name for a package and a technique"):
        check_names("drafter", name, *names_of(name))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("accelplug-none", "drafter"), ("accelplug-register", "verifier"), ("accelplug-sequence", "grammar"), ("accelplug-matcher", "grammar")],
)
def test_a_name_whose_class_would_be_something_else_is_refused(tmp_path, capfd, name, kind):
    assert main(["new", name, "--kind", kind, "--directory", str(tmp_path)]) == 2
    title = name.removeprefix("accelplug-").title()
    assert f"'{name}' would name its class {title}, which stands for something else there" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_names_that_are_taken_are_refused():
    with pytest.raises(OptionError, match="a module 'numpy' is installed already, from "):
        check_names("drafter", "numpy", *names_of("numpy"))
    with pytest.raises(OptionError, match="a distribution 'PyYAML' is installed already; choose another name"):
        check_names("drafter", "PyYAML", *names_of("PyYAML"))
    with pytest.raises(OptionError, match=r"drafter 'prompt_lookup' \(accelplug .*\) is installed already; choose another name"):
        check_names("drafter", "accelplug-prompt-lookup", *names_of("accelplug-prompt-lookup"))
