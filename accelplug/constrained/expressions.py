"""Expressions that are a grammar of their own: what an engine does not read as it is meant is left to a final check, like a schema's keywords."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

from accelplug._errors import ConstraintError
from accelplug.constrained.engines.known import begin, label
from accelplug.constrained.engines.recorded import RECORDED
from accelplug.constrained.finishing import CHECK_SECONDS, out_of_time
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.regex.parse import SIGN
from accelplug.constrained.schema.searching import found_in
from accelplug.constrained.time_limit import OutOfTimeError, within
from accelplug.hooks import GrammarSpec, GrammarStatement

_BOUNDARIES: Final = frozenset({r"\A", r"\Z", r"\z", r"\b", r"\B"})
ANCHORS: Final = "anchors inside expressions"
DOTS: Final = "the dot in expressions"
PROBES: Final = {ANCHORS: (("a^b", "ab"), ("a$b", "ab"), (r"\Aab", "Aab"), (r"a\bb", "abb")), DOTS: (("a.b", "a\nb"),)}
"""Feature -> expressions, each with a text that it does not admit: an engine that refuses the expression is right too."""


def stated(name: str, spec: GrammarSpec) -> GrammarStatement:
    """Return what an engine enforces of a grammar that is no schema.

    :raises ConstraintError: in strict mode, it does not read something in an expression as it is meant; or nobody can read that.
    """
    doubtful = misread(name, spec.text) if spec.kind == "regex" else []
    if not doubtful:
        return GrammarStatement(label(name), (spec.kind,))
    if spec.strict:
        refused = GrammarStatement(label(name), (), (), (spec.kind,))
        raise ConstraintError(f"strict: {name} was not seen to enforce {' and '.join(doubtful)}; use llguidance, or drop strict", refused)
    _matches(spec.text, "")  # said early: nobody can read it
    return GrammarStatement(label(name), (), (spec.kind,))


def ending(spec: GrammarSpec, statement: GrammarStatement) -> Callable[[str], str | None]:
    """Return the final check of a grammar that is no schema."""
    return (lambda text: _problem(spec.text, text)) if statement.checked else (lambda _: None)


def _problem(pattern: str, text: str) -> str | None:
    try:
        with within(CHECK_SECONDS):
            return None if _matches(pattern, text) else f"the text does not match {pattern!r:.100}"
    except OutOfTimeError as exc:
        return out_of_time(exc)


def _matches(pattern: str, text: str) -> bool:
    return found_in(f"^(?:{pattern})$", text)


def misread(name: str, pattern: str) -> list[str]:
    """Return what an expression asks that an engine does not read as it is meant."""
    return [feature for feature in _features(pattern) if not _reads(name, feature)]


def _features(pattern: str) -> list[str]:
    """Return what an expression asks of an engine, beyond what all do."""
    tokens = SIGN.findall(pattern)
    inside = "^" in tokens[1:] or "$" in tokens[:-1] or not _BOUNDARIES.isdisjoint(tokens)
    return [feature for feature, asked in ((ANCHORS, inside), (DOTS, "." in tokens)) if asked]


@cache
def _reads(name: str, feature: str) -> bool:
    recorded = RECORDED.get(label(name))
    return feature not in recorded if recorded is not None else not any(_admits(name, pattern, text) for pattern, text in PROBES[feature])


def _admits(name: str, pattern: str, text: str) -> bool:
    tokens = [*text.encode(), 256]
    try:
        return begin(name, GrammarSpec("regex", pattern), bytes_only())().validate(tokens) == len(tokens)
    except ConstraintError:
        return False
