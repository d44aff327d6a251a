"""Remember who offers what, and build techniques by name."""

from __future__ import annotations

import functools
import inspect
import keyword
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Final, TypeVar

from packaging.utils import canonicalize_name

from accelplug._errors import AccelplugError, PluginError, UnknownTechniqueError
from accelplug.hooks.context import API_VERSION, BuildContext
from accelplug.hooks.factories import check_factory, load_factory
from accelplug.hooks.options import check_options
from accelplug.hooks.spelling import Spec, parse_spec

V = TypeVar("V")
R = TypeVar("R")

ALLOW_LIST: Final = "ACCELPLUG_PLUGINS"
HOOKS: Final[Mapping[str, str]] = {
    "drafter": "register_drafters",
    "verifier": "register_verifiers",
    "grammar": "register_grammars",
    "kv_compressor": "register_kv_compressors",
    "vision_reducer": "register_vision_reducers",
}
_PLAIN_DATA: Final = (int, float, complex, bool, bytes, list, tuple, set, frozenset, type(None))


@dataclass(frozen=True, slots=True)
class Owner:
    """The plugin that offers a technique, and the installed distribution that it came with."""

    plugin: str  # the entry point's name, or the module's
    distribution: str  # what was pip-installed
    version: str  # of the distribution

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".strip()

    def answers_to(self, name: str) -> bool:
        """Whether `name` is the plugin's or the distribution's, however its case, dots, hyphens and underscores are written."""
        return canonicalize_name(name) in {canonicalize_name(self.plugin), canonicalize_name(self.distribution)}


@dataclass(frozen=True, slots=True)
class Entry:
    """One offered technique: who offers it and how to build it."""

    kind: str  # "drafter", "verifier", "grammar", "kv_compressor" or "vision_reducer"
    name: str  # what users write
    owner: Owner  # who offers it
    factory: Callable[..., object] | str  # what builds it, or "package.module:Name"
    api: int = API_VERSION  # the contract version it was written against

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} ({self.owner})"

    def resolve(self) -> Callable[..., object]:
        """Return the factory, importing it if it was registered by path.

        :raises PluginError: it cannot be imported, is no factory, or wants a later contract.
        """
        if self.api > API_VERSION:
            raise PluginError(f"{self} is written for contract version {self.api}, this accelplug has {API_VERSION}; upgrade accelplug")
        factory = load_factory(str(self), self.factory) if isinstance(self.factory, str) else self.factory
        check_factory(str(self), factory)
        return factory


@dataclass(frozen=True, slots=True)
class Technique:
    """A built technique with its attribution. `spec` is what the user asked for."""

    kind: str  # as `Entry.kind`
    name: str  # what users write
    owner: Owner  # who offers it
    instance: Any  # the object itself
    factory: Callable[..., object]  # what built it
    spec: str  # the name with its options

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} ({self.owner})"

    def blame(self, exc: BaseException) -> None:
        """Note on a foreign exception who was running when it was raised."""
        exc.add_note(f"accelplug: raised by {self}, built from {self.spec!r}")

    def call(self, method: Callable[[V], R], view: V) -> R:
        """Call one of the technique's methods; what it raises is noted to be its own."""
        try:
            return method(view)
        except SystemExit as exc:  # which would end the host's process without a word
            raise PluginError(f"{self} calls sys.exit({exc}) while it is asked; raise an error that says what is wrong") from exc
        except Exception as exc:
            self.blame(exc)
            raise


