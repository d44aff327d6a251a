"""Discover plugins and ask each, alone, what it offers. One that breaks is recorded and stops nobody else."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from types import ModuleType
from typing import Final

import pluggy

from accelplug._errors import PluginError
from accelplug._version import __version__
from accelplug.hooks import specs
from accelplug.hooks.context import API_VERSION
from accelplug.hooks.registry import ALLOW_LIST, HOOKS, Entry, Owner, Registry, check_name, one_line

GROUP: Final = "accelplug"
BUILTINS: Final = ("accelplug.spec.plugin", "accelplug.constrained.plugin")


def load_registry(plugins: Iterable[object] = (), *, entry_points: bool = True) -> Registry:
    """Register what is installed, built-ins first, then `plugins`.

    A plugin that fails, whether installed or passed, is warned about and listed in ``Registry.broken``; nothing of what
    it registered counts, and the others are loaded.

    :param plugins: modules or objects with hook implementations, for tests and notebooks.
    :param entry_points: look at installed distributions; ``ACCELPLUG_PLUGINS`` lists those to load (all by default).
    """
    registry = Registry()
    for module in BUILTINS:
        _register(import_module(module), Owner("accelplug", "accelplug", __version__), registry)
    if entry_points:
        _register_installed(registry)
    for plugin in plugins:
        name = plugin.__name__ if isinstance(plugin, ModuleType | type) else type(plugin).__qualname__
        with _recorded(owner := Owner(name, name, ""), registry):
            _register(plugin, owner, registry)
    return registry


def _register_installed(registry: Registry) -> None:
    """Load the entry points of the group, in an order that does not depend on the file system."""
    found = sorted(((_owner(entry_point), entry_point) for entry_point in metadata.entry_points(group=GROUP)), key=_by_name)
    allowed = _allowed()
    if allowed is not None:
        _warn_of_strangers(allowed, [owner for owner, _ in found])
    for owner, entry_point in found:
        if allowed is not None and not any(owner.answers_to(name) for name in allowed):
            registry.ignored.append(owner)
            continue
        with _recorded(owner, registry):
            _register(entry_point.load(), owner, registry)


def _owner(entry_point: metadata.EntryPoint) -> Owner:
    dist = entry_point.dist
    return Owner(entry_point.name, dist.name if dist else "unknown", dist.version if dist else "")


def _by_name(found: tuple[Owner, metadata.EntryPoint]) -> tuple[str, str]:
    return found[0].plugin, found[0].distribution


def _allowed() -> list[str] | None:
    listed = os.environ.get(ALLOW_LIST)
    return None if listed is None else [name.strip() for name in listed.split(",") if name.strip()]


def _warn_of_strangers(allowed: list[str], owners: list[Owner]) -> None:
    for name in allowed:
        if name != GROUP and not any(owner.answers_to(name) for owner in owners):
            installed = ", ".join(owner.plugin for owner in owners) or "none"
            warnings.warn(f"{ALLOW_LIST} names {name!r}, and no installed plugin or distribution is called that; installed: {installed}", stacklevel=4)


@contextmanager
def _recorded(owner: Owner, registry: Registry) -> Iterator[None]:
    """Note what a plugin raises, and go on."""
    try:
        yield
    except (Exception, SystemExit) as exc:  # noqa: BLE001  a broken plugin must not break the others
        registry.broken[owner] = reason = _reason(exc)
        warnings.warn(f"accelplug plugin {owner.plugin!r} ({owner}) failed to load: {one_line(reason)}", stacklevel=4)


def _reason(exc: Exception | SystemExit) -> Exception:
    """Return why a plugin failed: what it raised; as a sentence where that is pluggy's, which spans lines, or would have ended the process."""
    if isinstance(exc, Exception) and not isinstance(exc, pluggy.PluginValidationError):
        return exc
    reason = PluginError(f"importing it calls sys.exit({exc}); keep that behind if __name__ == '__main__'" if isinstance(exc, SystemExit) else one_line(exc))
    reason.__cause__ = exc
    return reason


def _register(plugin: object, owner: Owner, registry: Registry) -> None:
    """Add what one plugin offers, all of it or nothing."""
    offered = _ask(plugin, owner)
    for entry in offered:
        if entry.owner in [earlier.owner for earlier in registry.entries.get((entry.kind, entry.name), [])]:
            raise PluginError(f"{entry.kind} {entry.name!r} was registered by another plugin called {owner.plugin!r}; rename one")
    for entry in offered:
        registry.entries.setdefault((entry.kind, entry.name), []).append(entry)


def _ask(plugin: object, owner: Owner) -> list[Entry]:
    """Return what a plugin offers. It has a plugin manager to itself, so that what it does wrong is its own."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(specs)
    _check_marks(plugin, manager)
    manager.register(plugin, owner.plugin)
    manager.check_pending()
    if not manager.get_hookcallers(plugin):
        raise PluginError(f"it implements no hook; define one of {', '.join(HOOKS.values())} and mark it with @accelplug.hookimpl")
    offered: list[Entry] = []

    def add(kind: str, name: str, factory: Callable[..., object] | str, *, api: int = API_VERSION) -> None:
        check_name(kind, name)
        if type(api) is not int:
            raise PluginError(f"{kind} {name!r} is registered with api={api!r}; it takes a whole number, the contract version, now {API_VERSION}")
        if any((entry.kind, entry.name) == (kind, name) for entry in offered):
            raise PluginError(f"{kind} {name!r} is registered twice; give the second another name")
        offered.append(Entry(kind, name, owner, factory, api))

    for kind, hook in HOOKS.items():
        getattr(manager.hook, hook)(register=functools.partial(add, kind))
    return offered


def _check_marks(plugin: object, manager: pluggy.PluginManager) -> None:
    """Refuse what pluggy would pass over in silence."""
    if isinstance(plugin, type):
        raise PluginError(f"{plugin.__name__} is a class; give an object, {plugin.__name__}(), or a module")
    for hook in HOOKS.values():
        if callable(getattr(plugin, hook, None)) and manager.parse_hookimpl_opts(plugin, hook) is None:
            raise PluginError(f"its {hook} is not marked and would never be called; put @accelplug.hookimpl above it")
