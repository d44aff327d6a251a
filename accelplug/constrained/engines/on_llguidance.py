"""llguidance: an Earley parser over lazily built lexers. JSON Schema, expressions, Lark, choices.

Source: https://github.com/guidance-ai/llguidance.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from accelplug._errors import ConstraintError
from accelplug.constrained.engines.matching import ByVocabulary, EndingMatcher, in_one_line
from accelplug.constrained.engines.unending import NO_FORCING, may_go_on
from accelplug.constrained.lark.terminals import choice
from accelplug.constrained.probes import bytes_only
from accelplug.hooks import GrammarSpec, Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from torch import Tensor

NAME: Final = "llguidance"
KINDS: Final = ("json_schema", "regex", "ebnf", "lark", "choice")
_FUEL: Final = 10_000_000
"""Of the lexer's beginning, a quarter of a second at most, and of each step of it. With less, llguidance refuses grammars of many long expressions;
in a step it drops what it has no time to look at, and refuses texts that are legal."""
_RULE: Final = re.compile(r"^[ \t]*([\w-]+)[ \t]*::=", re.MULTILINE)
_HALF: Final = re.compile("[\ud800-\udfff]")
_MOST_FORCED: Final = 10_000
"""Bytes at the beginning of a text."""


def release() -> str:
    """Return the installed release."""
    return version("llguidance")


class _Tokens:
    """The vocabulary as llguidance asks for it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.eos_token_ids[0]
        self.bos_token_id = None
        names = {index: name.encode() for name, index in vocabulary.special.items()}
        self.tokens = [names.get(index, token) for index, token in enumerate(vocabulary.tokens)]
        self.special_token_ids = sorted({*names, *vocabulary.eos_token_ids})
        self._greedy = _greedy(vocabulary)
        self._encode = vocabulary.encode or self._greedy

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("text is expected")  # llguidance asks with bytes first, to see whether those will do
        # A tokenizer takes the name of a special token in a text for the token, which is no way of writing that name.
        return [int(token) for token in self._encode(text) or self._greedy(text)]


def _new_tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Tokens(vocabulary)), n_vocab=len(vocabulary), eos_token=list(vocabulary.eos_token_ids))


_tokenizer = ByVocabulary(_new_tokenizer)


def _greedy(vocabulary: Vocabulary) -> Callable[[str], Sequence[int]]:
    """Return a tokenizer that takes the longest token each time, where the real one is not known."""
    index = {token: number for number, token in enumerate(vocabulary.tokens) if token}
    longest = max(map(len, index), default=1)

    def encode(text: str) -> list[int]:
        data, found, at = text.encode(), [], 0
        while at < len(data):
            for size in range(min(longest, len(data) - at), 0, -1):
                number = index.get(data[at : at + size])
                if number is not None:
                    found.append(number)
                    at += size
                    break
            else:
                at += 1
        return found

    return encode


def source_of(spec: GrammarSpec) -> str:
    """Return a grammar as llguidance takes it.

    :raises ConstraintError: it takes none of this kind.
    """
    from llguidance import LLMatcher

    if spec.kind == "json_schema":
        try:
            return LLMatcher.grammar_from_json_schema("{}" if spec.text.strip() == "true" else spec.text, overrides=_spacing(spec))
        except ValueError as exc:
            raise ConstraintError(f"llguidance refuses the schema: {in_one_line(exc, 200)}") from exc
    if spec.kind == "regex":
        return LLMatcher.grammar_from_regex(_encodable(spec))
    if spec.kind in ("lark", "ebnf"):
        return _without_endless_forcing(_encodable(spec) if spec.kind == "lark" else _lark_of(_encodable(spec)))
    if spec.kind == "choice":
        return LLMatcher.grammar_from_lark(f"start: T\nT: {choice(choices(spec))}\n")
    raise ConstraintError(f"llguidance compiles {', '.join(KINDS)} and no {spec.kind}; use xgrammar")


def _encodable(spec: GrammarSpec) -> str:
    if half := _HALF.search(spec.text):
        raise ConstraintError(f"the {spec.kind} has half of a pair of surrogates at {half.start()}, which no text has; write the character")
    return spec.text


