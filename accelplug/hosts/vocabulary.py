"""The real bytes of every token, read off a tokenizer without importing an engine."""

from __future__ import annotations

import json
from typing import Any

from accelplug._errors import HostError


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
