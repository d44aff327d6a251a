"""A second model whose tokens are not the target's: it reads the target's text in its own tokens, and drafts in either's."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accelplug._errors import HostError
from accelplug.hooks.drafting import IntArray
from accelplug.hosts.hf.second import Second
from accelplug.hosts.vocabulary import split_behind, token_bytes

_SETTLED = 256  # bytes behind which whole lines are split for good


@dataclass(slots=True)
class _Text:
    """One request's text as the second model reads it."""

    num_tokens: int = 0  # of the target's that are in it
    settled: list[int] = field(default_factory=list)
    tail: bytes = b""  # what is split anew each time, since later letters change how earlier ones are split
    read: list[int] = field(default_factory=list)


class Tokens:
    """What two tokenizers have in common, and how each spells the other's text.

    :param theirs: the target's tokenizer.
    :param own: the second model's.
    :param widths: of the target's logits and of the second model's.
    :ivar pairs: int64 [2, count], tokens of the same bytes: the target's ids, and the second model's. Special ones count where they are
        written alike; of several ids of the same bytes the last.
    """

    def __init__(self, theirs: Any, own: Any, widths: tuple[int, int]) -> None:
        self.theirs, self.own = theirs, own
        self.bytes = [_spelling(tokenizer, width) for tokenizer, width in zip((theirs, own), widths, strict=True)]
        known, others = ({piece: token for token, piece in enumerate(pieces) if piece} for pieces in self.bytes)
        self.pairs = torch.tensor([[token, others[piece]] for piece, token in known.items() if piece in others]).reshape(-1, 2).T
        self.to_own: dict[int, int] = dict(zip(*self.pairs.tolist(), strict=True))
        bos = own.bos_token_id
        self.beginning = [bos] if bos is not None and own.encode("a")[:1] == [bos] else []

    def split(self, text: bytes) -> list[int]:
        """Return the second model's tokens of the target's text; an unfinished letter at the end is left out."""
        ids: list[int] = self.own.encode(codecs.decode(text, "utf-8", "ignore"), add_special_tokens=False)
        return ids

    def spelled(self, tokens: Sequence[int]) -> list[int]:
        """Return the target's tokens of what the second model wrote."""
        text = b"".join(self.bytes[1][token] for token in tokens).decode("utf-8", "ignore")
        return split_behind(self.theirs, self.bytes[0], text) if text else []


def _spelling(tokenizer: Any, width: int) -> list[bytes]:
    """Return every token's bytes, special ones as they are written."""
    pieces = list(token_bytes(tokenizer, width))
    for token in tokenizer.all_special_ids:
        if token < width:
            pieces[token] = tokenizer.convert_ids_to_tokens(token).encode()
    return pieces


class Translated:
    """A second model with other tokens, as `accelplug.hooks.SecondModel`.

    :param second: it, as wide as its own vocabulary.
    :param speaks: ``"intersection"``: logits are over the target's tokens, of which those that both have are left (TLI, Timor et al. 2025,
        arXiv 2502.05202, algorithm 4); ``"text"``: they are over its own tokens, which `spelled` translates.
    """

    def __init__(self, second: Second, tokens: Tokens, speaks: str, vocab_size: int) -> None:
        self.second, self.tokens, self.speaks, self.vocab_size = second, tokens, speaks, vocab_size
        self.texts: dict[int, _Text] = {}
        if speaks == "intersection" and not tokens.to_own:
            raise HostError("the second model's tokenizer and the target's have no token in common; use tokens='text'")

    @property
    def forwards(self) -> int:
        """Forward passes so far."""
        return self.second.forwards

    def start(self, slots: IntArray) -> None:
        """Begin with nothing read in each slot."""
        self.second.start(slots)
        self.texts |= {slot: _Text(settled=[*self.tokens.beginning]) for slot in slots.tolist()}

    def finish(self, slots: IntArray) -> None:
        """Free the cache of each slot."""
        self.second.finish(slots)
        for slot in slots.tolist():
            self.texts.pop(slot, None)

    def extend(self, slots: IntArray, histories: Sequence[IntArray], ahead: Sequence[int] | None = None) -> Tensor:
        """Read what was committed since, what is ahead of it, and anew what is split in another way now; return logits as `speaks` says."""
        counts = ahead or [0] * len(histories)
        own = [self._own(slot, history, count) for slot, history, count in zip(slots.tolist(), histories, counts, strict=True)]
        return self._shown(self.second.extend(slots, own))

    def _own(self, slot: int, history: IntArray, ahead: int) -> IntArray:
        """Return the request's whole text in own tokens, of which the cache holds as many as are still right."""
        text, committed = self.texts[slot], len(history) - ahead
        text.tail += self._bytes(history[text.num_tokens : committed])
        text.num_tokens = committed
        same = len(text.settled)
        if len(text.tail) > 2 * _SETTLED and (end := text.tail.rfind(b"\n", 0, -_SETTLED)) > 0:
            text.settled += self.tokens.split(text.tail[:end])
            text.tail = text.tail[end:]
        ids = text.settled + self.tokens.split(text.tail + self._bytes(history[committed:])) or [0]
        while same < min(len(ids) - 1, len(text.read)) and ids[same] == text.read[same]:
            same += 1
        self.second.forget(slot, min(same, len(ids) - 1))
        text.read = ids
        return np.array(ids)

    def _bytes(self, tokens: IntArray) -> bytes:
        return b"".join(self.tokens.bytes[0][token] for token in tokens.tolist())

    def expand(self, requests: Sequence[int], tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Read draft nodes; return logits as `speaks` says."""
        own = tokens if self.speaks == "text" else [self.tokens.to_own.get(token, 0) for token in tokens]  # a tree may hold impossible ones
        return self._shown(self.second.expand(requests, own, parents))

    def _shown(self, logits: Tensor) -> Tensor:
        if self.speaks == "text":
            return logits
        theirs, own = self.tokens.pairs = self.tokens.pairs.to(logits.device)  # moved once
        shown = logits.new_full((len(logits), self.vocab_size), -torch.inf)
        shown[:, theirs] = logits[:, own]
        return shown

    def spelled(self, tokens: Sequence[int]) -> list[int]:
        """Return the target's tokens of own ones that follow a request's text."""
        return self.tokens.spelled(tokens)
