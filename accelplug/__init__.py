"""Plugins for inference acceleration, inside Hugging Face Transformers and vLLM, without forking either.

Importing this loads neither torch nor an engine; `generate` and `attach` load them when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelplug._config import load_config
from accelplug._errors import (
    AccelplugError,
    ConstraintError,
    HostError,
    OptionError,
    PluginError,
    UnknownTechniqueError,
)
from accelplug._version import __version__
from accelplug.hooks import hookimpl, load_registry, option, registry

if TYPE_CHECKING:
    from accelplug.hosts.hf import Grammar, Session, attach, generate, grammar

__all__ = [
    "AccelplugError",
    "ConstraintError",
    "Grammar",
    "HostError",
    "OptionError",
    "PluginError",
    "Session",
    "UnknownTechniqueError",
    "__version__",
    "attach",
    "generate",
    "grammar",
    "hookimpl",
    "load_config",
    "load_registry",
    "option",
    "registry",
]

_LAZY = ("Grammar", "Session", "attach", "generate", "grammar")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from accelplug.hosts import hf

        return getattr(hf, name)
    raise AttributeError(f"module 'accelplug' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
