"""What a technique's class and options tell before it is built, so that a host can refuse it before a model is loaded."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

from accelplug.hooks.drafting import DrafterTraits
from accelplug.hooks.options import unwrapped
from accelplug.hooks.registry import Entry, Technique
from accelplug.hooks.spelling import Spec
from accelplug.hooks.verifying import VerifierTraits


def unbuilt(entry: Entry, spec: Spec) -> Technique | None:
    """Return a technique that has its options, its class's methods and its traits, and nothing else; None where only building it tells its traits.

    They are told by a class attribute that building cannot replace, or by a property that reads the options alone. Of the plugin nothing
    runs but that property.

    :param spec: its options have been checked.
    :raises PluginError: the factory cannot be imported.
    """
    factory = entry.resolve()
    cls = unwrapped(factory)
    options = _options(factory) | dict(spec.options)
    if not isinstance(cls, type) or not _has_traits(cls):
        return None
    try:
        instance = _bare(cls, options)
        told = not hasattr(cls, "traits") or isinstance(instance.traits, DrafterTraits | VerifierTraits)  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001  of whatever kind: the property wants what is there once it is built
        return None
    return Technique(entry.kind, entry.name, entry.owner, instance, factory, str(spec)) if told else None


def _has_traits(cls: type) -> bool:
    """Whether a class has a property `traits`, or traits that no instance can replace; having none at all counts as such."""
    traits = inspect.getattr_static(cls, "traits", None)
    if isinstance(traits, property):
        return True
    return (traits is None or isinstance(traits, DrafterTraits | VerifierTraits)) and not _adds_attributes(cls)


def _adds_attributes(cls: type) -> bool:
    """Whether building an instance may set attributes that the class does not declare."""
    if "__dict__" not in dir(cls):  # every class in its order of inheritance has slots
        return False
    parameters = vars(cls).get("__dataclass_params__")
    is_plain = inspect.getattr_static(cls, "__init__") is object.__init__ or (parameters is not None and parameters.init)
    return not is_plain or hasattr(cls, "__post_init__")


def _options(factory: Any) -> dict[str, Any]:
    """Return the options that ``functools.partial`` has set."""
    found: dict[str, Any] = {}
    while isinstance(factory, functools.partial):
        found, factory = dict(factory.keywords) | found, factory.func
    return found


def _bare(cls: type, options: Mapping[str, Any]) -> object:
    """Return an instance with the fields that the user sets, which nobody has initialised."""
    instance: object = object.__new__(cls)
    for field in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
        if not field.init:
            continue
        if field.name in options:
            object.__setattr__(instance, field.name, options[field.name])
        elif field.default is not dataclasses.MISSING:
            object.__setattr__(instance, field.name, field.default)
        elif field.default_factory is not dataclasses.MISSING:
            object.__setattr__(instance, field.name, field.default_factory())
    return instance
