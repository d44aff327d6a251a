"""Who offers what: names, conflicts, factories, and techniques that cannot be built."""

from __future__ import annotations

import functools
import inspect
import re
from dataclasses import dataclass, replace

import installed
import pytest

import accelplug
from accelplug.hooks import API_VERSION, load_registry, option, specs
from accelplug.hooks.options import fields_of
from accelplug.hooks.registry import HOOKS

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


def test_a_technique_left_out_is_missed_with_the_reason(install, monkeypatch):
    install("accelplug-echo", GOOD, plugin="echo")
    monkeypatch.setenv("ACCELPLUG_PLUGINS", "accelplug")
    with pytest.raises(accelplug.UnknownTechniqueError, match=r"; plugin 'echo' \(accelplug-echo 1\.0\) is left out by ACCELPLUG_PLUGINS"):
        load_registry().find("drafter", "echo")


@pytest.mark.parametrize("written", ["accelplug-echo", "Accelplug_Echo", "accelplug.echo"])
def test_a_distribution_is_found_however_its_name_is_written(install, written):
    install("Accelplug.Echo", GOOD, plugin="echo", module="their_echo")
    assert load_registry().find("drafter", f"{written}:echo")[0].owner.distribution == "Accelplug.Echo"


def test_two_plugins_of_one_distribution_are_told_apart_by_plugin(install, tmp_path):
    install("both", GOOD, plugin="first", module="echoes")
    (tmp_path / "both-1.0.dist-info" / "entry_points.txt").write_text("[accelplug]\nfirst = echoes\nsecond = echoes\n")
    registry = load_registry()
    with pytest.raises(accelplug.PluginError, match=r"offered by both 1\.0 and both 1\.0; write 'second:echo' to choose"):
        registry.find("drafter", "echo")
    assert registry.find("drafter", "second:echo")[0].owner.plugin == "second"


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


def test_an_unknown_kind_names_the_kinds(context):
    registry = load_registry(entry_points=False)
    for ask in (lambda: registry.find("drafters", "prompt_lookup"), lambda: registry.build("drafters", Silent(), context)):
        with pytest.raises(accelplug.UnknownTechniqueError, match="no kind of technique named 'drafters'; the kinds are drafter, verifier, "):
            ask()


def test_an_unknown_name_lists_what_there_is_and_what_broke(install):
    install("broken", "raise RuntimeError('no such library')")
    with pytest.warns(UserWarning, match="no such library"):
        registry = load_registry()
    with pytest.raises(accelplug.UnknownTechniqueError) as caught:
        registry.find("drafter", "promt_lookup")
    for part in ("'promt_lookup'", "did you mean 'prompt_lookup'?", "plugin 'broken' (broken 1.0) failed to load: no such library"):
        assert part in str(caught.value)


