"""The grammar engines of one process, and what they are told about the model."""

from __future__ import annotations

import functools
from threading import Lock
from typing import Any, NoReturn

from accelplug._errors import AccelplugError, HostError, OptionError, PluginError
from accelplug.hooks.context import BuildContext
from accelplug.hooks.masking import CompiledGrammar, CompileLimits, Vocabulary
from accelplug.hooks.registry import Technique, one_line, registry
from accelplug.hooks.spelling import Spec
from accelplug.hosts.vllm.context import eos_token_ids, tokens_of
from accelplug.hosts.vllm.grammar_request import Asked
from accelplug.hosts.vocabulary import vocabulary_of


class Engines:
    """Builds each engine when it is first asked for.

    :param default: the server's engine.
    """

    def __init__(self, default: Spec, config: Any) -> None:
        self.default, self.config = default, config
        self._built: dict[str, Technique] = {}
        self._lock = Lock()

    def engine(self, name: str | None) -> Technique:
        """Return an engine.

        :param name: as a request names it; None for the server's.
        :raises AccelplugError: nobody offers it, or it fails to build.
        """
        entry, spec = registry().find("grammar", self.default if name is None else name)
        if name is not None and spec.options:
            raise OptionError(f"a request names a grammar's engine and sets none of its options, got {name!r:.80}; write {spec.name!r}")
        key = str(spec) if name is None else str(entry)
        with self._lock:
            if key not in self._built:
                self._built[key] = registry().build("grammar", spec, _context(self.config))
            return self._built[key]

    def compile(self, wanted: Asked, vocabulary: Vocabulary, limits: CompileLimits | None = None) -> tuple[Technique, CompiledGrammar]:
        """Return a compiled grammar, and who compiled it.

        :raises AccelplugError: the engine refuses it, or fails.
        """
        engine = self.engine(wanted.engine)
        try:
            return engine, engine.call(lambda spec: engine.instance.compile(spec, vocabulary, limits or CompileLimits()), wanted.spec)
        except AccelplugError:
            raise
        except Exception as exc:
            raise PluginError(
                f"{engine} failed on the {wanted.spec.kind}: {type(exc).__name__}: {one_line(exc):.200}; simplify it, or use another engine"
            ) from exc


def whole_vocabulary(config: Any, tokenizer: Any) -> Vocabulary:
    """Return what engines are told about a model's tokens.

    :raises HostError: the tokenizer's bytes cannot be read.
    """
    width = config.model_config.get_vocab_size()
    ends = {*eos_token_ids(config.model_config), getattr(tokenizer, "eos_token_id", None)}
    return vocabulary_of(tokenizer, width, sorted(end for end in ends if end is not None and end < width))


def _context(config: Any) -> BuildContext:
    import torch

    model = config.model_config
    width = model.get_vocab_size()
    return BuildContext(
        host="vllm", vocab_size=width, eos_token_ids=eos_token_ids(model), dtype=model.dtype, device=torch.device("cpu"),
        hidden_size=model.get_hidden_size(), max_length=model.max_model_len, num_slots=config.scheduler_config.max_num_seqs,
        vocabulary=functools.cache(lambda: tokens_of(model, width)), embeddings=_no_weights, output_head=_no_weights,
    )  # fmt: skip


def _no_weights() -> NoReturn:
    raise HostError("grammars are compiled in processes that hold no weights; build the engine without the model's matrices")
