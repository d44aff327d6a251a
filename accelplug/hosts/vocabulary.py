"""The real bytes of every token, and how a tokenizer splits text, read off it without importing an engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from accelplug._errors import HostError
from accelplug.hooks.masking import Vocabulary


def _byte_level_alphabet() -> dict[str, int]:
    """Return GPT-2's printable stand-ins for the 256 bytes, character -> byte."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + i): byte for i, byte in enumerate(moved)}


def token_bytes(tokenizer: Any, vocab_size: int) -> tuple[bytes, ...]:
    """Return the bytes of token ids ``0 .. vocab_size - 1``; special and unused ids are empty.

    :param tokenizer: a Hugging Face fast tokenizer with a byte-level or a byte-fallback decoder.
    :raises HostError: the tokenizer is of another kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise HostError(f"cannot read token bytes of a {type(tokenizer).__name__}; load a fast tokenizer (AutoTokenizer.from_pretrained)")
    decoder = json.dumps(json.loads(backend.to_str()).get("decoder"))
    alphabet = _byte_level_alphabet() if '"ByteLevel"' in decoder else None
    if alphabet is None and '"ByteFallback"' not in decoder and '"Metaspace"' not in decoder:
        raise HostError(f"cannot read token bytes behind the decoder {decoder}; byte-level and byte-fallback tokenizers are supported")
    special = set(tokenizer.all_special_ids)
    found = [b""] * vocab_size
    for text, index in tokenizer.get_vocab().items():
        if index < vocab_size and index not in special:
            found[index] = _decode(text, alphabet)
    return tuple(found)


def _decode(text: str, alphabet: dict[str, int] | None) -> bytes:
    if alphabet is not None:
        if all(character in alphabet for character in text):
            return bytes(alphabet[character] for character in text)
        return text.encode()
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes.fromhex(text[3:5])
    return text.replace("\u2581", " ").encode()


def vocabulary_of(tokenizer: Any, vocab_size: int, eos_token_ids: Sequence[int]) -> Vocabulary:
    """Return what grammar engines are told about a tokenizer; the last few are kept, since reading one takes a second.

    :param vocab_size: the width of the model's logits.
    :param eos_token_ids: ids that end a text, whatever bytes they have.
    :raises HostError: the tokenizer's bytes cannot be read.
    :raises ConstraintError: there is no end.
    """
    return _vocabulary_of(tokenizer, len(tokenizer) if hasattr(tokenizer, "__len__") else 0, vocab_size, tuple(eos_token_ids))


@lru_cache(maxsize=4)
def _vocabulary_of(tokenizer: Any, _size: int, vocab_size: int, eos_token_ids: tuple[int, ...]) -> Vocabulary:
    tokens = list(token_bytes(tokenizer, vocab_size))
    for token in eos_token_ids:
        if token < vocab_size:
            tokens[token] = b""
    special = {name: token for name, token in tokenizer.get_vocab().items() if token < vocab_size and not tokens[token]}

    def encode(text: str) -> list[int]:
        return split_behind(tokenizer, tokens, text)

    return Vocabulary(tuple(tokens), eos_token_ids, encode, special)


_ANCHOR = "\x02"


def split_behind(tokenizer: Any, tokens: Sequence[bytes], text: str) -> list[int]:
    """Return how the tokenizer splits text that stands behind other text; nothing where that cannot be told.

    Some tokenizers put a blank before whatever they are given: then a letter is put there first, and taken away again.
    """
    wanted = text.encode()
    for before in ("", _ANCHOR):
        ids: list[int] = tokenizer.encode(before + text, add_special_tokens=False)
        while ids and len(b"".join(tokens[token] for token in ids)) > len(wanted):
            ids = ids[1:]
        if b"".join(tokens[token] for token in ids) == wanted:
            return ids
    return []
