"""Which logits processors may be called for one row, or for a prefix that is never committed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from transformers.generation import LogitsProcessorList, logits_process

_PER_ROW: Final = "prompt_ignore_length"


def _known(*names: str) -> frozenset[type | None]:
    """Return Transformers' processors of these names; one that a release lacks is no loss."""
    return frozenset(getattr(logits_process, name, None) for name in names)


# Those that look at nothing but the scores: what they leave, a draft may be drawn from before its tokens are known to anybody.
_WARPERS: Final = _known(
    "EpsilonLogitsWarper", "EtaLogitsWarper", "MinPLogitsWarper", "TemperatureLogitsWarper", "TopHLogitsWarper", "TopKLogitsWarper",
    "TopPLogitsWarper", "TypicalLogitsWarper",
)  # fmt: skip

# Those that look at one row's tokens and scores at a time and remember nothing: called for one row they answer as for a batch,
# and a call more or less changes nothing.
_ROW_WISE: Final = _WARPERS | _known(
    "ExponentialDecayLengthPenalty", "ForcedBOSTokenLogitsProcessor", "ForcedEOSTokenLogitsProcessor", "InfNanRemoveLogitsProcessor",
    "LogitNormalization", "MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor", "NoBadWordsLogitsProcessor",
    "NoRepeatNGramLogitsProcessor", "RepetitionPenaltyLogitsProcessor", "SequenceBiasLogitsProcessor",
    "SuppressTokensAtBeginLogitsProcessor", "SuppressTokensLogitsProcessor", "WatermarkLogitsProcessor",
)  # fmt: skip


def of_row(processors: Any, row: int) -> Any:
    """Return a call's processors as one row of it needs them: those that hold a length per row (the repetition penalty, from
    Transformers 5.24 on) hold that row's, as a number, which fits any batch of prefixes.
    """
    per_row = [isinstance(getattr(processor, _PER_ROW, None), Tensor) for processor in processors or ()]
    if not any(per_row):
        return processors
    return LogitsProcessorList(_with_length(processor, row) if has else processor for processor, has in zip(processors, per_row, strict=True))


def _with_length(processor: Any, row: int) -> Any:
    own = copy.copy(processor)
    setattr(own, _PER_ROW, int(getattr(processor, _PER_ROW)[row]))
    return own


def warping(processors: Any) -> Callable[[Tensor], Tensor] | None:
    """Return the temperature, top-k, top-p and their like among a call's processors as one function of scores, [n, vocab_size].

    A copy of the scores is changed. None where there are none.
    """
    warpers = [processor for processor in processors if type(processor) in _WARPERS]

    def warp(scores: Tensor) -> Tensor:
        nothing = torch.empty(len(scores), 0, dtype=torch.long, device=scores.device)
        scores = scores.clone()
        for warper in warpers:
            scores = warper(nothing, scores)
        return scores

    return warp if warpers else None


def is_prefix_pure(processor: Any) -> bool:
    """Whether what a processor makes of a row depends on that row's tokens and scores alone: Transformers' own that do,
    and whatever says so by an attribute ``prefix_pure = True``.
    """
    return type(processor) in _ROW_WISE or bool(getattr(processor, "prefix_pure", False))
