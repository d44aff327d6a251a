"""What every grammar engine must hold, as a class of tests: subclass it, name the engine, and say what its grammars allow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

from accelplug._errors import ConstraintError
from accelplug.hooks.masking import KINDS, CompiledGrammar, CompileLimits, GrammarSpec, GrammarStatement, Matcher, Vocabulary
from accelplug.testing.building import Conformance, require, skip

Example = tuple[Mapping[str, Any], Sequence[str], Sequence[str]]
"""A grammar as users write it, texts that it allows, and texts that it does not."""

_BYTES: Final = tuple(bytes([byte]) for byte in range(256))
VOCABULARY: Final = Vocabulary((*_BYTES, b"", b'{"', b"aa", b"es", b"", b""), (256, 261), encode=lambda text: list(text.encode()))
"""Every byte, a few tokens of two, one that is unused, and two ends; its masks do not fill their last word."""
_ANY_TEXT: Final = {"json_schema": "{}", "choice": '["a"]', "structural_tag": "{}", "all_of": '[{"regex": "a"}]', "ebnf": 'root ::= "a"', "lark": 'start: "a"'}


class GrammarConformance(Conformance):
    """Subclass it in a test module with ``technique = "mine"`` and ``examples = [({"choice": ["yes", "no"]}, ["yes"], ["maybe"])]``.

    :cvar examples: for each grammar texts that it allows and texts that it does not; ASCII keeps failures readable.
    """

    kind: ClassVar[str] = "grammar"
    examples: ClassVar[Sequence[Example]] = ()

    def test_texts_are_told_apart(self) -> None:
        """What a grammar allows can be written and ended; what it does not is masked, or found by `check` where the statement says so."""
        for who, compiled, right, wrong in self._compiled():
            for text in right:
                taken = compiled.matcher().validate(_ended(text))
                require(taken == len(_ended(text)), f"{who} masks token {taken} of {text!r}, which it should allow")
                require(compiled.check(text) is None, f"{who} finds {text!r} wrong at the end, which it should allow: {compiled.check(text)}")
            for text in wrong:
                may_be_written = compiled.matcher().validate(_ended(text)) == len(_ended(text))
                is_found = bool(compiled.statement.checked) and compiled.check(text) is not None
                require(not may_be_written or is_found, f"{who} allows {text!r}; mask it, or name in `checked` what `check` finds wrong with it")

    def test_a_mask_is_what_accept_takes(self) -> None:
        """`fill` writes every bit of the row, and those of the tokens that `accept` and `validate` take; taking back is exact.

        Where a text is forced, the mask may leave one split of it into tokens while other splits are taken, too.
        """
        for who, matcher, written in self._places():
            legal, is_forced = _legal(matcher), bool(matcher.forced())
            require(max(legal, default=0) < len(VOCABULARY), f"{who} sets bits past the vocabulary behind {written!r}; write 0 there")
            for token in range(len(VOCABULARY)):
                valid, taken = matcher.validate([token]), matcher.accept([token])
                agreed = valid == taken and (taken == (token in legal) or (taken and is_forced))
                said = f"its mask says {int(token in legal)}, validate {valid}, accept {taken}"
                require(agreed, f"{who} is of several minds about token {token} behind {written!r}: {said}")
                if taken:
                    matcher.rollback(1)
            require(_legal(matcher) == legal, f"{who} masks otherwise behind {written!r} once tokens were accepted and taken back; make rollback exact")

    def test_nothing_follows_an_end(self) -> None:
        """Every EOS ends; behind it nothing is legal, and it can be taken back."""
        for who, compiled, right, _ in self._compiled():
            matcher, tokens = compiled.matcher(), list(right[0].encode())
            matcher.accept(tokens)
            before = _legal(matcher)
            require(before.issuperset(VOCABULARY.eos_token_ids), f"{who} does not allow every EOS behind {right[0]!r}")
            for end in VOCABULARY.eos_token_ids:
                require(not matcher.is_terminated, f"{who} is terminated before an EOS was accepted")
                require(matcher.accept([end, end, *tokens]) == 1, f"{who} goes on behind an EOS; nothing is legal there")
                require(matcher.is_terminated and not _legal(matcher), f"{who} is not terminated by an EOS, or its mask is not all 0 then")
                require(not list(matcher.forced()), f"{who} forces tokens behind an EOS")
                matcher.rollback(1)
                require(_legal(matcher) == before, f"{who} masks otherwise once an EOS was taken back; make rollback exact across it")

    def test_forced_tokens_are_legal_and_asking_moves_nothing(self) -> None:
        """What `forced` names is legal one after the other; neither it nor `validate` moves the matcher."""
        for who, matcher, written in self._places():
            legal, forced = _legal(matcher), list(matcher.forced())
            require(matcher.validate(forced) == len(forced), f"{who} forces {forced} behind {written!r}, of which it takes {matcher.validate(forced)}")
            require(_legal(matcher) == legal, f"{who} moves when it is asked by forced() or validate(); work on a copy, or take back")

    def test_matchers_share_nothing(self) -> None:
        """Two texts under one compiled grammar are written independently."""
        for who, compiled, right, _ in self._compiled():
            one, other = compiled.matcher(), compiled.matcher()
            untouched = _legal(other)
            one.accept(_ended(right[0]))
            require(_legal(other) == untouched, f"{who} moves one matcher by another; give each a state of its own")

    def test_every_kind_is_compiled_or_refused(self) -> None:
        """What the engine cannot compile is a ConstraintError, and what it compiles has a statement that says who did."""
        technique = self.build()
        for kind in KINDS:
            try:
                compiled = technique.instance.compile(GrammarSpec(kind, _ANY_TEXT.get(kind, "a")), VOCABULARY, CompileLimits())
            except ConstraintError:
                continue
            except Exception as exc:
                raise AssertionError(f"{technique} fails on a {kind} with {type(exc).__name__}: {exc}; raise ConstraintError for what it refuses") from exc
            said = compiled.statement
            require(isinstance(said, GrammarStatement) and said.engine, f"{technique} has no statement for a {kind}; make it a GrammarStatement")
            require(not said.refused, f"{technique} compiled a {kind} whose statement has refused keywords; raise ConstraintError instead")

    def _compiled(self) -> Iterator[tuple[str, CompiledGrammar, Sequence[str], Sequence[str]]]:
        """Yield each example, compiled; the first text names it in sentences."""
        if not self.examples:
            skip(f"{type(self).__name__} has no examples; say what its grammars allow, so that anything can be checked")
        engine = self.build()
        for grammar, right, wrong in self.examples:
            spec = GrammarSpec.of(grammar)
            yield f"{engine}, {spec}", engine.instance.compile(spec, VOCABULARY, CompileLimits()), right, wrong

    def _places(self) -> Iterator[tuple[str, Matcher, str]]:
        """Yield a matcher at every place of every text allowed."""
        for who, compiled, right, _ in self._compiled():
            for text in right:
                matcher, tokens = compiled.matcher(), text.encode()
                for place in range(len(tokens) + 1):
                    yield who, matcher, tokens[:place].decode(errors="replace")
                    matcher.accept(tokens[place : place + 1])


def _ended(text: str) -> list[int]:
    return [*text.encode(), VOCABULARY.eos_token_ids[0]]


def _legal(matcher: Matcher) -> set[int]:
    """Return the tokens of the mask, from a row in which every bit was set before."""
    import torch

    row = torch.full(((len(VOCABULARY) + 31) // 32,), -1, dtype=torch.int32)
    matcher.fill(row)
    return {32 * at + bit for at, word in enumerate(row.tolist()) for bit in range(32) if word >> bit & 1}
