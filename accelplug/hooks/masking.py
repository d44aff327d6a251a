"""Masking: grammars that say which tokens may come next, and engines that compile them.

Objects are split by lifetime: an engine lives as long as the process, a compiled grammar as long as its cache, a matcher
as long as one text. Masks are rows of bits, as wide as the model's logits: token i is bit ``i % 32`` of word ``i // 32``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Event
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Protocol

from accelplug._errors import ConstraintError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

KINDS: Final = ("json_schema", "regex", "ebnf", "lark", "choice", "structural_tag", "all_of")
_WRITTEN_AS_JSON: Final = ("json_schema", "choice", "structural_tag", "all_of")
_WORDS: Final[Mapping[str, tuple[object, ...]]] = {
    "kind": KINDS,
    "format": ("assert", "annotate"),
    "strict": (True, False),
    "whitespace": ("any", "spaced", "compact"),
    "order": ("declared", "any"),
}
_DEFAULTS: Final[Mapping[str, object]] = {"format": "assert", "strict": False, "whitespace": "any", "order": "declared"}
_OF_SCHEMAS: Final[Mapping[str, tuple[str, ...]]] = {
    "format": ("json_schema", "structural_tag"),
    "whitespace": ("json_schema",),
    "order": ("json_schema",),
}
"""Option -> the kinds that it says something to."""


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What the output must be. Hashable, so that what was compiled from it can be cached.

    :param kind: ``"json_schema"``, ``"regex"``, ``"ebnf"`` (the notation of llama.cpp and xgrammar), ``"lark"`` (that of llguidance),
        ``"choice"`` (one of several strings), ``"structural_tag"`` (xgrammar's) or ``"all_of"`` (several grammars, all of which hold).
    :param text: the schema, the list of choices or grammars, or the structural tag as JSON; the expression or the grammar as it is written.
    :param format: whether the keyword ``format`` of a schema constrains (``"assert"``) or only describes (``"annotate"``).
    :param strict: refuse whatever the mask alone does not enforce, rather than checking it at the end.
    :param whitespace: between the parts of JSON ``"any"`` that is allowed there, ``"spaced"`` (one blank behind each comma and
        colon, as `json.dumps` writes) or ``"compact"`` (none).
    :param order: of an object's properties: as they are ``"declared"``, others behind them, which forces most; or ``"any"``, as far as
        an engine can, which costs compile time and forced tokens.
    """

    kind: str
    text: str
    format: Literal["assert", "annotate"] = "assert"
    strict: bool = False
    whitespace: Literal["any", "spaced", "compact"] = "any"
    order: Literal["declared", "any"] = "declared"

    def __post_init__(self) -> None:
        """Refuse misspelt words, and what should be JSON and is none.

        :raises OptionError: naming the field and what it takes.
        :raises ConstraintError: `text` cannot be read.
        """
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise OptionError(f"a grammar's {name} is {getattr(self, name)!r:.80}; it takes {', '.join(map(repr, words))}")
        if self.kind in _WRITTEN_AS_JSON:
            self.value()
        if self.kind == "all_of":
            self.parts()
        elif useless := [name for name, kinds in _OF_SCHEMAS.items() if self.kind not in kinds and getattr(self, name) != _DEFAULTS[name]]:
            raise OptionError(f"the options {', '.join(useless)} of a grammar are for the JSON of a schema and say nothing to a {self.kind}; leave them out")

    def __str__(self) -> str:
        """Return the kind and the beginning of the text, for sentences."""
        return " and ".join(map(str, self.parts())) if self.kind == "all_of" else f"the {self.kind} {' '.join(self.text.split())[:60]!r}"

    def _written(self) -> dict[str, object]:
        return {self.kind: self.text} | {name: getattr(self, name) for name in _DEFAULTS}

    def parts(self) -> tuple[GrammarSpec, ...]:
        """Return the grammars that ``all_of`` puts together.

        :raises OptionError: there are none, or these options belong to its parts.
        """
        found = self.value()
        if not isinstance(found, list) or not found:
            raise OptionError(f"all_of is a list of grammars, at least one, got {self.text:.80}")
        if any(getattr(self, name) != value for name, value in _DEFAULTS.items()):
            raise OptionError("all_of has no options of its own; write format, strict, whitespace and order in its parts")
        return tuple(GrammarSpec.of(part) for part in found)

    def value(self) -> Any:
        """Return what `text` says, where it is JSON.

        :raises ConstraintError: it is none.
        """
        try:
            return json.loads(self.text, parse_constant=_no_number)
        except (ValueError, RecursionError) as exc:
            raise ConstraintError(f"the {self.kind} is no JSON ({type(exc).__name__}: {exc}); write it as json.dumps does") from exc

    @classmethod
    def of(cls, given: object) -> GrammarSpec:
        """Read what users write: ``{"json_schema": {...}, "strict": True}``, one kind and any options, or a GrammarSpec.

        A schema, a list of choices or a structural tag is plain data or JSON text.

        :raises OptionError: there is not exactly one kind, or something that is no option.
        :raises ConstraintError: the text cannot be read.
        """
        if isinstance(given, cls):
            return given
        options = dict(given) if isinstance(given, Mapping) else {}
        kinds = [kind for kind in KINDS if kind in options]
        if len(kinds) != 1:
            raise OptionError(f"a grammar is written as {{'json_schema': {{...}}}} with one of {', '.join(KINDS)}, got {given!r:.80}")
        text = options.pop(kinds[0])
        if left := options.keys() - (_WORDS.keys() - {"kind"}):
            raise OptionError(f"a grammar takes the options format, strict, whitespace and order, got {', '.join(sorted(map(str, left)))}")
        if kinds[0] == "all_of" and isinstance(text, list | tuple):
            text = [cls.of(part)._written() for part in text]
        if kinds[0] in _WRITTEN_AS_JSON and not isinstance(text, str):
            text = _as_json(kinds[0], text)
        if not isinstance(text, str):
            raise OptionError(f"a grammar's {kinds[0]} is text, got {text!r:.80}")
        return cls(kinds[0], text, **options)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _as_json(kind: str, given: object) -> str:
    try:
        return json.dumps(given, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as exc:
        instead = ", of a pydantic model its model_json_schema()" if hasattr(given, "model_json_schema") else ""
        raise OptionError(f"a grammar's {kind} is plain data or JSON text{instead}, got {given!r:.60} ({exc})") from exc


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The model's tokens as an engine sees them.

    :param tokens: the bytes of every id, as many as the model's logits are wide; special and unused ids are empty and never
        legal, except the ends.
    :param eos_token_ids: at least one; legal where the grammar may end, and nothing is legal behind one.
    :param encode: text to token ids, as the tokenizer itself would split it, without special tokens; None where that is not known.
    :param special: names of special tokens, for grammars that speak of them: ``{"<|tool|>": 7}``.
    """

    tokens: Sequence[bytes]
    eos_token_ids: tuple[int, ...]
    encode: Callable[[str], Sequence[int]] | None = None
    special: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a vocabulary in which no text could end.

        :raises ConstraintError: there is no EOS token, or it lies outside.
        """
        if not self.eos_token_ids or not all(0 <= token < len(self.tokens) for token in self.eos_token_ids):
            raise ConstraintError(
                f"a grammar ends with an EOS token and the model's are {list(self.eos_token_ids)} of {len(self.tokens)}; set eos_token_id"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def digest(self) -> str:
        """What tells one vocabulary from another, for caches: a hash of tokens, ends and special tokens."""
        ends = json.dumps([len(self.tokens), self.eos_token_ids, dict(self.special)], sort_keys=True)
        found = hashlib.sha256(ends.encode())
        for token in self.tokens:
            found.update(len(token).to_bytes(4, "little") + token)
        return found.hexdigest()


@dataclass(frozen=True, slots=True)
class CompileLimits:
    """How much compiling one grammar may take. An engine that would exceed one raises ConstraintError, and the process goes on.

    :param seconds: of wall-clock time.
    :param megabytes: of memory, beyond what the process had.
    :param cancelled: set by a host that no longer wants the grammar; None where that never happens.
    """

    seconds: float = 30.0
    megabytes: int = 1024
    cancelled: Event | None = field(default=None, compare=False)

    def check_wanted(self) -> None:
        """Stop compiling what nobody waits for; engines call this now and then.

        :raises ConstraintError: it was cancelled.
        """
        if self.cancelled is not None and self.cancelled.is_set():
            raise ConstraintError("compiling the grammar was cancelled; ask for it again if it is wanted")


@dataclass(frozen=True, slots=True)
class GrammarStatement:
    """What becomes of every keyword of a grammar. Nothing is ever left out of it.

    Keywords of a schema are written with their place, ``"#/properties/age/minimum"``; of other kinds the kind is all there is.

    :param engine: who compiled it, with its release: ``"llguidance 1.7.6"``.
    :param enforced: keywords that the mask enforces: no text that violates them can be written.
    :param checked: keywords that the finished text is checked for, by `CompiledGrammar.check`.
    :param refused: keywords for which compiling was refused; only found in `ConstraintError.statement`.
    """

    engine: str
    enforced: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


class Matcher(Protocol):
    """A position in a grammar: what was accepted so far, and what may follow. Used by one thread at a time.

    A host sets it to any text by taking tokens back and accepting others, so both are exact inverses, as far back as the
    beginning and across an EOS.
    """

    def fill(self, row: Tensor) -> None:
        """Write every bit of one row, [ceil(len(vocabulary) / 32)] int32 in host memory, contiguous; bits past the vocabulary are 0.

        Where the grammar may end the EOS tokens are set. After one, the row is all 0.
        """

    def accept(self, tokens: Sequence[int]) -> int:
        """Advance over `tokens` up to the first illegal one; return how many were legal. What lies behind an EOS is illegal."""

    def rollback(self, count: int) -> None:
        """Take the last `count` accepted tokens back."""

    def validate(self, tokens: Sequence[int]) -> int:
        """Return how many of `tokens` `accept` would take, without moving."""

    def forced(self) -> Sequence[int]:
        """Return tokens that must follow, as far as that is known cheaply: the only legal ones, or the tokenizer's own split of bytes that
        all continuations begin with. They are legal one after the other; hosts draft them, so other splits stay possible. Does not move.
        """

    @property
    def is_terminated(self) -> bool:
        """Whether an EOS was accepted."""


class CompiledGrammar(Protocol):
    """A grammar for one vocabulary: immutable, shared by requests and threads."""

    @property
    def statement(self) -> GrammarStatement:
        """What is enforced and what is checked."""

    def matcher(self) -> Matcher:
        """Return a fresh matcher at the beginning."""

    def check(self, text: str) -> str | None:
        """Return what is wrong with a finished text in one sentence, by everything that the statement names; None if nothing is."""


class GrammarEngine(Protocol):
    """Compiles grammars. Called from several threads; caches by ``(spec, vocabulary.digest)`` are its own."""

    def compile(self, spec: GrammarSpec, vocabulary: Vocabulary, limits: CompileLimits) -> CompiledGrammar:
        """Compile a grammar, or refuse it: what is neither enforced nor checked is never passed over.

        :raises ConstraintError: naming the keyword or the limit; its ``statement`` says what is refused, where that is known.
        """
