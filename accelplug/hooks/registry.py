"""Discover plugins, remember who offers what, and build techniques by name."""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module, metadata
from types import ModuleType
from typing import Any, Final

import pluggy

from accelplug._errors import AccelplugError, PluginError, UnknownTechniqueError
from accelplug._version import __version__
from accelplug.hooks import specs
from accelplug.hooks.context import API_VERSION, BuildContext
from accelplug.hooks.options import Spec, check_options, fields_of, parse_spec

GROUP: Final = "accelplug"
ALLOW_LIST: Final = "ACCELPLUG_PLUGINS"
BUILTINS: Final = ("accelplug.spec.plugin",)
HOOKS: Final[Mapping[str, str]] = {
    "drafter": "register_drafters",
    "verifier": "register_verifiers",
    "grammar": "register_grammars",
    "kv_compressor": "register_kv_compressors",
    "vision_reducer": "register_vision_reducers",
}


@dataclass(frozen=True, slots=True)
class Owner:
    """The plugin that offers a technique, and the installed distribution that it came with."""

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".strip()


@dataclass(frozen=True, slots=True)
class Entry:
    """One offered technique: who offers it and how to build it."""

    kind: str
    name: str
    owner: Owner
    factory: Callable[..., object] | str
    api: int = API_VERSION

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} ({self.owner})"

    def resolve(self) -> Callable[..., object]:
        """Return the factory, importing it if it was registered by path.

        :raises PluginError: it cannot be imported, or wants a later contract.
        """
        if self.api > API_VERSION:
            raise PluginError(f"{self} is written for contract version {self.api}, this accelplug has {API_VERSION}; upgrade accelplug")
        if not isinstance(self.factory, str):
            return self.factory
        module, _, attribute = self.factory.partition(":")
        try:
            resolved: Callable[..., object] = getattr(import_module(module), attribute)
        except Exception as exc:
            raise PluginError(
                f"{self} cannot be imported from {self.factory!r}: {exc}; reinstall or remove {self.owner.distribution}"
            ) from exc
        return resolved


@dataclass(frozen=True, slots=True)
class Technique:
    """A built technique with its attribution. `spec` is what the user asked for."""

    kind: str
    name: str
    owner: Owner
    instance: Any
    factory: Callable[..., object]
    spec: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} ({self.owner})"

    def blame(self, exc: BaseException) -> None:
        """Note on a foreign exception who was running when it was raised."""
        exc.add_note(f"accelplug: raised by {self}, built from {self.spec!r}")


@dataclass(slots=True)
class Registry:
    """Every technique that the installed plugins offer."""

    entries: dict[tuple[str, str], list[Entry]] = field(default_factory=dict)
    broken: dict[Owner, Exception] = field(default_factory=dict)
    ignored: list[Owner] = field(default_factory=list)

    def __iter__(self) -> Iterator[Entry]:
        return (entry for offered in self.entries.values() for entry in offered)

    def find(self, kind: str, given: str | Mapping[str, Any] | Spec) -> tuple[Entry, Spec]:
        """Return the one technique that `given` names.

        :raises UnknownTechniqueError: nobody offers it; the message lists what is offered.
        :raises PluginError: two plugins offer it and the name does not say whose.
        """
        spec = parse_spec(given)
        offered = self.entries.get((kind, spec.name), [])
        if spec.distribution:
            offered = [entry for entry in offered if spec.distribution in (entry.owner.distribution, entry.owner.plugin)]
        if not offered:
            raise UnknownTechniqueError(self._unknown(kind, spec))
        if len(offered) > 1:
            owners = " and ".join(str(entry.owner) for entry in offered)
            raise PluginError(
                f"{kind} {spec.name!r} is offered by {owners}; write '{offered[-1].owner.distribution}:{spec.name}' to choose, or uninstall one"
            )
        return offered[0], spec

    def build(self, kind: str, given: object, context: BuildContext) -> Technique:
        """Build one technique from a name with options, a mapping, or an object built by hand.

        :raises AccelplugError: it is unknown, misconfigured, or its plugin fails to build it.
        """
        if not isinstance(given, str | Mapping | Spec):
            return _by_hand(kind, given)
        entry, spec = self.find(kind, given)
        factory = entry.resolve()
        check_options(str(entry), factory, spec.options)
        wanted = {"context": context} if "context" in inspect.signature(factory).parameters else {}
        try:
            instance = factory(**spec.options, **wanted)
        except AccelplugError:
            raise
        except Exception as exc:
            raise PluginError(
                f"{entry} failed to build {str(spec)!r}: {type(exc).__name__}: {exc}; report it to {entry.owner.distribution}"
            ) from exc
        return Technique(kind, entry.name, entry.owner, instance, factory, str(spec))

    def _unknown(self, kind: str, spec: Spec) -> str:
        names = sorted(name for k, name in self.entries if k == kind)
        near = get_close_matches(spec.name, names, 1)
        hint = f" did you mean {near[0]!r}?" if near else ""
        broken = "".join(f"; plugin {owner.plugin!r} ({owner}) failed to load: {exc}" for owner, exc in self.broken.items())
        whose = f" from {spec.distribution!r}" if spec.distribution else ""
        return f"no {kind} named {spec.name!r}{whose} is installed;{hint} installed: {', '.join(names) or 'none'}{broken}"