@dataclass(slots=True)
class Registry:
    """Every technique that the installed plugins offer."""

    entries: dict[tuple[str, str], list[Entry]] = field(default_factory=dict)  # (kind, name) -> who offers it
    broken: dict[Owner, Exception] = field(default_factory=dict)  # plugins that failed, and how
    ignored: list[Owner] = field(default_factory=list)  # installed and not on the list of those to load

    def __iter__(self) -> Iterator[Entry]:
        return (entry for offered in self.entries.values() for entry in offered)

    def find(self, kind: str, given: str | Mapping[str, Any] | Spec) -> tuple[Entry, Spec]:
        """Return the one technique that `given` names.

        :raises UnknownTechniqueError: nobody offers it, or there is no such kind; the message lists what there is.
        :raises OptionError: `given` cannot be read.
        :raises PluginError: two plugins offer it and the name does not say whose.
        """
        _check_kind(kind)
        spec = parse_spec(given)
        offered = self.entries.get((kind, spec.name), [])
        if spec.distribution:
            offered = [entry for entry in offered if entry.owner.answers_to(spec.distribution)]
        if not offered:
            raise UnknownTechniqueError(self._unknown(kind, spec))
        if len(offered) > 1:
            owners = [entry.owner for entry in offered]
            raise PluginError(
                f"{kind} {spec.name!r} is offered by {' and '.join(map(str, owners))}; "
                f"write '{_prefix(owners)}:{spec.name}' to choose, or uninstall one"
            )
        return offered[0], spec

    def build(self, kind: str, given: object, context: BuildContext) -> Technique:
        """Build one technique from a name with options, a mapping, or an object built by hand.

        :raises AccelplugError: it is unknown, misconfigured, or its plugin fails to build it.
        """
        _check_kind(kind)
        if not isinstance(given, str | Mapping | Spec):
            return _by_hand(kind, given)
        entry, spec = self.find(kind, given)
        factory = entry.resolve()
        check_options(str(entry), factory, spec.options)
        wanted = {"context": self._lent(context)} if "context" in inspect.signature(factory).parameters else {}
        try:
            instance = factory(**spec.options, **wanted)
        except AccelplugError:
            raise
        except Exception as exc:
            raise PluginError(
                f"{entry} failed to build {str(spec)!r}: {type(exc).__name__}: {exc}; report it to {entry.owner.distribution}"
            ) from exc
        if instance is None:
            raise PluginError(f"{entry} built nothing from {str(spec)!r}: its factory returned None; return the built object")
        return Technique(kind, entry.name, entry.owner, instance, factory, str(spec))

    def _lent(self, context: BuildContext) -> BuildContext:
        """Let the factory build others from this registry, for drafters that are made of drafters."""
        return replace(context, build=lambda kind, given: self.build(kind, given, context))

    def _unknown(self, kind: str, spec: Spec) -> str:
        names = sorted(name for k, name in self.entries if k == kind)
        others = self.entries.get((kind, spec.name), [])
        near = [] if others else get_close_matches(spec.name, names, 1)
        hint = f" did you mean {near[0]!r}?" if near else f" did you mean '{others[0].owner.distribution}:{spec.name}'?" if others else ""
        whose = f" from {spec.distribution!r}" if spec.distribution else ""
        broken = "".join(f"; plugin {owner.plugin!r} ({owner}) failed to load: {one_line(exc)}" for owner, exc in self.broken.items())
        left_out = "".join(f"; plugin {owner.plugin!r} ({owner}) is left out by {ALLOW_LIST}" for owner in self.ignored)
        return f"no {kind} named {spec.name!r}{whose} is installed;{hint} installed: {', '.join(names) or 'none'}{broken}{left_out}"


def one_line(exc: BaseException) -> str:
    """Return an exception's message on one line."""
    return " ".join(str(exc).split())


def check_name(kind: str, name: object) -> None:
    """Refuse what users could not write as a technique's name.

    :raises PluginError: it is no identifier, or a word of Python's.
    """
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise PluginError(f"{kind} {name!r} is no technique name; names are snake case, like 'prompt_lookup'")


def _check_kind(kind: str) -> None:
    if kind not in HOOKS:
        raise UnknownTechniqueError(f"there is no kind of technique named {kind!r}; the kinds are {', '.join(HOOKS)}")


def _prefix(owners: list[Owner]) -> str:
    """Return what chooses the last owner: its distribution, or its plugin where that distribution offers the name twice."""
    last = owners[-1]
    return last.plugin if [owner.distribution for owner in owners].count(last.distribution) > 1 else last.distribution


def _by_hand(kind: str, instance: object) -> Technique:
    cls = type(instance)
    if cls in _PLAIN_DATA:
        methods = {"drafter": "propose(view) or propose_one(tokens, budget)", "verifier": "accept(view) and traits"}.get(kind, "its methods")
        raise PluginError(f"{kind}: a technique is a name, a mapping or an object with {methods}, got {instance!r}")
    if isinstance(instance, type):
        name = instance.__name__
        raise PluginError(f"{kind} {name} is a class; pass an object, {name}(...), or register it under a name")
    owner = Owner(cls.__module__, cls.__module__.partition(".")[0], "")
    return Technique(kind, cls.__name__, owner, instance, cls, repr(instance))


@functools.cache
def registry() -> Registry:
    """Return this process's registry, loaded on first use."""
    from accelplug.hooks.discovery import load_registry  # which fills what this module defines

    return load_registry()
