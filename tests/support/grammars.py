"""Grammar engines for tests: one by listing, slow and plainly right, and one that notes what matchers are asked to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from accelplug import ConstraintError
from accelplug.hooks import CompileLimits, GrammarSpec, GrammarStatement, Vocabulary


class ListMatcher:
    """A position in a finite set of byte strings, by looking through all of them."""

    def __init__(self, compiled: Listed) -> None:
        self.compiled, self.vocabulary = compiled, compiled.vocabulary
        self.tokens: list[int] = []

    @property
    def is_terminated(self) -> bool:
        return bool(self.tokens) and self.tokens[-1] in self.vocabulary.eos_token_ids

    def legal(self, token: int, written: Sequence[int]) -> bool:
        ends = self.vocabulary.eos_token_ids
        if any(before in ends for before in written):
            return False
        text = b"".join(self.vocabulary.tokens[before] for before in written)
        if token in ends:
            return text in self.compiled.texts
        more = self.vocabulary.tokens[token]
        return bool(more) and any(whole.startswith(text + more) for whole in self.compiled.texts)

    def fill(self, row: torch.Tensor) -> None:
        bits = [0] * len(row)
        for token in range(len(self.vocabulary)):
            if self.legal(token, self.tokens):
                bits[token // 32] |= 1 << token % 32
        row.copy_(torch.tensor([word - (1 << 32) if word >> 31 else word for word in bits], dtype=torch.int32))

    def validate(self, tokens: Sequence[int]) -> int:
        written = list(self.tokens)
        for count, token in enumerate(tokens):
            if not self.legal(token, written):
                return count
            written.append(token)
        return len(tokens)

    def accept(self, tokens: Sequence[int]) -> int:
        count = self.validate(tokens)
        self.tokens += tokens[:count]
        return count

    def rollback(self, count: int) -> None:
        assert 0 < count <= len(self.tokens)
        del self.tokens[-count:]

    def forced(self) -> list[int]:
        """Every following token that is the only legal one, then the tokenizer's split of common bytes, where it has one."""
        if self.is_terminated:
            return []
        text = b"".join(self.vocabulary.tokens[token] for token in self.tokens)
        rests = [whole[len(text) :] for whole in self.compiled.texts if whole.startswith(text)]
        common = rests[0] if rests else b""
        for rest in rests:
            while not rest.startswith(common):
                common = common[:-1]
        ids = list(self.vocabulary.encode(common.decode())) if common and self.vocabulary.encode else []
        return ids + ([self.vocabulary.eos_token_ids[0]] if rests == [common] else [])


@dataclass(eq=False)
class Listed:
    vocabulary: Vocabulary
    texts: frozenset[bytes]
    statement: GrammarStatement = field(default_factory=lambda: GrammarStatement("listing 1", enforced=("choice",)))

    def matcher(self) -> Any:
        return ListMatcher(self)

    def check(self, text: str) -> str | None:
        return None if text.encode() in self.texts else f"{text!r} is none of the choices"


class Listing:
    """Compiles choices."""

    def compile(self, spec: GrammarSpec, vocabulary: Vocabulary, limits: CompileLimits) -> Any:
        if spec.kind != "choice":
            raise ConstraintError(f"listing compiles choices, not {spec.kind}")
        return Listed(vocabulary, frozenset(text.encode() for text in spec.value()))


@dataclass
class Noted:
    """A matcher that notes every text it was moved to, and every token it refused to move over."""

    inner: Any
    notes: Notes
    tokens: list[int] = field(default_factory=list)

    @property
    def is_terminated(self) -> bool:
        return self.inner.is_terminated

    def fill(self, row: torch.Tensor) -> None:
        self.inner.fill(row)

    def validate(self, tokens: Sequence[int]) -> int:
        before = self.state()
        count = self.inner.validate(tokens)
        assert self.state() == before, "validate moved the matcher"
        return count

    def state(self) -> list[int]:
        """What may follow: the row itself."""
        row = torch.empty(-(-len(self.inner.vocabulary) // 32), dtype=torch.int32)
        self.inner.fill(row)
        return row.tolist()

    def forced(self) -> Sequence[int]:
        before = self.state()
        found = self.inner.forced()
        assert self.state() == before, "forced moved the matcher"
        assert self.inner.validate(found) == len(found), "an engine forces what it forbids"
        return found

    def accept(self, tokens: Sequence[int]) -> int:
        count = self.inner.accept(tokens)
        for token in tokens[:count]:
            self.tokens.append(token)
            self.notes.stepped.append(tuple(self.tokens))
        self.notes.refused += len(tokens) - count
        return count

    def rollback(self, count: int) -> None:
        self.inner.rollback(count)
        del self.tokens[-count:]
        self.notes.rollbacks += 1


@dataclass
class Notes:
    """An engine around another one; see `Noted`."""

    engine: Any
    stepped: list[tuple[int, ...]] = field(default_factory=list)
    refused: int = 0
    rollbacks: int = 0
    matchers: int = 0

    def compile(self, spec: GrammarSpec, vocabulary: Vocabulary, limits: CompileLimits) -> Any:
        return NotedGrammar(self.engine.compile(spec, vocabulary, limits), self)


@dataclass
class NotedGrammar:
    inner: Any
    notes: Notes

    @property
    def statement(self) -> GrammarStatement:
        return self.inner.statement

    def matcher(self) -> Noted:
        self.notes.matchers += 1
        return Noted(self.inner.matcher(), self.notes)

    def check(self, text: str) -> str | None:
        return self.inner.check(text)
