"""The front end's part in grammars: refuse what cannot be compiled before the request is queued, and keep vLLM's own check off the rest.

Grammars are compiled here on a vocabulary of bytes, which refuses what the model's would and takes milliseconds. Where an engine needs
longer, a thread does it while the server answers others: vLLM checks requests in its event loop.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import importlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

from accelplug._errors import AccelplugError, ConstraintError
from accelplug.hooks.masking import Vocabulary
from accelplug.hosts.vllm.grammar_engines import Engines, whole_vocabulary
from accelplug.hosts.vllm.grammar_request import Asked, asked
from accelplug.hosts.vllm.plugin import ASYNC, KEY, wrap
from accelplug.hosts.vllm.requests import read_request
from accelplug.hosts.vllm.settings import read_settings

MOST_KEPT: Final = 256
KEPT_SECONDS: Final = 60.0
"""How long a refusal stands: one for time or memory may be the machine's of that minute."""
_COMPILING: Final = ThreadPoolExecutor(4, "accelplug-grammar")


class Front:
    """One front end's check of grammars; several threads use it.

    :param config: vLLM's VllmConfig, of a server with a grammar's engine.
    :param tokenizer: the model's.
    """

    def __init__(self, config: Any, tokenizer: Any) -> None:
        default = read_settings(config.additional_config[KEY]).grammar
        assert default is not None
        self.config, self.default, self.tokenizer = config, default, tokenizer
        self._engines = Engines(default, config)
        self._refused: dict[Asked, tuple[str, float]] = {}

    def governs(self, params: Any) -> bool:
        """Whether accelplug compiles a request's grammar.

        :raises AccelplugError: it cannot be compiled; in one sentence why.
        """
        wanted = asked(self.default, self.config, params, read_request(getattr(params, "extra_args", None)))
        if wanted is None:
            return False
        problem = self._problem(wanted)
        if problem is not None:
            raise ConstraintError(problem)
        return True

    def foresee(self, params: Any) -> None:
        """Do what `governs` will want to know."""
        try:
            self.governs(params)
        except AccelplugError:
            return  # raised again where vLLM expects it

    @functools.cached_property
    def bytes_only(self) -> Vocabulary:
        """Single bytes, an end, and the model's special tokens."""
        special = sorted(whole_vocabulary(self.config, self.tokenizer).special)
        tokens = (*(bytes([byte]) for byte in range(256)), b"", *(b"" for _ in special))
        return Vocabulary(tokens, (256,), None, {name: 257 + i for i, name in enumerate(special)})

    def _problem(self, wanted: Asked) -> str | None:
        """Return why a grammar is refused; None where it is not. What compiles is kept by its engine, what does not is kept here."""
        refused, until = self._refused.get(wanted, ("", 0.0))
        if time.monotonic() < until:
            return refused
        try:
            self._engines.compile(wanted, self.bytes_only)
        except AccelplugError as exc:
            while len(self._refused) >= MOST_KEPT:
                self._refused.pop(next(iter(self._refused)), None)
            self._refused[wanted] = str(exc), time.monotonic() + KEPT_SECONDS
            return str(exc)
        return None


def front_of(processor: Any) -> Front | None:
    """Return the check of one of vLLM's InputProcessors; None where its server has no grammar's engine."""
    if "accelplug_grammars" not in vars(processor):
        settings = (processor.vllm_config.additional_config or {}).get(KEY)
        governed = settings is not None and "grammar" in settings
        processor.accelplug_grammars = Front(processor.vllm_config, processor.tokenizer) if governed else None
    found: Front | None = processor.accelplug_grammars
    return found


@contextmanager
def without_grammar(processor: Any, params: Any) -> Iterator[Any]:
    """Give the parameters that vLLM is to check: without the grammar, where that is accelplug's.

    :raises AccelplugError: the grammar cannot be compiled.
    """
    front = front_of(processor)
    if front is None or not front.governs(params):
        yield params
        return
    rest = copy.copy(params)  # the request's own may be another thread's too
    rest.structured_outputs = None
    yield rest
    for name in params.__struct_fields__:  # vLLM brings some into its own form as it checks them
        if name != "structured_outputs" and getattr(rest, name) is not getattr(params, name):
            setattr(params, name, getattr(rest, name))


def compile_ahead() -> None:
    """Wrap the entry of vLLM's asynchronous front end, so that grammars are compiled outside its event loop. Calling it again does nothing."""
    wrap(importlib.import_module(ASYNC), "AsyncLLM", "add_request", _add_request)


async def _add_request(self: Any, original: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand in for ``AsyncLLM.add_request``."""
    if getattr(params, "structured_outputs", None) is not None and (front := front_of(self.input_processor)) is not None:
        await asyncio.get_running_loop().run_in_executor(_COMPILING, front.foresee, params)
    return await original(self, request_id, prompt, params, *args, **kwargs)
