"""Which logits processors may be called for one row, or for a prefix that is never committed."""

from __future__ import annotations

from typing import Any, Final

from transformers.generation import logits_process

# Transformers' own that look at one row's tokens and scores at a time and remember nothing: called for one row they
# answer as for a batch, and a call more or less changes nothing. A name that a release lacks is no loss.
_ROW_WISE: Final = frozenset(
    getattr(logits_process, name, None)
    for name in (
        "EpsilonLogitsWarper", "EtaLogitsWarper", "ExponentialDecayLengthPenalty", "ForcedBOSTokenLogitsProcessor",
        "ForcedEOSTokenLogitsProcessor", "InfNanRemoveLogitsProcessor", "LogitNormalization", "MinLengthLogitsProcessor",
        "MinNewTokensLengthLogitsProcessor", "MinPLogitsWarper", "NoBadWordsLogitsProcessor", "NoRepeatNGramLogitsProcessor",
        "RepetitionPenaltyLogitsProcessor", "SequenceBiasLogitsProcessor", "SuppressTokensAtBeginLogitsProcessor",
        "SuppressTokensLogitsProcessor", "TemperatureLogitsWarper", "TopHLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper",
        "TypicalLogitsWarper", "WatermarkLogitsProcessor",
    )
)  # fmt: skip


def is_prefix_pure(processor: Any) -> bool:
    """Whether what a processor makes of a row depends on that row's tokens and scores alone: Transformers' own that do,
    and whatever says so by an attribute ``prefix_pure = True``.
    """
    return type(processor) in _ROW_WISE or bool(getattr(processor, "prefix_pure", False))
