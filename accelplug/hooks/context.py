"""What a factory may know about the engine it is built for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

API_VERSION = 1
"""Version of the contract. A technique registered for a later one is refused; earlier ones keep running."""


@dataclass(frozen=True, slots=True)
class BuildContext:
    """The engine a technique is built for, given to factories that have a parameter named ``context``.

    :param host: ``"transformers"`` or ``"vllm"``.
    :param vocab_size: width of the model's logits; may exceed the tokenizer's vocabulary.
    :param eos_token_ids: ids that end a request.
    :param dtype: of the model's weights.
    :param device: of the model's first parameters.
    :param hidden_size: of the decoder.
    :param max_length: most tokens a request may have.
    :param num_slots: most requests at once; slots are ``0 .. num_slots - 1``.
    :param vocabulary: call it for the bytes of every token id, special tokens as empty bytes; raises HostError where
        the host was given no tokenizer.
    :param embeddings: call it for the input embedding matrix, [vocab_size, hidden_size].
    :param output_head: call it for the output matrix, [vocab_size, hidden_size].
    :param api: the contract version of this accelplug.
    """

    host: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    hidden_size: int
    max_length: int
    num_slots: int
    vocabulary: Callable[[], Sequence[bytes]]
    embeddings: Callable[[], torch.Tensor]
    output_head: Callable[[], torch.Tensor]
    api: int = API_VERSION
