"""Rules of objects: named properties in the schema's order or any, then all other names, by what holds of them."""

from __future__ import annotations

from typing import Final, NamedTuple

from accelplug.constrained.lark.builder import Builder, Cell
from accelplug.constrained.lark.finished import Symbols
from accelplug.constrained.lark.scalars import fixed
from accelplug.constrained.lark.sequences import sequence
from accelplug.constrained.regex.derive import is_empty, matches
from accelplug.constrained.regex.tree import EVERY, Regex, alt, both, literal, without
from accelplug.constrained.schema.alive import Properties, size_of
from accelplug.constrained.schema.atoms import Inexact, Keys, Required, Size, Some
from accelplug.constrained.schema.document import State
from accelplug.constrained.schema.ledger import Branch

MOST_PATTERNS: Final = 32
MOST_OVERLAPPING: Final = 7
MOST_CELLS: Final = 32
"""Classes of names in an object, by which patterns they match, where there are more patterns than may overlap as they like."""
MOST_SOME: Final = 4


class Pair(NamedTuple):
    """Properties that are written alike: a name, or all names that match, with the state of their values.

    :param name: the name, None for a class of names.
    :param proves: which of the object's demands for some property such a pair may meet, with what its value must be in addition.
    """

    name: str | None
    keys: Regex
    state: State
    proves: tuple[tuple[int, State], ...]


class Shape(NamedTuple):
    """An object's facts."""

    named: list[Pair]
    others: list[Pair]
    required: frozenset[str]
    demands: int
    low: int
    high: int | None


_ANYTHING: Final = Shape([], [Pair(None, EVERY, frozenset(), ())], frozenset(), 0, 0, None)
"""What `shape_of` returns of an object of which nothing is known: one is in most grammars."""


def obj(builder: Builder, branch: Branch) -> list[Symbols]:
    """Objects."""
    given = fixed(builder, branch)
    if given is not None:
        return given
    shape = shape_of(builder, branch) if branch else _ANYTHING
    if shape is None:
        return []
    return [['"{"', sequence(builder, shape), '"}"']]


def shape_of(builder: Builder, branch: Branch) -> Shape | None:
    """Put the atoms of a branch together, None where they leave no object."""
    properties = Properties(branch)
    names, required, some = properties.names, frozenset(properties.required), properties.some
    if len(some) > MOST_SOME:
        builder.checked(*(Inexact(atom.place) for atom in some[MOST_SOME:]))
        some = some[:MOST_SOME]
    named = [pair for name in names if (pair := _named(builder, properties, name, some)) is not None]
    if not required <= {pair.name for pair in named}:
        return None
    others = _others(builder, properties.keys, names, some)
    low, high = _size(branch, len(required), len(named) if not others else None)
    if high is not None and high < low:
        return None
    if others or builder.any_order:  # a name written twice counts once
        builder.checked(*(Inexact(atom.place) for atom in some))
        builder.give_up(lambda atom: isinstance(atom, Size) and atom.low > len(required) + 1)
    _give_up_names(builder, others, names)
    return Shape(named, others, required, len(some), low, high)


def _give_up_names(builder: Builder, others: list[Pair], names: list[str]) -> None:
    """Leave to the final check what is said of names by expressions that are too much; of all names where these may be those that are named."""
    weaker = [regex for pair in others if (regex := builder.weakened(pair.keys)) != pair.keys]
    if any(matches(regex, name) for regex in weaker for name in names):
        builder.give_up(lambda atom: not isinstance(atom, Size | Required))
    elif weaker:
        builder.give_up(lambda atom: isinstance(atom, Keys | Some))


def _size(branch: Branch, required: int, possible_names: int | None) -> tuple[int, int | None]:
    """Return the bounds on the number of properties, None as upper one where it is never reached."""
    low, high = size_of(branch)
    if possible_names is not None:
        if low > possible_names:
            return 1, 0
        high = None if high is not None and high >= possible_names else high
    return max(low, required), high


def _divided(builder: Builder, names: tuple[str, ...], regexes: tuple[Regex, ...]) -> tuple[list[Cell], int]:
    """Return what `_cells` does, worked out once: the branches of a state differ in little."""
    key = names, regexes
    if key not in builder.cells:
        builder.cells[key] = _cells(builder, names, regexes)
    return builder.cells[key]


def _cells(builder: Builder, names: tuple[str, ...], regexes: tuple[Regex, ...]) -> tuple[list[Cell], int]:
    """Return the names that are none of these, divided by which expressions they match, none of the parts empty; and how many expressions told them apart."""
    cells: list[Cell] = [(without(alt(*map(literal, names))), frozenset())]
    for at, regex in enumerate(regexes):
        builder.tableau.check_time()
        opposite = without(regex)
        if opposite in regexes[:at]:  # which told the same apart
            cells = [(cell, inside | {regex}) for cell, inside in cells if opposite not in inside] + [one for one in cells if opposite in one[1]]
            continue
        split = [(both(cell, regex), inside | {regex}) for cell, inside in cells] + [(both(cell, opposite), inside) for cell, inside in cells]
        divided = [(cell, inside) for cell, inside in split if not is_empty(cell)]
        if at >= MOST_OVERLAPPING and len(divided) > MOST_CELLS:
            return cells, at
        cells = divided
    return cells, len(regexes)


def _named(builder: Builder, properties: Properties, name: str, some: list[Some]) -> Pair | None:
    state = properties.state(name)
    if state is None or not builder.tableau.possible(state):
        return None
    proves = tuple((index, atom.conj) for index, atom in enumerate(some) if matches(atom.regex, name)) if some else ()
    return Pair(name, literal(name), state, proves)


def _others(builder: Builder, rules: list[Keys], names: list[str], some: list[Some]) -> list[Pair]:
    """Divide all other names by which expressions they match."""
    regexes = list(dict.fromkeys([*(atom.regex for atom in some), *(atom.regex for atom in rules)]))  # demands first, which must be met
    cells, told = _divided(builder, tuple(names), tuple(regexes[:MOST_PATTERNS]))
    if told < len(regexes):
        builder.checked(*(Inexact(atom.place) for atom in rules if atom.regex in regexes[told:]))
    found = []
    for cell, inside in cells:
        state: State = frozenset().union(*(atom.conj for atom in rules if atom.regex in inside))
        if builder.tableau.possible(state):
            proves = tuple((index, atom.conj) for index, atom in enumerate(some) if atom.regex in inside)
            found.append(Pair(None, cell, state, proves))
    return found
