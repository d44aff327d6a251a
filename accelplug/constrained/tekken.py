"""A real vocabulary for judging: tekken, 131,072 tokens, as the package mistral_common brings it along."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from accelplug._errors import ConstraintError
from accelplug.hooks import Vocabulary


@cache
def tekken() -> Vocabulary:
    """Return it.

    :raises ConstraintError: mistral_common is not installed.
    """
    try:
        import mistral_common
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer
    except ImportError as exc:
        raise ConstraintError(
            "the vocabulary tekken comes with mistral_common, which is not installed; name bytes or a tokenizer's folder"
        ) from exc
    found: Any = Tekkenizer.from_file(Path(mistral_common.__file__).parent / "data" / "tekken_240911.json")
    special = found.num_special_tokens
    tokens = [b"" if index < special else found._model.decode_single_token_bytes(index - special) for index in range(found.n_words)]
    return Vocabulary(tuple(tokens), (found.eos_id,), encode=lambda text: found.encode(text, bos=False, eos=False))
