"""What can be known about a value of one type. A branch is a list of these, all of which hold. None is ever changed: they are not frozen
because that doubles the time of making one, and a schema makes thousands.

``conj`` is a state: signed nodes that all hold of a value inside.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from accelplug.constrained.regex.derive import matches
from accelplug.constrained.regex.tree import Regex
from accelplug.constrained.schema.document import State

written: Final = json.JSONEncoder(ensure_ascii=False).encode
"""Write a JSON value, as `json.dumps` does, which would make an encoder each time."""


def canonical(text: str) -> str:
    """Return a JSON value, which `written` wrote, as a text that is equal for equal values: 1 and 1.0, and objects in whatever order."""
    return text if text[0] == '"' else json.dumps(_whole(json.loads(text)), sort_keys=True)


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


KINDS: Final = ("null", "boolean", "number", "string", "array", "object")
_KIND_OF: Final[dict[type, str]] = {
    bool: "boolean",
    type(None): "null",
    int: "number",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


_ALL_KINDS: Final = frozenset(KINDS)
_KINDS_NAMED: Final = {"integer": "number", **{kind: kind for kind in KINDS}}
_ONLY: Final = {name: frozenset({kind}) for name, kind in _KINDS_NAMED.items()}


def kind_of(value: Any) -> str:
    """Return the type of a JSON value, integers being numbers."""
    return _KIND_OF[type(value)]


def kinds_named(named: Any) -> frozenset[str]:
    """Return the types that the value of a ``type`` names, all of them where it is none, or names what no type is."""
    if isinstance(named, str):
        return _ONLY.get(named, _ALL_KINDS)
    names = named if isinstance(named, list) else []
    if not names or not all(isinstance(name, str) and name in _KINDS_NAMED for name in names):
        return _ALL_KINDS
    return frozenset(_KINDS_NAMED[name] for name in names)


@dataclass(slots=True, unsafe_hash=True)
class Inexact:
    """Something holds that no mask of ours says: the keyword at this place is checked at the end."""

    place: str


@dataclass(slots=True, unsafe_hash=True)
class Values:
    """The value is one of these; each as JSON, so that 1 and true differ."""

    texts: tuple[str, ...]


def in_all(given: Sequence[Values]) -> tuple[str, ...]:
    """Return the values that are equal to one of each."""
    if len(given) == 1:
        return given[0].texts
    others = [{canonical(text) for text in one.texts} for one in given[1:]]
    return tuple(text for text in given[0].texts if all(canonical(text) in other for other in others))


@dataclass(slots=True, unsafe_hash=True)
class Integer:
    """The number is an integer."""


@dataclass(slots=True, unsafe_hash=True)
class Fractional:
    """The number is no integer."""

    place: str


@dataclass(slots=True, unsafe_hash=True)
class Bound:
    """The number is at least (`lower`) or at most `value`, not equal to it where `exclusive`."""

    value: Any
    lower: bool
    exclusive: bool


@dataclass(slots=True, unsafe_hash=True)
class Multiple:
    """The number is a multiple of `step`."""

    step: Any


@dataclass(slots=True, unsafe_hash=True)
class Text:
    """The string matches."""

    regex: Regex


@dataclass(slots=True, unsafe_hash=True)
class Size:
    """So many items, or properties."""

    low: int
    high: int | None


@dataclass(slots=True, unsafe_hash=True)
class Items:
    """Items `start` .. `stop` - 1, as far as there are any, are in `conj`."""

    start: int
    stop: int | None
    conj: State


@dataclass(slots=True, unsafe_hash=True)
class Contains:
    """From `low` to `high` of the items from `start` on are in `conj`; `others` is its complement."""

    start: int
    conj: State
    others: State
    low: int
    high: int | None


@dataclass(slots=True, unsafe_hash=True)
class Unique:
    """No two items are equal."""

    place: str


@dataclass(slots=True, unsafe_hash=True)
class Property:
    """The property `name`, if there is one, is in `conj`."""

    name: str
    conj: State


@dataclass(slots=True)
class Required:
    """There is a property `name`."""

    name: str

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(slots=True)
class Absent:
    """There is no property `name`."""

    name: str

    def __hash__(self) -> int:
        return ~hash(self.name)  # else each would be compared with the demand for it wherever both are looked for


@dataclass(slots=True, unsafe_hash=True)
class Keys:
    """Every property whose name matches is in `conj`."""

    regex: Regex
    conj: State
    place: str


@dataclass(slots=True, unsafe_hash=True)
class Some:
    """There is a property whose name matches and which is in `conj`."""

    regex: Regex
    conj: State
    place: str


Atom = (
    Inexact
    | Values
    | Integer
    | Fractional
    | Bound
    | Multiple
    | Text
    | Size
    | Items
    | Contains
    | Unique
    | Property
    | Required
    | Absent
    | Keys
    | Some
)


def satisfies(atom: Atom, value: Any) -> bool | None:
    """Whether a string or a number satisfies an atom, None where that is not said here."""
    if isinstance(value, str):
        try:
            return matches(atom.regex, value) if isinstance(atom, Text) else None
        except RecursionError:
            return None
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))):
        return None
    if isinstance(atom, Bound):
        above = value > atom.value if atom.lower else value < atom.value
        return bool(above or (value == atom.value and not atom.exclusive))
    whole = value == int(value)
    return whole if isinstance(atom, Integer) else not whole if isinstance(atom, Fractional) else None
