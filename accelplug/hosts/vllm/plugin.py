"""What vLLM calls when accelplug is installed: one look at the configuration, and nothing else.

vLLM loads general plugins in every process, before it has a configuration. So `register` wraps the one function
that makes the configuration; unless that names accelplug, the wrap calls straight through.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

KEY: Final = "accelplug"
"""The key of ``additional_config`` under which accelplug's settings stand."""

MODULE: Final = "vllm.engine.arg_utils"


def register() -> None:
    """Wrap ``EngineArgs.create_engine_config``, now or when its module is imported. Calling it again does nothing."""
    module = sys.modules.get(MODULE)
    if module is not None:
        _wrap(module)
    elif not any(isinstance(finder, _WrapOnImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WrapOnImport())


def unregister() -> None:
    """Put everything back as it was before `register`."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _WrapOnImport)]
    module = sys.modules.get(MODULE)
    if module is not None and (original := _original(module)) is not None:
        module.EngineArgs.create_engine_config = original


def _original(module: ModuleType) -> Callable[..., Any] | None:
    """Return what the wrap replaced, or None where there is no wrap."""
    found: Callable[..., Any] | None = getattr(module.EngineArgs.create_engine_config, "__accelplug_original__", None)
    return found


def _wrap(module: ModuleType) -> None:
    if _original(module) is not None:
        return
    original = module.EngineArgs.create_engine_config

    @functools.wraps(original)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = self.additional_config
        if not isinstance(given, dict) or KEY not in given:
            return original(self, *args, **kwargs)
        from accelplug.hosts.vllm.configure import configure

        return configure(self, functools.partial(original, self, *args, **kwargs))

    create_engine_config.__accelplug_original__ = original  # type: ignore[attr-defined]
    module.EngineArgs.create_engine_config = create_engine_config


class _WrapOnImport(importlib.abc.MetaPathFinder):
    """Wraps the module as soon as somebody imports it: engine processes never do, and need not pay for it."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Step aside, find the module as if nobody had asked, and have it wrapped once it ran."""
        del path, target
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            _after(spec.loader)
        return spec


def _after(loader: importlib.abc.Loader) -> None:
    """Make one module's own loader wrap it after it ran."""
    run = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        run(module)
        _wrap(module)

    loader.exec_module = exec_module  # type: ignore[method-assign]
