"""Which engine compiles a schema, and from what: the schema as it is where an engine enforces all of it, rewritten otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

from accelplug._errors import ConstraintError
from accelplug.constrained import expressions
from accelplug.constrained.affected import with_affected
from accelplug.constrained.engines.known import begin, begin_written, enforces, installed, label, nests_behind_blanks
from accelplug.constrained.forms import stated
from accelplug.constrained.lark.compile import to_lark
from accelplug.constrained.plain import MAY_CHANGE, plain
from accelplug.constrained.schema.document import Document
from accelplug.constrained.schema.vocabulary import has_any_of, later_than
from accelplug.constrained.statements import BESIDE_OTHERS, Use, divided, inexact_among, uses
from accelplug.hooks import CompileLimits, GrammarSpec, GrammarStatement, Matcher, Vocabulary

OTHER_KINDS: Final = {
    "regex": ("llguidance", "xgrammar", "outlines"),
    "ebnf": ("xgrammar", "llguidance"),
    "lark": ("llguidance",),
    "choice": ("llguidance", "xgrammar", "outlines"),
    "structural_tag": ("xgrammar",),
}
"""Which engines take what is no schema: the first that is installed, and where that refuses it the next."""
READ_DIFFERENTLY: Final = frozenset({"regex"})
"""Where the next engine is not asked: xgrammar takes ``a^b``, ``a$b`` and ``[a&&b]``, which others rightly refuse, for other expressions."""


class Route(NamedTuple):
    """A compiled grammar: how to begin a text, and what is said about it."""

    begin: Callable[[], Matcher]
    statement: GrammarStatement


def route_schema(document: Document, spec: GrammarSpec, vocabulary: Vocabulary, limits: CompileLimits) -> Route:
    """Compile a schema with the engine that enforces most of it.

    :raises ConstraintError: none compiles it; in strict mode, something is left to the final check.
    """
    if installed("llguidance"):
        found = uses(document)
        route = _as_it_is("llguidance", document, found, spec, vocabulary) or _rewritten(document, found, spec, vocabulary, limits)
    else:
        route = _as_far_as_it_goes(document, spec, vocabulary, limits)
    if spec.strict and route.statement.checked:
        left = ", ".join(route.statement.checked[:5])
        statement = GrammarStatement(route.statement.engine, route.statement.enforced, (), route.statement.checked)
        raise ConstraintError(f"strict: no mask enforces {left}; drop strict to have it checked at the end, or the keyword", statement)
    return route


def _as_it_is(name: str, document: Document, found: list[Use], spec: GrammarSpec, vocabulary: Vocabulary) -> Route | None:
    """Give the schema to an engine that enforces every keyword in it that a mask can; None where it does not, or refuses.

    That a name is not written with escapes is left to the final check, unless that is not wanted: no tokenizer's own text has them.
    """
    later = later_than(document.draft)  # keywords that engines know and the draft does not
    if spec.order != "declared" or "x-guidance" in spec.text:
        return None
    if not later.isdisjoint(document.seen.keywords) and has_any_of(later, document.schema):
        return None
    if not all(_knows(name, feature) for feature in {use.feature for use in found if use.keyword not in MAY_CHANGE}):
        return None
    given = plain(document, found, spec.text)
    if given.overlaps or not all(_knows(name, feature) for feature in given.features):
        return None
    left = {*with_affected(document, found, given.checked), *[use.place for use in found if use.feature.endswith(BESIDE_OTHERS)]}
    enforced, checked = divided(found, left)
    if checked and spec.strict:
        return None
    try:
        asked = spec if given.text is spec.text else replace(spec, text=given.text)
        return Route(begin(name, asked, vocabulary), GrammarStatement(label(name), enforced, checked))
    except ConstraintError:
        return None


def _knows(name: str, feature: str) -> bool:
    return enforces(name, feature.removesuffix(BESIDE_OTHERS))


def _rewritten(document: Document, found: list[Use], spec: GrammarSpec, vocabulary: Vocabulary, limits: CompileLimits) -> Route:
    """Write the schema as a grammar of our own."""
    any_order, deadline = spec.order == "any", time.monotonic() + limits.seconds
    may_nest = spec.whitespace != "any" or nests_behind_blanks()
    written = to_lark(document, spec.whitespace, deadline, limits, any_order=any_order, may_nest=may_nest)
    try:
        begun = begin_written(written.text, vocabulary)
    except ConstraintError:
        written = to_lark(document, spec.whitespace, deadline, limits, any_order=any_order, coarse=True, may_nest=may_nest)
        begun = begin_written(written.text, vocabulary)
    enforced, checked = divided(found, with_affected(document, found, inexact_among(found, written.inexact)))
    return Route(begun, GrammarStatement(f"{label('llguidance')}, rewritten", enforced, checked))


def _as_far_as_it_goes(document: Document, spec: GrammarSpec, vocabulary: Vocabulary, limits: CompileLimits) -> Route:
    """Without llguidance: the other engines as they are, with everything checked that they were not seen to enforce."""
    names = [name for name in ("xgrammar", "outlines") if installed(name)]
    if not names:
        raise ConstraintError("no grammar engine is installed; install accelplug[grammar]")
    refusal = ConstraintError("no engine was asked")
    for name in names:
        try:
            return Route(begin(name, spec, vocabulary, limits), GrammarStatement(label(name), *stated(name, document)))
        except ConstraintError as exc:
            refusal = exc
    raise refusal


def route_other(spec: GrammarSpec, vocabulary: Vocabulary, limits: CompileLimits) -> Route:
    """Compile what is no schema.

    :raises ConstraintError: no installed engine takes it; what each of them says.
    """
    names = [name for name in OTHER_KINDS[spec.kind] if installed(name)]
    if not names:
        raise ConstraintError(f"a {spec.kind} needs {' or '.join(OTHER_KINDS[spec.kind])}; install accelplug[grammar]")
    refusals: list[ConstraintError] = []
    for name in names[:1] if spec.kind in READ_DIFFERENTLY else names:
        try:
            statement = expressions.stated(name, spec)
            return Route(begin(name, spec, vocabulary, limits), statement)
        except ConstraintError as exc:
            refusals.append(exc)
    if len(refusals) == 1:
        raise refusals[0]
    raise ConstraintError("; ".join(dict.fromkeys(map(str, refusals)))) from refusals[0]