def test_so_is_a_technique_whose_module_does(context, tmp_path, monkeypatch):
    (tmp_path / "accelplug_leaves.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    registry = load_registry([Offering("accelplug_leaves:Echo")], entry_points=False)
    with pytest.raises(accelplug.PluginError, match="cannot be imported from 'accelplug_leaves:Echo': SystemExit: 3; reinstall"):
        registry.build("drafter", "echo", context)


def test_an_unknown_distribution_is_named(install):
    install("accelplug-echo", GOOD)
    with pytest.raises(accelplug.UnknownTechniqueError, match=r"no drafter named 'echo' from 'nobody' is installed; did you mean 'accelplug-echo:echo'\?"):
        load_registry().find("drafter", "nobody:echo")


def test_a_path_that_cannot_be_imported_names_path_and_owner(context):
    registry = load_registry([Offering("accelplug_nowhere:Echo")], entry_points=False)
    with pytest.raises(accelplug.PluginError, match=r"drafter 'echo' \(Offering\) cannot be imported from 'accelplug_nowhere:Echo'"):
        registry.build("drafter", "echo", context)


class Forgetful:
    size: int = option(3, ge=1)

    def propose_one(self, tokens, budget):
        return ()


@dataclass
class Sized:
    size: int = option(3, ge=1)


class ForgetfulHeir(Sized):
    depth: int = option(2)


NO_FACTORIES = {
    "not callable": (3, "is registered with 3, which cannot be called; register a class"),
    "a module's constant": ("math:pi", "is registered with 3.14.*, which cannot be called"),
    "a path without a colon": ("package.module.Echo", "the path 'package.module.Echo'; write it like 'package.module:Name'"),
    "a path without a name": ("package.module:", "write it like 'package.module:Name'"),
    "a name that is not there": ("math:nothing", "cannot be imported from 'math:nothing'"),
    "a builtin without a signature": (int, "whose parameters Python does not tell; wrap it in a function"),
    "a forgotten decorator": (Forgetful, r"declares size with option\(\) in a class that is no dataclass; add @dataclass"),
    "a forgotten decorator below one": (ForgetfulHeir, r"declares depth with option\(\)"),
    "a forgotten decorator behind a partial": (functools.partial(Forgetful), r"declares size with option\(\)"),
    "a factory of nothing": (lambda: None, "built nothing from 'echo': its factory returned None; return the built object"),
}


@pytest.mark.parametrize(("factory", "reason"), NO_FACTORIES.values(), ids=NO_FACTORIES.keys())
def test_what_is_no_factory_is_refused_by_name(context, factory, reason):
    registry = load_registry([Offering(factory)], entry_points=False)
    with pytest.raises(accelplug.PluginError, match=rf"^drafter 'echo' \(Offering\) .*{reason}"):
        registry.build("drafter", "echo", context)


def test_a_partial_is_a_factory_with_its_bounds(context):
    registry = load_registry([Offering(functools.partial(Sized, size=5))], entry_points=False)
    assert registry.build("drafter", "echo", context).instance.size == 5
    with pytest.raises(accelplug.OptionError, match="size=0 is out of range"):
        registry.build("drafter", "echo(size=0)", context)


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
    given, size = built.instance
    assert (replace(given, build=context.build), size) == (context, 5)
    assert str(built.spec) == "echo(size=5)"
    assert list(fields_of(registry.find("drafter", "echo")[0].resolve())) == ["size"]


def test_a_factory_builds_others_from_the_registry_that_builds_it(context):
    def outer(context, depth: int = 2):
        return context.build("drafter", {"name": "echo", "depth": depth - 1}) if depth else Silent()

    registry = load_registry([Offering(outer)], entry_points=False)
    built = registry.build("drafter", "echo", context)
    chain = [built, built.instance, built.instance.instance]
    assert [technique.spec for technique in chain] == ["echo", "echo(depth=1)", "echo(depth=0)"]
    assert len({technique.owner for technique in chain}) == 1
    with pytest.raises(accelplug.PluginError, match="a context made by hand builds no drafter 'echo'"):
        context.build("drafter", "echo")


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


@pytest.mark.parametrize("given", [5, 0.5, None, True, b"echo", ("echo",), ["echo"], {"echo"}], ids=repr)
@pytest.mark.parametrize(("kind", "method"), [("drafter", "propose"), ("verifier", "accept"), ("grammar", "its methods")])
def test_plain_data_in_place_of_a_technique_is_refused(context, kind, method, given):
    sentence = rf"^{kind}: a technique is a name, a mapping or an object with {method}.*, got {re.escape(repr(given))}$"
    with pytest.raises(accelplug.PluginError, match=sentence):
        load_registry(entry_points=False).build(kind, given, context)


def test_a_class_in_place_of_an_object_is_refused(context):
    with pytest.raises(accelplug.PluginError, match="Silent is a class; pass an object"):
        load_registry(entry_points=False).build("drafter", Silent, context)


def test_blame_names_the_technique_that_ran(context):
    built = load_registry(entry_points=False).build("drafter", "prompt_lookup", context)
    built.blame(exc := ValueError("theirs"))
    who = f"drafter 'prompt_lookup' (accelplug {accelplug.__version__})"
    assert exc.__notes__ == [f"accelplug: raised by {who}, built from 'prompt_lookup'"]
