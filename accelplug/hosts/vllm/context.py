"""What a factory may know about a vLLM worker: its sizes at once, its tokenizer and matrices when first asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelplug._errors import HostError
from accelplug.hooks.context import BuildContext
from accelplug.hosts.vocabulary import token_bytes

if TYPE_CHECKING:
    import torch


def build_context(runner: Any, step_seconds: Callable[[], Mapping[int, float]]) -> BuildContext:
    """Describe the engine of a model runner whose model is loaded.

    :param runner: vLLM's model runner, V1 or V2.
    :param step_seconds: what its steps take, by their width; may refuse.
    """
    config = runner.vllm_config
    model = config.model_config
    vocab_size = model.get_vocab_size()
    return BuildContext(
        host="vllm",
        vocab_size=vocab_size,
        eos_token_ids=eos_token_ids(model),
        dtype=model.dtype,
        device=runner.device,
        hidden_size=model.get_hidden_size(),
        max_length=model.max_model_len,
        num_slots=config.scheduler_config.max_num_seqs,
        vocabulary=functools.cache(lambda: tokens_of(model, vocab_size)),
        embeddings=functools.cache(lambda: _matrix(runner, vocab_size, "embed")),
        output_head=functools.cache(lambda: _matrix(runner, vocab_size, "head")),
        step_seconds=step_seconds,
    )


def eos_token_ids(model: Any) -> tuple[int, ...]:
    """Return the ids that end a request: the generation configuration's, else the model's."""
    found = model.try_get_generation_config().get("eos_token_id", getattr(model.hf_text_config, "eos_token_id", None))
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list | tuple) else (int(found),)


def tokens_of(model: Any, vocab_size: int) -> Sequence[bytes]:
    """Return the bytes of every token id; special and unused ids are empty.

    :raises HostError: there is no tokenizer, or its bytes cannot be read.
    """
    if model.skip_tokenizer_init:
        raise HostError("the vocabulary is unknown since vLLM was started with skip_tokenizer_init; start it with a tokenizer")
    from vllm.tokenizers.registry import cached_tokenizer_from_config

    return token_bytes(cached_tokenizer_from_config(model), vocab_size)


def _matrix(runner: Any, vocab_size: int, which: str) -> torch.Tensor:
    """Return a whole embedding matrix, [vocab_size, hidden_size], without vLLM's padding rows."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    if runner.vllm_config.parallel_config.tensor_parallel_size > 1:
        raise HostError("each tensor-parallel rank holds a shard of the embedding matrices; run with tensor_parallel_size=1")
    layers = [module for module in runner.get_model().modules() if isinstance(module, VocabParallelEmbedding)]
    heads = [layer for layer in layers if isinstance(layer, ParallelLMHead)]
    # A model with tied weights may have no head of its own, or one that shares the embedding's weight.
    found = heads or layers if which == "head" else [layer for layer in layers if layer not in heads] or layers
    weight = getattr(found[0], "weight", None) if found else None
    if weight is None or weight.dim() != 2:
        raise HostError(f"{type(runner.get_model()).__name__} has no plain embedding matrix that vLLM exposes; use a drafter that needs none")
    matrix: torch.Tensor = weight[:vocab_size]
    return matrix
