"""What a schema object says about values of one type, keyword by keyword."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from accelplug._errors import ConstraintError
from accelplug.constrained.schema.clauses import Clause, Place
from accelplug.constrained.schema.document import Document, Node
from accelplug.constrained.schema.shapes import misshapen
from accelplug.constrained.schema.vocabulary import handlers_of

_place: Final[Callable[[tuple[Document, Node, str, str, Any]], Place]] = partial(tuple.__new__, Place)  # a third of the time of calling the class


def clauses(document: Document, node: Node, kind: str) -> list[Clause]:
    """Return what a schema object says about values of one type.

    :raises ConstraintError: a keyword's value is not what the specification asks for.
    """
    return [clause for _, clause in placed(document, node, kind)]


def placed(document: Document, node: Node, kind: str) -> Iterator[tuple[Place, Clause]]:
    """Yield what a schema object says about values of one type, each with the keyword that says it.

    :raises ConstraintError: a keyword's value is not what the specification asks for.
    """
    handlers = handlers_of(kind, document.draft)
    keywords = ["$ref"] if document.draft <= 7 and "$ref" in node.value else list(node.value)
    shapes = {} if document.is_shaped(node.value) else document.shapes
    for keyword in keywords:
        handler = handlers.get(keyword)
        if handler is None:
            continue
        place = _place((document, node, keyword, kind, node.value[keyword]))
        shape = shapes.get(keyword)
        if shape is not None and not shape.fits(place.value):
            raise misshapen(place.name, shape, place.value)
        try:
            found = list(handler(place))
        except (TypeError, ValueError, AttributeError, LookupError) as exc:
            if isinstance(exc, ConstraintError):
                raise
            raise ConstraintError(f"{place.name} is {json.dumps(place.value):.60}, which the specification does not know there") from exc
        for clause in found:
            yield place, clause
