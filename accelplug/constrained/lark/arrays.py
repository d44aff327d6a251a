"""Rules of arrays: positions with schemas of their own, a tail, and counts of items that must or may be contained."""

from __future__ import annotations

from typing import Final, NamedTuple

from accelplug.constrained.lark.builder import Builder
from accelplug.constrained.lark.finished import Symbols
from accelplug.constrained.lark.scalars import fixed
from accelplug.constrained.schema.alive import item_state
from accelplug.constrained.schema.atoms import Contains, Inexact, Items, Size, Unique
from accelplug.constrained.schema.document import State
from accelplug.constrained.schema.ledger import Branch

MOST_STATES: Final = 600
MOST_VALUES: Final = 7
MOST_ITEMS: Final = 2000


class Shape(NamedTuple):
    """An array's facts: the state of each position up to the tail, and the bounds of its size."""

    front: list[State]
    tail: State
    low: int
    high: int | None


_ANYTHING: Final = Shape([], frozenset(), 0, None)
"""What `shape_of` returns of an array of which nothing is known: one is in most grammars."""


def shape_of(builder: Builder, branch: Branch) -> Shape | None:
    """Put the atoms of a branch together, None where they leave no array."""
    edges = [edge for atom in branch if isinstance(atom, Items) for edge in (atom.start, atom.stop)]
    edges += [atom.start for atom in branch if isinstance(atom, Contains)]
    behind = max((edge for edge in edges if edge is not None), default=0)
    sizes = [atom for atom in branch if isinstance(atom, Size)]
    low = max((size.low for size in sizes), default=0)
    high = min((size.high for size in sizes if size.high is not None), default=None)
    front = [item_state(branch, index) for index in range(behind)]
    tail = item_state(branch, behind)
    for index, state in enumerate([*front, tail]):
        if not builder.tableau.possible(state):
            high = index if high is None else min(high, index)
            break
    return None if high is not None and low > high else Shape(front[:high], tail, low, high)


def array(builder: Builder, branch: Branch) -> list[Symbols]:
    """Arrays."""
    given = fixed(builder, branch)
    if given is not None:
        return given
    shape = shape_of(builder, branch) if branch else _ANYTHING
    if shape is None:
        return []
    contained = [atom for atom in branch if isinstance(atom, Contains)]
    unique = [atom for atom in branch if isinstance(atom, Unique)]
    if unique and (shape.high is None or shape.high > 1):
        from accelplug.constrained.lark.unique import distinct

        found = None if contained else distinct(builder, shape)
        if found is not None:
            return found
        builder.checked(*(Inexact(atom.place) for atom in unique))
    if contained:
        from accelplug.constrained.lark.counting import counted

        return counted(builder, shape, contained)
    return plain(builder, shape)


def plain(builder: Builder, shape: Shape) -> list[Symbols]:
    """Write an array whose items only have a place: the front one by one, each leading on to the next or to the end."""
    shape = _within_reach(builder, shape)
    number = builder.number(("array", tuple(shape.front), shape.tail, shape.low, shape.high))
    if (number, False) not in builder.shared:
        builder.shared[number, False] = _inside(builder, shape)
    return [['"["', builder.shared[number, False], '"]"']]


def _within_reach(builder: Builder, shape: Shape) -> Shape:
    """Give up the bounds of a size that no rule counts to."""
    most = len(shape.front) + MOST_ITEMS
    if shape.high is not None and shape.high > most:
        builder.give_up(lambda atom: isinstance(atom, Size) and atom.high is not None and atom.high > most)
        shape = shape._replace(high=None)
    if shape.low > most:
        builder.give_up(lambda atom: isinstance(atom, Size) and atom.low > most)
        shape = shape._replace(low=most)
    return shape


def _inside(builder: Builder, shape: Shape) -> str:
    rule = builder.new("tail")
    high = None if shape.high is None else shape.high - len(shape.front)
    _tail(builder, rule, shape, max(0, shape.low - len(shape.front)), high)
    for index in range(len(shape.front) - 1, -1, -1):
        rule, following = builder.new("item"), rule
        builder.add(rule, *([builder.comma] if index else []), builder.value(shape.front[index]), following)
        if index >= shape.low:
            builder.add(rule)
    return rule


def _tail(builder: Builder, rule: str, shape: Shape, low: int, high: int | None) -> None:
    if high == 0 or not builder.tableau.possible(shape.tail):
        builder.add(rule)
        return
    item = builder.value(shape.tail)
    if shape.front:
        _repeated(builder, rule, item, low, high)
        return
    if low == 0:
        builder.add(rule)
    more = builder.new("more")
    _repeated(builder, more, item, max(0, low - 1), None if high is None else high - 1)
    builder.add(rule, item, more)


def _repeated(builder: Builder, rule: str, item: str, low: int, high: int | None) -> None:
    """Add ``(comma item){low,high}``."""
    following = builder.new("next")
    builder.add(following, builder.comma, item)
    if high == 0:
        builder.add(rule)
        return
    builder.add(rule, f"{following}{{{low},{'' if high is None else high}}}")