def _by_hand(kind: str, instance: object) -> Technique:
    cls = instance if isinstance(instance, type) else type(instance)
    if isinstance(instance, type):
        raise PluginError(f"{kind} {cls.__name__} is a class; pass an object, {cls.__name__}(...), or register it under a name")
    owner = Owner(cls.__module__, cls.__module__.partition(".")[0], "")
    return Technique(kind, cls.__name__, owner, instance, cls, repr(instance))


def _allowed() -> set[str] | None:
    listed = os.environ.get(ALLOW_LIST)
    return None if listed is None else {name.strip() for name in listed.split(",") if name.strip()}


def _register(manager: pluggy.PluginManager, plugin: object, owner: Owner, registry: Registry) -> None:
    """Ask one plugin what it offers, alone, so that what it does wrong is its own."""
    manager.register(plugin, owner.plugin)
    try:
        manager.check_pending()
        offered: list[Entry] = []

        def add(kind: str, name: str, factory: Callable[..., object] | str, *, api: int = API_VERSION) -> None:
            if not name.isidentifier():
                raise PluginError(f"{kind} {name!r} is no technique name; names are snake case, like 'prompt_lookup'")
            offered.append(Entry(kind, name, owner, factory, api))

        for kind, hook in HOOKS.items():
            getattr(manager.hook, hook)(register=functools.partial(add, kind))
    finally:
        manager.unregister(plugin)
    for entry in offered:
        registry.entries.setdefault((entry.kind, entry.name), []).append(entry)


def load_registry(plugins: Iterable[object] = (), *, entry_points: bool = True) -> Registry:
    """Register what is installed, built-ins first, then `plugins`; a plugin that fails stops nobody else.

    :param plugins: objects with hook implementations, for tests and notebooks.
    :param entry_points: look at installed distributions; ``ACCELPLUG_PLUGINS`` lists those to load (all by default).
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(specs)
    registry, allowed = Registry(), _allowed()
    for module in BUILTINS:
        _register(manager, import_module(module), Owner("accelplug", "accelplug", __version__), registry)
    found = sorted(metadata.entry_points(group=GROUP), key=lambda entry_point: entry_point.name) if entry_points else []
    for entry_point in found:
        owner = _owner(entry_point)
        if allowed is not None and not {owner.plugin, owner.distribution} & allowed:
            registry.ignored.append(owner)
            continue
        try:
            _register(manager, entry_point.load(), owner, registry)
        except Exception as exc:  # noqa: BLE001  a broken plugin must not break the others
            registry.broken[owner] = exc
            warnings.warn(f"accelplug plugin {owner.plugin!r} ({owner}) failed to load: {exc}", stacklevel=2)
    for plugin in plugins:
        name = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__qualname__
        _register(manager, plugin, Owner(name, name, ""), registry)
    return registry


def _owner(entry_point: metadata.EntryPoint) -> Owner:
    dist = entry_point.dist
    return Owner(entry_point.name, dist.name if dist else "unknown", dist.version if dist else "")


@functools.cache
def registry() -> Registry:
    """Return this process's registry, loaded on first use."""
    return load_registry()


def options_of(entry: Entry) -> list[str]:
    """Return the names of a technique's options, for listings."""
    return list(fields_of(entry.resolve()))
