"""xgrammar: a pushdown automaton with masks worked out in advance. JSON Schema, expressions, EBNF, choices, structural tags.

Source: https://github.com/mlc-ai/xgrammar.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from accelplug._errors import ConstraintError
from accelplug.constrained.engines.matching import ByVocabulary, EndingMatcher, in_one_line
from accelplug.constrained.engines.on_llguidance import choices
from accelplug.constrained.regex.parse import SIGN
from accelplug.constrained.tags.older import newer, with_patterns
from accelplug.hooks import GrammarSpec, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

NAME: Final = "xgrammar"
KINDS: Final = ("json_schema", "regex", "ebnf", "choice", "structural_tag")
_FEW: Final = 64  # legal tokens, beyond which a place is not looked through
_ESCAPE: Final = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|.)", re.DOTALL)
_NOT_A_NEWLINE: Final = r"[^\n\r\u2028\u2029]"
MOST_BYTES: Final = 256 << 20
"""Of xgrammar's own cache, which without a bound keeps every grammar for good."""


def release() -> str:
    """Return the installed release."""
    return version("xgrammar")


def _new_compiler(vocabulary: Vocabulary) -> Any:
    import xgrammar

    known = xgrammar.TokenizerInfo(
        list(vocabulary.tokens),
        vocab_type=xgrammar.VocabType.RAW,
        vocab_size=len(vocabulary),
        stop_token_ids=list(vocabulary.eos_token_ids),
    )
    return xgrammar.GrammarCompiler(known, max_threads=1, cache_limit_bytes=MOST_BYTES)


compiler = ByVocabulary(_new_compiler)
"""What compiles for a vocabulary, made once."""


def compiled(spec: GrammarSpec, vocabulary: Vocabulary) -> Any:
    """Compile a grammar.

    :raises ConstraintError: xgrammar refuses it, with its words, or takes none of this kind; or no text begins as it asks, which it does not say.
    """
    found = _compiled(spec, vocabulary)
    if not XgrammarMatcher(found, vocabulary).begins():
        raise ConstraintError(f"no text satisfies the {spec.kind}, whose rules never end or contradict each other; loosen it")
    return found


def _compiled(spec: GrammarSpec, vocabulary: Vocabulary) -> Any:
    made = compiler(vocabulary)
    try:
        if spec.kind == "json_schema":
            return made.compile_json_schema(spec.text, strict_mode=False, **_spacing(spec))
        if spec.kind == "regex":
            return made.compile_regex(spelled(spec.text))
        if spec.kind == "ebnf":
            return made.compile_grammar(spec.text)
        if spec.kind == "choice":
            return made.compile_grammar("root ::= " + " | ".join(_quoted(text) for text in choices(spec)))
        if spec.kind == "structural_tag":
            return made.compile_structural_tag(with_patterns(newer(spec.text), spelled))
    except ConstraintError:
        raise
    except Exception as exc:
        raise ConstraintError(f"xgrammar refuses the {spec.kind}: {in_one_line(exc)}") from exc
    raise ConstraintError(f"xgrammar compiles {', '.join(KINDS)} and no {spec.kind}; use llguidance")


def spelled(pattern: str) -> str:
    r"""Return an expression of ECMA 262 as xgrammar reads it: its dot takes newlines too, and its ``\x`` all the digits that follow."""
    longer = _ESCAPE.sub(_four_digits, pattern)
    return SIGN.sub(lambda sign: _NOT_A_NEWLINE if sign[0] == "." else sign[0], longer)


def _four_digits(escape: re.Match[str]) -> str:
    return rf"\u00{escape[1]}" if escape[1] else escape[0]


def _quoted(text: str) -> str:
    return '"' + "".join(f"\\u{ord(char):04x}" if ord(char) < 0x20 else "\\" + char if char in '"\\' else char for char in text) + '"'


def _spacing(spec: GrammarSpec) -> dict[str, Any]:
    if spec.whitespace == "any":
        return {"any_whitespace": True}
    return {"any_whitespace": False, "separators": (", ", ": ") if spec.whitespace == "spaced" else (",", ":")}


class XgrammarMatcher(EndingMatcher):
    """A position in a text."""

    def __init__(self, compiled: Any, vocabulary: Vocabulary) -> None:
        import xgrammar

        super().__init__(vocabulary)
        self._matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=False)
        self._encode, self._stop, self._width = vocabulary.encode, vocabulary.eos_token_ids[0], len(vocabulary)
        self._tokens = vocabulary.tokens

    def _advance(self, tokens: list[int]) -> int:
        for count, token in enumerate(tokens):
            if not self._matcher.accept_token(token):
                return count
        return len(tokens)

    def _retreat(self, count: int) -> None:
        self._matcher.rollback(count)

    def _fill(self, row: Tensor) -> None:
        self._matcher.fill_next_token_bitmask(row.unsqueeze(0), 0)
        self._clear_tail(row)

    def _clear_tail(self, row: Tensor) -> None:
        import numpy as np

        width = self._width
        if width % 32:
            row.numpy().view(np.uint32)[-1] &= (1 << width % 32) - 1

    def _may_end(self) -> bool:
        if not self._matcher.accept_token(self._stop):
            return False
        self._matcher.rollback(1)
        return True

    def _forced(self) -> Sequence[int]:
        """Return the tokenizer's split of what must follow, the last token only if none that is legal there goes on behind it, and the end."""
        if self._encode is None:
            return []
        try:
            forced = self._matcher.find_jump_forward_string()
        except UnicodeDecodeError:  # it begins inside a character, which no tokenizer's own split does
            return []
        tokens = self._legal(list(self._encode(forced)))
        moved = self._advance(tokens[:-1])
        last = tokens[-1:] if tokens and self._is_longest(tokens[-1]) else []
        moved += self._advance(last)
        ends = len(last) == bool(tokens) and self._may_end() and self._legal_here() <= self._ends
        if moved:
            self._retreat(moved)
        return tokens[:-1] + last + [self._stop] * ends

    def _is_longest(self, token: int) -> bool:
        legal = self._legal_here()
        return 0 < len(legal) <= _FEW and all(len(self._tokens[other]) <= len(self._tokens[token]) for other in legal - self._ends)

    def begins(self) -> bool:
        """Whether any token is legal."""
        return bool(self._mask_here().any())

    def _legal_here(self) -> set[int]:
        import numpy as np

        return set(np.flatnonzero(np.unpackbits(self._mask_here().numpy().view(np.uint8), bitorder="little")).tolist())

    def _mask_here(self) -> Tensor:
        import torch

        row = torch.empty(-(-self._width // 32), dtype=torch.int32)
        self._fill(row)
        return row

    def _legal(self, tokens: list[int]) -> list[int]:
        return tokens[: self._look(tokens)]
