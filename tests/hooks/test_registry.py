"""Discovery, attribution, conflicts, and plugins that break."""

from __future__ import annotations

import inspect

import installed
import pytest

import accelplug
from accelplug.hooks import API_VERSION, load_registry, specs
from accelplug.hooks.registry import HOOKS, options_of

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


def test_every_kind_has_one_hook_and_every_hook_one_kind():
    declared = {name for name, member in inspect.getmembers(specs, inspect.isfunction) if name.startswith("register_")}
    assert set(HOOKS.values()) == declared


def test_the_built_ins_are_plugins_of_accelplug():
    registry = load_registry(entry_points=False)
    assert {("drafter", "prompt_lookup"), ("verifier", "greedy"), ("verifier", "token_wise")} <= set(registry.entries)
    assert {str(entry.owner) for entry in registry} == {f"accelplug {accelplug.__version__}"}


def test_every_lazily_registered_built_in_resolves():
    lazy = [entry for entry in load_registry(entry_points=False) if isinstance(entry.factory, str)]
    assert lazy
    for entry in lazy:
        assert callable(entry.resolve()), entry


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


@pytest.mark.parametrize("listed", ["echo", "accelplug-echo", " echo , other "])
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
    registry = load_registry()
    assert not registry.broken
    assert [str(owner) for owner in registry.ignored] == ["loud 1.0"]


def test_two_owners_of_one_name_are_both_named_and_either_can_be_chosen(install):
    install("first-echo", GOOD, version="1.0")
    install("second-echo", GOOD, version="2.0", plugin="second")
    registry = load_registry()
    with pytest.raises(accelplug.PluginError, match=r"first-echo 1\.0 and second-echo 2\.0; write 'second-echo:echo' to choose"):
        registry.find("drafter", "echo")
    assert registry.find("drafter", "first-echo:echo")[0].owner.version == "1.0"
    assert registry.find("drafter", "second:echo")[0].owner.version == "2.0"


def test_a_conflict_with_a_built_in_is_a_conflict(install):
    install("usurper", GOOD.replace('"echo"', '"prompt_lookup"'))
    with pytest.raises(accelplug.PluginError, match=rf"accelplug {accelplug.__version__} and usurper 1\.0"):
        load_registry().find("drafter", "prompt_lookup")


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
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_plugin_is_listed_and_stops_nobody_else(install, source, reason):
    install("aa-broken", source)
    install("zz-good", GOOD)
    with pytest.warns(UserWarning, match=rf"(?s)'aa-broken' \(aa-broken 1\.0\) failed to load: .*{reason}"):
        registry = load_registry()
    assert [(str(owner), reason in str(exc)) for owner, exc in registry.broken.items()] == [("aa-broken 1.0", True)]
    assert registry.find("drafter", "echo")[0].owner.distribution == "zz-good"
    assert ("drafter", "half") not in registry.entries


def test_an_unknown_name_lists_what_there_is_and_what_broke(install):
    install("broken", "raise RuntimeError('no such library')")
    with pytest.warns(UserWarning, match="no such library"):
        registry = load_registry()
    with pytest.raises(accelplug.UnknownTechniqueError) as caught:
        registry.find("drafter", "promt_lookup")
    for part in ("'promt_lookup'", "did you mean 'prompt_lookup'?", "plugin 'broken' (broken 1.0) failed to load: no such library"):
        assert part in str(caught.value)


def test_an_unknown_distribution_is_named(install):
    install("accelplug-echo", GOOD)
    with pytest.raises(accelplug.UnknownTechniqueError, match="no drafter named 'echo' from 'nobody'"):
        load_registry().find("drafter", "nobody:echo")


def test_a_path_that_cannot_be_imported_names_path_and_owner(context):
    registry = load_registry([Offering("accelplug_nowhere:Echo")], entry_points=False)
    with pytest.raises(accelplug.PluginError, match=r"drafter 'echo' \(Offering\) cannot be imported from 'accelplug_nowhere:Echo'"):
        registry.build("drafter", "echo", context)


def test_a_later_contract_is_refused_an_earlier_one_runs(context):
    late = load_registry([Offering(Silent, api=API_VERSION + 1)], entry_points=False)
    with pytest.raises(accelplug.PluginError, match=f"contract version {API_VERSION + 1}, this accelplug has {API_VERSION}; upgrade"):
        late.build("drafter", "echo", context)
    early = load_registry([Offering(Silent, api=API_VERSION - 1)], entry_points=False)
    assert isinstance(early.build("drafter", "echo", context).instance, Silent)


def test_a_factory_is_given_the_context_only_if_it_asks(context):
    def asks(context, size: int = 3):
        return (context, size)

    registry = load_registry([Offering(asks)], entry_points=False)
    built = registry.build("drafter", "echo(size=5)", context)
    assert built.instance == (context, 5)
    assert str(built.spec) == "echo(size=5)"
    assert options_of(registry.find("drafter", "echo")[0]) == ["size"]


def test_a_factory_that_raises_is_named_with_its_exception(context):
    def fails():
        raise ZeroDivisionError("by zero")

    registry = load_registry([Offering(fails)], entry_points=False)
    with pytest.raises(accelplug.PluginError, match=r"'echo' \(Offering\) failed to build 'echo': ZeroDivisionError: by zero"):
        registry.build("drafter", "echo", context)


def test_a_factory_that_refuses_is_heard_unchanged(context):
    def refuses():
        raise accelplug.OptionError("sentence of its own")

    registry = load_registry([Offering(refuses)], entry_points=False)
    with pytest.raises(accelplug.OptionError, match=r"^sentence of its own$"):
        registry.build("drafter", "echo", context)


def test_an_object_built_by_hand_is_attributed_to_its_module(context):
    built = load_registry(entry_points=False).build("drafter", Silent(), context)
    assert (built.name, built.owner.distribution) == ("Silent", __name__)


def test_a_class_in_place_of_an_object_is_refused(context):
    with pytest.raises(accelplug.PluginError, match="Silent is a class; pass an object"):
        load_registry(entry_points=False).build("drafter", Silent, context)


def test_blame_names_the_technique_that_ran(context):
    built = load_registry(entry_points=False).build("drafter", "prompt_lookup", context)
    built.blame(exc := ValueError("theirs"))
    who = f"drafter 'prompt_lookup' (accelplug {accelplug.__version__})"
    assert exc.__notes__ == [f"accelplug: raised by {who}, built from 'prompt_lookup'"]
