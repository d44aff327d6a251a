"""Arrays of distinct items out of few: rules by which of them were used."""

from __future__ import annotations

import json

from accelplug.constrained.lark.arrays import MOST_VALUES, Shape
from accelplug.constrained.lark.builder import Builder
from accelplug.constrained.lark.finished import Symbols
from accelplug.constrained.lark.scalars import values_of
from accelplug.constrained.schema.atoms import canonical
from accelplug.constrained.schema.document import State


def domain(builder: Builder, state: State) -> list[str] | None:
    """Return all values of a state as JSON, None where they are many or not known."""
    found: dict[str, None] = {}
    for kind, branches in builder.tableau.kinds(state):
        for branch in branches:
            values = {"null": ["null"], "boolean": ["true", "false"]}.get(kind) if not values_of(branch) else values_of(branch)
            if values is None:
                return None
            found.update(dict.fromkeys(values))
    values = list(found)
    return (
        values
        if len(values) <= MOST_VALUES and len(set(map(canonical, values))) == len(values)
        else None
    )


def distinct(builder: Builder, shape: Shape) -> list[Symbols] | None:
    """Write an array without equal items, None where its items are not few."""
    if shape.front or (values := domain(builder, shape.tail)) is None:
        return None
    names: dict[int, str] = {}

    def rule(used: int) -> str:
        if used in names:
            return names[used]
        names[used] = name = builder.new("set")
        size = used.bit_count()
        if size >= shape.low:
            builder.add(name)
        if shape.high is None or size < shape.high:
            for index, text in enumerate(values):
                if not used >> index & 1:
                    builder.add(name, *([builder.comma] if used else []), *builder.literal(json.loads(text)), rule(used | 1 << index))
        return name

    return [['"["', rule(0), '"]"']] if len(values) >= shape.low else []
