"""What xgrammar's mask leaves open in the schemas of a structural tag: said in the statement, and checked when the text is finished."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Final, NamedTuple

from accelplug._errors import ConstraintError
from accelplug.constrained.engines.known import begin, enforces
from accelplug.constrained.engines.matching import Compiled
from accelplug.constrained.finishing import CHECK_SECONDS, TOO_DEEP, check_ends, out_of_time
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.schema.document import Document
from accelplug.constrained.statements import BESIDE_OTHERS, Use, split, uses
from accelplug.constrained.tags.parts import Walk
from accelplug.constrained.tags.reading import Form, Schema, read
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
    enforced, checked = (tuple(f"{schema.place}{place}" for place in places) for places in split(found, _doubtful(found, schema)))
    if checked:
        if why := schema.hidden or form.hidden:
            raise ConstraintError(
                f"{ENGINE} does not enforce {checked[0]}, and it cannot be checked at the end, since {why}; leave the keyword out"
            )
        check_ends(schema.document)
    return _Places(enforced, checked)


def _doubtful(found: list[Use], schema: Schema) -> list[str]:
    """Return the places of the keywords that the mask may not enforce; what stands below them is as doubtful."""
    return [use.place for use in found if not _is_enforced(use, schema)]


def _is_enforced(use: Use, schema: Schema) -> bool:
    if (use.keyword in _UNCOUNTED and schema.given.get("any_order")) or (use.keyword in _UNMEASURED and schema.given.get("excludes")):
        return False
    if enforces(ENGINE, use.feature):
        return True
    holder = _holder(use, schema.document)
    if use.feature == "required":  # of declared properties it is enforced, of others it is not
        return holder.get("type") == "object" and {*holder["required"]} <= {*holder.get("properties", ())}
    return use.feature == f"properties{BESIDE_OTHERS}" and _OPENING.isdisjoint(holder) and closes_objects()


def _holder(use: Use, document: Document) -> dict[str, Any]:
    """Return the schema that a keyword stands in."""
    found: Any = document.schema
    for step in use.place.split("/")[1:-1]:
        found = found[int(step) if isinstance(found, list) else step.replace("~1", "/").replace("~0", "~")]
    holder: dict[str, Any] = found
    return holder


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
