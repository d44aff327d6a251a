"""Load a technique's factory, and refuse what cannot be called with a user's options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field
from importlib import import_module
from typing import Any

from accelplug._errors import PluginError
from accelplug.hooks.options import unwrapped


def load_factory(who: str, path: str) -> Callable[..., object]:
    """Import a factory that was registered as ``"package.module:Name"``.

    :param who: the technique as errors should name it, e.g. ``drafter 'echo' (accelplug-echo 1.0)``.
    :raises PluginError: the path is no path, or nothing can be imported from it.
    """
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise PluginError(f"{who} is registered with the path {path!r}; write it like 'package.module:Name'")
    try:
        loaded: Callable[..., object] = getattr(import_module(module), attribute)
    except (Exception, SystemExit) as exc:
        raise PluginError(f"{who} cannot be imported from {path!r}: {type(exc).__name__}: {exc}; reinstall or remove its plugin") from exc
    return loaded


def check_factory(who: str, factory: Any) -> None:
    """Refuse a factory that is none, or whose options cannot be known.

    :raises PluginError: it is not callable, has no signature, or declares options without being a dataclass.
    """
    if not callable(factory):
        raise PluginError(f"{who} is registered with {factory!r}, which cannot be called; register a class, a function or 'package.module:Name'")
    cls = unwrapped(factory)
    members = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()} if isinstance(cls, type) else {}
    if undeclared := [name for name, value in members.items() if isinstance(value, Field)]:
        raise PluginError(f"{who} declares {', '.join(undeclared)} with option() in a class that is no dataclass; add @dataclass")
    try:
        inspect.signature(factory)
    except (TypeError, ValueError) as exc:
        raise PluginError(f"{who} is registered with {factory!r}, whose parameters Python does not tell; wrap it in a function that names them") from exc
