"""What xgrammar's mask leaves open in the schemas of a structural tag: said in the statement, and checked when the text is finished."""

from __future__ import annotations

import json
from functools import cache
from typing import Final, NamedTuple

from accelplug._errors import ConstraintError
from accelplug.constrained.engines.known import begin, enforces
from accelplug.constrained.engines.matching import Compiled
from accelplug.constrained.finishing import CHECK_SECONDS, TOO_DEEP, check_ends, out_of_time
from accelplug.constrained.forms import doubtful
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.statements import BESIDE_OTHERS, Use, at, split, uses
from accelplug.constrained.tags.parts import Walk
from accelplug.constrained.tags.reading import Form, Schema, read
from accelplug.constrained.tags.references import check_references
from accelplug.constrained.time_limit import OutOfTimeError, within
from accelplug.hooks import CompiledGrammar, CompileLimits, GrammarSpec, GrammarStatement

ENGINE: Final = "xgrammar"
_UNCOUNTED: Final = frozenset({"required", "minProperties", "maxProperties"})
"""What xgrammar enforces of an object in the order of its declaration alone."""
_UNMEASURED: Final = frozenset({"minLength", "maxLength"})
"""What it gives up where substrings are excluded from strings."""
_UNREAD: Final = "the text does not follow its structural tag: it ends inside a tag, or there is no JSON where some should be"
_OPENING: Final = frozenset({"additionalProperties", "unevaluatedProperties", "patternProperties"})


class _Places(NamedTuple):
    enforced: tuple[str, ...]
    checked: tuple[str, ...]


def with_final_check(compiled: CompiledGrammar, spec: GrammarSpec, limits: CompileLimits) -> CompiledGrammar:
    """Return a structural tag that xgrammar compiled, with what its mask does not enforce in its schemas checked at the end.

    :raises ConstraintError: a schema in it is refused; in strict mode, something would be left to the check; what would be left stands where
        it cannot be found in a text.
    """
    form = read(spec.value(), asserted=spec.format == "assert")
    found = _Places((*compiled.statement.enforced,), ())
    with within(limits.seconds):
        for schema in form.schemas:
            more = _of_one(schema, form)
            found = _Places(found.enforced + more.enforced, found.checked + more.checked)
    if not found.checked:
        return Compiled(GrammarStatement(compiled.statement.engine, found.enforced), compiled.matcher, compiled.check)
    if spec.strict:
        statement = GrammarStatement(compiled.statement.engine, found.enforced, (), found.checked)
        left = ", ".join(found.checked[:5])
        raise ConstraintError(f"strict: {ENGINE} does not enforce {left}; drop strict to have it checked at the end, or the keyword", statement)
    statement = GrammarStatement(compiled.statement.engine, found.enforced, found.checked)
    return Compiled(statement, compiled.matcher, lambda text: problem(form, text))


def _of_one(schema: Schema, form: Form) -> _Places:
    found = uses(schema.document)
    lost = [use.place for use in found if not _is_enforced(use, schema)]
    left = (*lost, *doubtful(ENGINE, schema.document, [use.place for use in found]))  # and what stands below them
    enforced, checked = (tuple(f"{schema.place}{place}" for place in places) for places in split(found, left))
    if checked:
        if why := schema.hidden or form.hidden:
            raise ConstraintError(
                f"{ENGINE} does not enforce {schema.place}{left[0]}, and it cannot be checked at the end, since {why}; leave the keyword out"
            )
        _check_checking(schema, found)
    return _Places(enforced, checked)


def _check_checking(schema: Schema, found: list[Use]) -> None:
    """Refuse a schema whose final check could not be made.

    :raises ConstraintError: naming the schema's place.
    """
    try:
        check_references(schema.document, found)
        check_ends(schema.document)
    except ConstraintError as exc:
        raise ConstraintError(f"in {schema.place}: {exc}") from exc


def _is_enforced(use: Use, schema: Schema) -> bool:
    """Whether the mask enforces a keyword, by itself."""
    if (use.keyword in _UNCOUNTED and schema.given.get("any_order")) or (use.keyword in _UNMEASURED and schema.given.get("excludes")):
        return False
    if enforces(ENGINE, use.feature):
        return True
    holder = at(schema.document.schema, use.place.rpartition("/")[0])
    if use.feature == "required":  # of declared properties it is enforced, of others it is not
        return bool(holder.get("type") == "object" and {*holder["required"]} <= {*holder.get("properties", ())})
    return use.feature == f"properties{BESIDE_OTHERS}" and _OPENING.isdisjoint(holder) and closes_objects()


@cache
def closes_objects() -> bool:
    """Whether the installed xgrammar admits no other properties than the declared ones in tags, where a schema says nothing of others."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    given = json.dumps({"type": "structural_tag", "format": {"type": "json_schema", "json_schema": schema}})
    matcher = begin(ENGINE, GrammarSpec("structural_tag", given), bytes_only())()
    texts = (b'{"a":1}', b'{"b":1}', b'{"\\u0061":"b"}')
    return [matcher.validate(list(text)) == len(text) for text in texts] == [True, False, False]


def problem(form: Form, text: str) -> str | None:
    """Return what is wrong with the JSON in a text that should follow a structural tag, or why that cannot be known; None if nothing is."""
    try:
        with within(CHECK_SECONDS):
            ends = Walk(text)(form.root, 0)
    except OutOfTimeError as exc:
        return out_of_time(exc)
    except RecursionError:
        return TOO_DEEP
    return ends.get(len(text), _UNREAD)
