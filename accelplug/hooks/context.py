"""What a factory may know about the engine it is built for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accelplug._errors import HostError, PluginError

if TYPE_CHECKING:
    import torch

    from accelplug.hooks.models import SecondModel
    from accelplug.hooks.registry import Technique

API_VERSION = 1
"""Version of the contract. A technique registered for a later one is refused; earlier ones keep running."""


def _nothing_to_build_from(kind: str, given: object) -> Technique:
    raise PluginError(f"a context made by hand builds no {kind} {given!r}; build the outer technique by its name, through a registry")


def _no_second_model(given: object, _tokens: str = "same") -> SecondModel:
    raise HostError(f"this host runs no second model beside the target, and {given!r:.60} was asked for; use the transformers host")


def _no_measures() -> Mapping[int, float]:
    raise HostError("this host does not measure its steps; use a drafter that needs no costs, or the transformers host")


def _no_candidates(name: str, _options: Mapping[str, Any]) -> Callable[[torch.Tensor], Any]:
    raise HostError(f"this host has no candidate generators of its own, and {name!r} was asked for; use the transformers host")


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
    :param num_slots: most requests at once, slots are ``0 .. num_slots - 1``; None where the engine does not know it in
        advance: slots are then small integers from 0, so grow what is kept by slot on demand.
    :param vocabulary: call it for the bytes of every token id, special tokens as empty bytes; raises HostError where
        the host was given no tokenizer.
    :param embeddings: call it for the input embedding matrix, [vocab_size, hidden_size].
    :param output_head: call it for the output matrix, [vocab_size, hidden_size].
    :param build: call it as ``build("drafter", "prompt_lookup(num_tokens=6)")`` for another technique, from the registry
        that is building this one and for the same engine; raises AccelplugError where that is unknown or misconfigured.
    :param load_model: call it with a loaded model, a folder or a name on the hub for a SecondModel with the target's tokens; of one with
        other tokens pass ``"intersection"`` to draft those that both have, or ``"text"`` to draft in its own. Raises HostError where
        the host runs none, or not that one. Say ``"model.second"`` in your traits' needs.
    :param step_seconds: call it for what a step takes by how many positions it verifies, position of the last committed
        token included: width -> seconds, of the widths seen often enough, drafting included. A technique's only clock.
        Raises HostError where the host measures none.
    :param candidates: call it as ``candidates("prompt_lookup", {"prompt_lookup_num_tokens": 8})`` for what makes one of the
        engine's own candidate generators for a request's token ids, [1, length]; raises HostError where it has none. What makes
        ``"mtp"`` or ``"dflash"`` has the `layers` that those read, and each has ``read(history, states)`` for one request's of `CommitView.hidden`.
    :param api: the contract version of this accelplug.
    """

    host: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    hidden_size: int
    max_length: int
    num_slots: int | None
    vocabulary: Callable[[], Sequence[bytes]]
    embeddings: Callable[[], torch.Tensor]
    output_head: Callable[[], torch.Tensor]
    build: Callable[[str, object], Technique] = _nothing_to_build_from
    load_model: Callable[..., SecondModel] = _no_second_model
    step_seconds: Callable[[], Mapping[int, float]] = _no_measures
    candidates: Callable[[str, Mapping[str, Any]], Callable[[torch.Tensor], Any]] = _no_candidates
    api: int = API_VERSION
