"""What vLLM calls when accelplug is installed: one look at the configuration, and nothing else.

vLLM loads general plugins in every process, before it has a configuration. So `register` wraps the one function
that makes the configuration; unless that names accelplug, the wrap calls straight through. Once a configuration does, the
front end's check of requests is wrapped too: vLLM has no other place where a request's options can be refused. Audits
wrap the front end's two ways in (`accelplug.hosts.vllm.audit`).
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

KEY: Final = "accelplug"
"""The key of ``additional_config`` under which accelplug's settings stand."""

CONFIG_FILE: Final = "ACCELPLUG_CONFIG"
"""The environment variable that names a file with the settings instead."""

MODULE: Final = "vllm.engine.arg_utils"
REQUESTS: Final = "vllm.v1.engine.input_processor"
ASYNC: Final = "vllm.v1.engine.async_llm"
SYNC: Final = "vllm.v1.engine.llm_engine"

METRICS: Final = "accelplug.hosts.vllm.metrics"

_replaced: list[tuple[Any, str, Any, Any]] = []
"""What was replaced for the whole process: where, the attribute, what it was, and what stands there instead."""


def register() -> None:
    """Wrap ``EngineArgs.create_engine_config``, now or when its module is imported. Calling it again does nothing."""
    module = sys.modules.get(MODULE)
    if module is not None:
        _wrap(module)
    elif not any(isinstance(finder, _WrapOnImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WrapOnImport())


def unregister() -> None:
    """Put back whatever is replaced in this process, and take accelplug's counters off ``/metrics``. Calling it again does nothing.

    What somebody else has put on top since stays where it is.
    """
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _WrapOnImport)]
    for owner, name, original, ours in reversed(_replaced):
        if getattr(owner, name) is ours:
            setattr(owner, name, original)
    _replaced.clear()
    if METRICS in sys.modules:
        sys.modules[METRICS].hide()


def replace(owner: Any, name: str, ours: Any) -> None:
    """Put something in the place of an attribute for the whole process, until `unregister`.

    :param owner: a class, a module, or an object that the whole process shares.
    """
    _replaced.append((owner, name, getattr(owner, name), ours))
    setattr(owner, name, ours)


def wrapped() -> list[str]:
    """Return the methods that are wrapped now, as ``"Class.method"``."""
    return [f"{owner.__name__}.{name}" for owner, name, _, ours in _replaced if isinstance(owner, type) and getattr(owner, name) is ours]


def check_requests() -> None:
    """Wrap the front end's check of requests, so that what a request sets for a technique is refused there with HTTP 400."""
    wrap(importlib.import_module(REQUESTS), "InputProcessor", "_validate_params", _validate_params)


def _validate_params(self: Any, original: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand in for ``InputProcessor._validate_params``."""
    from vllm.exceptions import VLLMValidationError

    from accelplug._errors import AccelplugError
    from accelplug.hosts.vllm.grammar_front import without_grammar
    from accelplug.hosts.vllm.metrics import count
    from accelplug.hosts.vllm.requests import check_params, concerned

    try:
        check_params(self.vllm_config, params)
        with without_grammar(self, params) as rest:
            return original(self, rest, *args, **kwargs)
    except AccelplugError as exc:
        count("accelplug_refused_requests", *concerned(self.vllm_config, params))
        raise VLLMValidationError(str(exc)) from exc


def wrap(module: ModuleType, owner: str, method: str, stand_in: Callable[..., Any]) -> None:
    """Have a function called in place of a method of one of vLLM's classes; wrapping it again does nothing.

    :param stand_in: called with the instance, the method it stands in for, and the arguments.
    """
    cls = getattr(module, owner)
    original = getattr(cls, method)
    if original_of(original) is not None:
        return

    @functools.wraps(original)
    def wrapping(self: Any, *args: Any, **kwargs: Any) -> Any:
        return stand_in(self, original, *args, **kwargs)

    wrapping.__accelplug_original__ = original  # type: ignore[attr-defined]
    replace(cls, method, wrapping)


def original_of(method: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return what a wrap replaced, or None where there is no wrap."""
    found: Callable[..., Any] | None = getattr(method, "__accelplug_original__", None)
    return found


def _wrap(module: ModuleType) -> None:
    wrap(module, "EngineArgs", "create_engine_config", _create_engine_config)


def _create_engine_config(self: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand in for ``EngineArgs.create_engine_config``."""
    given = self.additional_config
    if not ((isinstance(given, dict) and KEY in given) or os.environ.get(CONFIG_FILE)):
        return original(self, *args, **kwargs)
    from accelplug.hosts.vllm.configure import configure

    return configure(self, functools.partial(original, self, *args, **kwargs))


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
