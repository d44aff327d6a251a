"""What is installed is found, in order; the allow-list; and plugins that break stop nobody else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import installed
import pytest

import accelplug
from accelplug.hooks import load_registry

REPOSITORY = Path(__file__).parents[2]
GOOD = installed.ECHO
VERIFIER = GOOD.replace("register_drafters", "register_verifiers")


class Offering:
    """A plugin object that offers one drafter named 'echo'."""

    def __init__(self, factory, **more):
        self.factory, self.more = factory, more

    @accelplug.hookimpl
    def register_drafters(self, register):
        register("echo", self.factory, **self.more)


class Silent:
    """A drafter that never guesses."""

    def propose_one(self, tokens, budget):
        return ()


def test_an_installed_distribution_is_discovered_and_named(install):
    install("accelplug-echo", GOOD, version="3.1", plugin="echo")
    entry, spec = load_registry().find("drafter", "echo")
    assert (entry.owner.plugin, entry.owner.distribution, entry.owner.version) == ("echo", "accelplug-echo", "3.1")
    assert str(entry) == "drafter 'echo' (accelplug-echo 3.1)"
    assert str(spec) == "echo"


def test_one_plugin_may_offer_several_kinds_under_one_name(install):
    install("both", GOOD + VERIFIER)
    registry = load_registry()
    assert registry.find("drafter", "echo")[0].kind == "drafter"
    assert registry.find("verifier", "echo")[0].kind == "verifier"


@pytest.mark.parametrize("listed", ["echo", "accelplug-echo", " echo , more-or-less ", "Accelplug_Echo", "ECHO"])
@pytest.mark.filterwarnings("ignore:ACCELPLUG_PLUGINS names 'more-or-less'")
def test_the_allow_list_names_plugins_or_distributions(install, monkeypatch, listed):
    install("accelplug-echo", GOOD, plugin="echo")
    install("accelplug-more", GOOD.replace('"echo"', '"more"'), plugin="more")
    monkeypatch.setenv("ACCELPLUG_PLUGINS", listed)
    registry = load_registry()
    assert ("drafter", "echo") in registry.entries
    assert ("drafter", "more") not in registry.entries
    assert "accelplug-more 1.0" in [str(owner) for owner in registry.ignored]


def test_an_empty_allow_list_leaves_the_built_ins(install, monkeypatch):
    install("accelplug-echo", GOOD)
    monkeypatch.setenv("ACCELPLUG_PLUGINS", "")
    registry = load_registry()
    assert ("drafter", "prompt_lookup") in registry.entries
    assert ("drafter", "echo") not in registry.entries


def test_a_plugin_left_out_is_not_imported(install, monkeypatch):
    install("loud", "raise RuntimeError('imported')")
    monkeypatch.setenv("ACCELPLUG_PLUGINS", "other")
    with pytest.warns(UserWarning, match="ACCELPLUG_PLUGINS names 'other', and no installed plugin .* is called that; installed: .*loud"):
        registry = load_registry()
    assert not registry.broken
    assert "loud 1.0" in [str(owner) for owner in registry.ignored]


@pytest.mark.filterwarnings("ignore:accelplug plugin")  # of what else is installed
def test_without_an_allow_list_every_plugin_is_loaded(install, monkeypatch):
    install("accelplug-echo", GOOD)
    monkeypatch.delenv("ACCELPLUG_PLUGINS")
    registry = load_registry()
    assert ("drafter", "echo") in registry.entries
    assert not registry.ignored


def test_what_else_is_installed_fails_no_test_of_this_repository(tmp_path):
    """A drafter of the name of ours, whose tests look it up by that name alone."""
    installed.install(tmp_path, "clashing", GOOD.replace('"echo"', '"prompt_lookup"'))
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    env = {name: value for name, value in os.environ.items() if name != "ACCELPLUG_PLUGINS"}
    asked = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/hosts/vllm/test_settings.py"]
    done = subprocess.run(asked, env={**env, "PYTHONPATH": path}, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_entry_points_are_ordered_by_plugin_then_distribution(install):
    for distribution, plugin in [("zz", "bb"), ("mm", "aa"), ("cc", "bb")]:
        install(distribution, GOOD, plugin=plugin)
    entries = load_registry().entries["drafter", "echo"]
    assert [(entry.owner.plugin, entry.owner.distribution) for entry in entries] == [("aa", "mm"), ("bb", "cc"), ("bb", "zz")]


BROKEN = {
    "raises at import": ("raise RuntimeError('no such library')", "no such library"),
    "is no module": ("import accelplug_nowhere", "accelplug_nowhere"),
    "raises in its hook": (
        """
        import accelplug

        @accelplug.hookimpl
        def register_drafters(register):
            register("half", object)
            raise RuntimeError("half way")
        """,
        "half way",
    ),
    "misspells a hook": (GOOD.replace("register_drafters", "register_drafter"), "register_drafter"),
    "offers a name that is none": (GOOD.replace('"echo"', '"my-echo"'), "my-echo"),
    "takes an argument hooks do not have": (GOOD.replace("(register)", "(registry)"), "registry"),
    "forgets to mark its hook": (
        GOOD.replace("@accelplug.hookimpl", ""),
        "its register_drafters is not marked and would never be called; put @accelplug.hookimpl above it",
    ),
    "marks one of two hooks": (GOOD + VERIFIER.replace("@accelplug.hookimpl", ""), "its register_verifiers is not marked"),
    "has no hook": ("x = 1", "it implements no hook; define one of register_drafters, "),
    "has only a misspelt hook, unmarked": (
        GOOD.replace("register_drafters", "register_drafter").replace("@accelplug.hookimpl", ""),
        "it implements no hook",
    ),
    "offers a name twice": (GOOD + '        register("echo", Echo)\n', "drafter 'echo' is registered twice; give the second another name"),
    "offers a name that is no text": (GOOD.replace('"echo"', "3"), "drafter 3 is no technique name"),
    "offers a word of Python's": (GOOD.replace('"echo"', '"class"'), "drafter 'class' is no technique name"),
    "writes the contract version as text": (GOOD.replace("Echo)", 'Echo, api="1")'), "is registered with api='1'; it takes a whole number"),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_plugin_is_listed_and_stops_nobody_else(install, source, reason):
    install("aa-broken", source)
    install("zz-good", GOOD)
    with pytest.warns(UserWarning, match=rf"^accelplug plugin 'aa-broken' \(aa-broken 1\.0\) failed to load: .*{re.escape(reason)}.*$") as warned:
        registry = load_registry()
    assert [(str(owner), reason in str(exc), "\n" in str(exc)) for owner, exc in registry.broken.items()] == [("aa-broken 1.0", True, False)]
    assert len(warned) == 1
    assert registry.find("drafter", "echo")[0].owner.distribution == "zz-good"
    assert ("drafter", "half") not in registry.entries


class Unmarked:
    def register_drafters(self, register):
        register("echo", Silent)


GIVEN = {
    "a class": (Offering, "Offering", "Offering is a class; give an object, Offering\\(\\), or a module"),
    "an unmarked hook": (Unmarked(), "Unmarked", "its register_drafters is not marked"),
    "no plugin at all": (object(), "object", "it implements no hook"),
    "an empty module": (ModuleType("empty"), "empty", "it implements no hook"),
    "nothing": (None, "NoneType", "it implements no hook"),
}


@pytest.mark.parametrize(("plugin", "name", "reason"), GIVEN.values(), ids=GIVEN.keys())
def test_a_broken_plugin_that_was_passed_is_listed_and_stops_nobody_else(plugin, name, reason):
    with pytest.warns(UserWarning, match=rf"^accelplug plugin '{name}' \({name}\) failed to load: {reason}"):
        registry = load_registry([plugin, Offering(Silent)], entry_points=False)
    assert [owner.plugin for owner in registry.broken] == [name]
    assert registry.find("drafter", "echo")[0].owner.plugin == "Offering"


def test_two_plugins_of_one_name_cannot_offer_one_technique():
    with pytest.warns(UserWarning, match="drafter 'echo' was registered by another plugin called 'Offering'; rename one"):
        registry = load_registry([Offering(Silent), Offering(object)], entry_points=False)
    assert registry.find("drafter", "echo")[0].factory is Silent


def test_a_plugin_that_ends_the_process_when_it_is_imported_is_broken_like_any_other(install):
    install("accelplug-script", "import sys; sys.exit(3)")
    with pytest.warns(UserWarning, match=r"plugin 'accelplug-script' .* failed to load: importing it calls sys.exit\(3\); keep that behind"):
        registry = load_registry()
    assert registry.find("drafter", "prompt_lookup")
