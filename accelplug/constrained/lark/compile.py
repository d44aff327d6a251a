"""A schema to a Lark grammar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from accelplug._errors import ConstraintError
from accelplug.constrained.lark.arrays import array
from accelplug.constrained.lark.builder import Builder, TooLargeError
from accelplug.constrained.lark.finished import Symbols
from accelplug.constrained.lark.objects import obj
from accelplug.constrained.lark.scalars import boolean, null, number, string
from accelplug.constrained.schema.branches import Tableau
from accelplug.constrained.schema.document import Document
from accelplug.constrained.schema.ledger import Branch
from accelplug.hooks import CompileLimits

SHAPES: Final[dict[str, Callable[[Builder, Branch], list[Symbols]]]] = {
    "null": null,
    "boolean": boolean,
    "number": number,
    "string": string,
    "array": array,
    "object": obj,
}


class Written(NamedTuple):
    """A grammar's text, and the places of the keywords that it does not enforce."""

    text: str
    inexact: tuple[str, ...]


def to_lark(
    document: Document, whitespace: str, deadline: float, limits: CompileLimits, *, any_order: bool = False, coarse: bool = False, may_nest: bool = True
) -> Written:
    """Write the grammar of the JSON texts that satisfy a schema, or of more than those: what more, it says.

    :param deadline: when to give up, on the monotonic clock.
    :param limits: say whether anybody waits for it.
    :param any_order: whether properties may come in any order.
    :param coarse: say less, for an engine that gave the exact grammar up.
    :param may_nest: whether the engine takes a schema within the grammar.
    :raises ConstraintError: nothing satisfies the schema, or it is too large.
    """
    given = {"any_order": any_order, "coarse": coarse, "may_nest": may_nest}
    try:
        return _write(Builder(Tableau(document, deadline, limits), whitespace, **given))
    except TooLargeError:
        return _write(Builder(Tableau(document, deadline, limits, loose=True), whitespace, **given))


def _write(builder: Builder) -> Written:
    document = builder.tableau.document
    try:
        start = builder.value(frozenset({(True, document.root)}))
        builder.work(SHAPES)
    except RecursionError as exc:
        raise ConstraintError("the schema is nested too deeply to compile; flatten it with $defs and $ref") from exc
    text = builder.write(start)
    if text is None:
        raise ConstraintError("no value satisfies the schema: its keywords contradict each other")
    return Written(text, document.everywhere(builder.inexact))
