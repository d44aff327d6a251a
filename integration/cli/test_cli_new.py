"""A package that ``accelplug new`` wrote, installed by pip: it is listed under its own name, runs, and passes its own test."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.fixture
def package(command, site, tmp_path):
    """The folder of a new drafter, installed where `command` looks."""
    done = command("new", "accelplug-own-bigram", "--kind", "drafter", "--directory", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "next: cd " in done.stdout
    folder = tmp_path / "accelplug-own-bigram"
    pip = ("pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(site), str(folder))
    subprocess.run([sys.executable, "-m", *pip], check=True, capture_output=True, text=True)
    return folder


def test_it_is_installed_listed_run_and_tested(package, command, site, tiny_model):
    (found,) = [row for row in json.loads(command("plugins", "--json").stdout)["plugins"] if row["name"] == "own_bigram"]
    assert (found["distribution"], found["version"], found["problem"]) == ("accelplug-own-bigram", "0.1.0", None)
    assert [option["name"] for option in found["options"]] == ["num_tokens"]
    asked = ("--model", tiny_model, "--prompt", "def f(", "--max-new-tokens", "64", "--rounds", "1", "--dtype", "float32")
    done = command("run", *asked, "--drafter", "own_bigram(num_tokens=3)", "--compare", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["identical"] is True
    assert answer["drafted"] > 0
    env = {**os.environ, "PYTHONPATH": str(site)}
    kit = [sys.executable, "-m", "pytest", "-q", "-k", "contract or plain_generate"]
    tested = subprocess.run(kit, cwd=package, env=env, capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout
    assert "2 passed" in tested.stdout
