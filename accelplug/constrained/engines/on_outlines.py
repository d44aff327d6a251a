"""outlines-core: an automaton over the whole vocabulary, worked out in advance. Expressions, and what becomes one: choices and JSON Schema.

Source: https://github.com/dottxt-ai/outlines-core.
"""

from __future__ import annotations

import re
from contextlib import suppress
from importlib.metadata import version
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from accelplug._errors import ConstraintError
from accelplug.constrained.engines.matching import ByVocabulary, EndingMatcher, in_one_line, with_ends
from accelplug.constrained.engines.on_llguidance import choices
from accelplug.constrained.regex.parse import SIGN
from accelplug.hooks import GrammarSpec, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

NAME: Final = "outlines"
KINDS: Final = ("json_schema", "regex", "choice")
MOST_CHARACTERS: Final = 200_000
MOST_WORK: Final = 2_000_000_000
"""Characters times tokens: half a minute."""
_BETWEEN: Final = {"any": r"[ \n\r\t]*", "spaced": "[ ]?", "compact": ""}


def release() -> str:
    """Return the installed release."""
    return version("outlines_core")


def _new_vocabulary(vocabulary: Vocabulary) -> Any:
    import outlines_core

    ends, tokens = set(vocabulary.eos_token_ids), dict[bytes, list[int]]()
    for index, token in enumerate(vocabulary.tokens):
        if token and index not in ends:
            tokens.setdefault(token, []).append(index)
    return outlines_core.Vocabulary(vocabulary.eos_token_ids[0], tokens)


_vocabulary = ByVocabulary(_new_vocabulary)


def compiled(spec: GrammarSpec, vocabulary: Vocabulary) -> Any:
    """Compile a grammar to an index of states.

    :raises ConstraintError: outlines-core refuses it, with its words, or takes none of this kind.
    """
    import outlines_core

    try:
        if spec.kind == "json_schema":
            expression = outlines_core.json_schema.build_regex_from_schema(spec.text, _BETWEEN[spec.whitespace])
        elif spec.kind == "choice":
            longest_first = sorted(choices(spec), key=len, reverse=True)  # the first alternative that matches ends the text there
            expression = "|".join(f"({re.escape(text)})" for text in longest_first)
        elif spec.kind == "regex":
            expression = spec.text
        else:
            raise ConstraintError(f"outlines-core compiles {', '.join(KINDS)} and no {spec.kind}; use llguidance or xgrammar")
        _refuse_long(expression, spec, vocabulary)
        return _indexed(expression, vocabulary)
    except ConstraintError:
        raise
    except Exception as exc:
        raise ConstraintError(f"outlines-core refuses the {spec.kind}: {in_one_line(exc)}") from exc


def _indexed(expression: str, vocabulary: Vocabulary) -> Any:
    """Return the index of an expression that ends where the text does, since without that the first alternative that matches may end it.

    Of an expression that the empty text matches there is no such index, and one that ends a group which it did not begin is left to be refused.
    """
    import outlines_core

    opened = accumulate({"(": 1, ")": -1}.get(sign, 0) for sign in SIGN.findall(expression))
    if min(opened, default=0) >= 0:
        with suppress(ValueError):
            return outlines_core.Index(rf"(?:{expression})\z", _vocabulary(vocabulary))
    return outlines_core.Index(expression, _vocabulary(vocabulary))


def _refuse_long(expression: str, spec: GrammarSpec, vocabulary: Vocabulary) -> None:
    """Refuse what takes long: each character is about a state, and each state looks at every token."""
    most = min(MOST_CHARACTERS, MOST_WORK // len(vocabulary))
    if len(expression) > most:
        raise ConstraintError(
            f"outlines-core takes too long for the {spec.kind}, which becomes an expression of {len(expression)} characters where at most"
            f" {most} are admitted with {len(vocabulary)} tokens; use auto or llguidance"
        )


class OutlinesMatcher(EndingMatcher):
    """A position in a text: the states on the way to it."""

    def __init__(self, index: Any, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        self._index, self._states = index, [index.get_initial_state()]

    def _advance(self, tokens: list[int]) -> int:
        for count, token in enumerate(tokens):
            following = self._index.get_next_state(self._states[-1], token)
            if following is None:
                return count
            self._states.append(following)
        return len(tokens)

    def _retreat(self, count: int) -> None:
        del self._states[-count:]

    def _fill(self, row: Tensor) -> None:
        import numpy as np

        allowed = np.fromiter(self._index.get_allowed_tokens(self._states[-1]) or (), dtype=np.int64)
        bits = row.numpy().view(np.uint32)
        bits[:] = 0
        np.bitwise_or.at(bits, allowed // 32, (1 << (allowed % 32)).astype(np.uint32))
        with_ends(bits, self._ends, set_them=self._may_end())

    def _may_end(self) -> bool:
        return bool(self._index.is_final_state(self._states[-1]))
