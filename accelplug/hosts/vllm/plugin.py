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

WRAPPED: Final = (
    (MODULE, "EngineArgs", "create_engine_config"),  # always, the others where a configuration asks for accelplug
    (REQUESTS, "InputProcessor", "_validate_params"),
    (ASYNC, "AsyncLLM", "add_request"),  # for grammars alone
    (ASYNC, "AsyncLLM", "generate"),  # these for audits alone
    (SYNC, "LLMEngine", "add_request"),
    (SYNC, "LLMEngine", "step"),
)
"""Every method of a class of vLLM's that accelplug ever wraps."""


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
    for owner, method, original in _wraps():
        setattr(owner, method, original)


def wrapped() -> list[str]:
    """Return the methods that are wrapped now, as ``"Class.method"``."""
    return [f"{owner.__name__}.{method}" for owner, method, _ in _wraps()]


def _wraps() -> list[tuple[type, str, Callable[..., Any]]]:
    """Return every wrap that is in place: its class, the method's name, and what it replaced."""
    loaded = [(getattr(sys.modules[name], owner), method) for name, owner, method in WRAPPED if name in sys.modules]
    return [(owner, method, original) for owner, method in loaded if (original := original_of(getattr(owner, method))) is not None]


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
    setattr(cls, method, wrapping)


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