def _lark_of(ebnf: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if twice := [name for name, count in Counter(_RULE.findall(ebnf)).items() if count > 1]:  # of which it would take the last
        raise ConstraintError(f"llguidance refuses the ebnf: the rule {twice[0]!r:.60} is defined twice; write one with both alternatives")
    try:
        return gbnf_to_lark(ebnf)
    except RecursionError as exc:
        raise ConstraintError("llguidance refuses the ebnf: it is nested too deeply") from exc
    except Exception as exc:  # a rule that is missing raises no less
        raise ConstraintError(f"llguidance refuses the ebnf: {in_one_line(exc, 200)}") from exc


def _without_endless_forcing(lark: str) -> str:
    """Return a Lark grammar as llguidance takes it, which forces nothing where it may not come to an end of that.

    :raises ConstraintError: a text can only begin in one way, and nothing ends that.
    """
    if not may_go_on(lark):
        return lark_source(lark)
    source = lark_source(lark + NO_FORCING)
    try:
        matcher = template(source, bytes_only())
    except ConstraintError:  # said again where it is compiled on the whole vocabulary, which may have what this one has not
        return source
    for _ in range(_MOST_FORCED):
        legal = int.from_bytes(matcher.compute_bitmask(), "little")
        if legal & (legal - 1) or matcher.is_accepting():
            return source
        matcher.consume_token(legal.bit_length() - 1)
    raise ConstraintError(
        f"a text of the grammar begins in one way only, with {_MOST_FORCED} bytes and more: a terminal takes what should follow it; let it end before that"
    )


def choices(spec: GrammarSpec) -> list[str]:
    """Return the texts of a choice that can be written.

    :raises ConstraintError: it is no list of texts, or none can.
    """
    texts = spec.value()
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ConstraintError(f"a choice is a list of texts, at least one, got {spec.text:.80}")
    written = [text for text in texts if text.isascii() or not _HALF.search(text)]
    if not written:
        raise ConstraintError("no text satisfies the choice: each has half of a pair of surrogates, which no text has; write the character")
    return written


def _spacing(spec: GrammarSpec) -> Any:
    if spec.whitespace == "any":
        return {"whitespace_flexible": True}
    comma, colon = (", ", ": ") if spec.whitespace == "spaced" else (",", ":")
    return {"whitespace_flexible": False, "item_separator": comma, "key_separator": colon}


def template(source: str, vocabulary: Vocabulary) -> LLMatcher:
    """Compile a grammar; the matcher is only ever copied.

    :raises ConstraintError: llguidance refuses it, with its words; or no text begins as it asks, which it says at the first mask only.
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(initial_lexer_fuel=_FUEL, step_lexer_fuel=_FUEL)
    found = LLMatcher(_tokenizer(vocabulary), source, limits=limits, log_level=0)
    if found.is_error():
        raise ConstraintError(f"llguidance refuses the grammar: {in_one_line(found.get_error())}")
    beginning = found.deep_copy()
    beginning.compute_bitmask()
    if beginning.is_error():
        why = in_one_line(beginning.get_error())
        raise ConstraintError(f"no text satisfies the grammar, whose rules never end or contradict each other (llguidance: {why}); loosen it")
    return found


def lark_source(text: str) -> str:
    """Return a Lark grammar as llguidance takes it."""
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_lark(text)


class LlguidanceMatcher(EndingMatcher):
    """A position in a text."""

    def __init__(self, template: LLMatcher, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        self._matcher = template.deep_copy()

    def _advance(self, tokens: list[int]) -> int:
        count = self._matcher.try_consume_tokens(tokens)
        self._check()
        return count

    def _retreat(self, count: int) -> None:
        if not self._matcher.rollback(count):
            raise ConstraintError(f"llguidance took {count} tokens back in vain: {in_one_line(self._matcher.get_error(), 200)}")

    def _look(self, tokens: list[int]) -> int:
        return self._matcher.validate_tokens(tokens)

    def _fill(self, row: Tensor) -> None:
        import numpy as np

        from accelplug.constrained.engines.matching import with_ends

        if self._matcher.is_stopped():
            row.zero_()
            with_ends(row.numpy().view(np.uint32), self._ends, set_them=self._may_end())
            return
        self._matcher.unsafe_compute_mask_ptr(row.data_ptr(), row.numel() * row.element_size())
        self._check()

    def _may_end(self) -> bool:
        return self._matcher.is_accepting()

    def _forced(self) -> Sequence[int]:
        return [] if self._matcher.is_accepting() else self._matcher.compute_ff_tokens()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(f"llguidance gave a text up: {in_one_line(self._matcher.get_error())}")
