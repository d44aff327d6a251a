"""Whether a state has any value at all, as far as that is seen quickly. "No" is certain, "yes" may be too kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from accelplug.constrained.regex.derive import is_empty, matches
from accelplug.constrained.schema.atoms import Absent, Items, Keys, Property, Required, Size, Some, Values
from accelplug.constrained.schema.document import State
from accelplug.constrained.schema.ledger import Branch
from accelplug.constrained.schema.numbers import Numbers
from accelplug.constrained.schema.texts import text_of

if TYPE_CHECKING:
    from accelplug.constrained.schema.branches import Tableau

_NOTHING_KNOWN: Final[State] = frozenset()


def is_possible(tableau: Tableau, state: State, kind: str) -> bool:
    """Whether some value of one type may satisfy a state."""
    return any(_some(tableau, branch, kind) for branch in tableau.branches(state, kind))


def _some(tableau: Tableau, branch: Branch, kind: str) -> bool:
    if not branch or isinstance(branch[0], Values):  # which are alone in a branch
        return True
    if kind == "string":
        return not is_empty(text_of(branch))
    if kind == "number":
        return not Numbers.of(branch).is_empty
    if kind not in {"object", "array"}:
        return True
    low, high = size_of(branch)
    if high is not None and low > high:
        return False
    if kind == "array":
        return all(_item(tableau, branch, index) for index in range(min(low, 8)))
    properties = Properties(branch)
    names = properties.required
    return (high is None or len(names) <= high) and all(_property(tableau, properties, name) for name in names)


def size_of(branch: Branch) -> tuple[int, int | None]:
    """Return the bounds on the number of items or properties."""
    low, high = 0, None
    for atom in branch:
        if isinstance(atom, Size):
            low = max(low, atom.low)
            high = atom.high if high is None else high if atom.high is None else min(high, atom.high)
    return low, high


class Properties:
    """What a branch says about properties, by their names."""

    def __init__(self, branch: Branch) -> None:
        self.named: dict[str, State] = {}
        self.required: dict[str, None] = {}
        self.absent: dict[str, None] = {}
        self.keys: list[Keys] = []
        self.some: list[Some] = []
        for atom in branch:
            if isinstance(atom, Property):
                before = self.named.get(atom.name)
                self.named[atom.name] = atom.conj if before is None else before | atom.conj
            elif isinstance(atom, Required):
                self.required[atom.name] = None
            elif isinstance(atom, Absent):
                self.absent[atom.name] = None
            elif isinstance(atom, Keys):
                self.keys.append(atom)
            elif isinstance(atom, Some):
                self.some.append(atom)

    @property
    def names(self) -> list[str]:
        """Every name that is spoken of, in the order in which they are written."""
        return list(dict.fromkeys([*self.named, *self.required, *self.absent]))

    def state(self, name: str) -> State | None:
        """Return what holds of the property `name`, None where there must be none."""
        if name in self.absent:
            return None
        found = self.named.get(name, _NOTHING_KNOWN)
        for atom in self.keys:
            if matches(atom.regex, name):
                found |= atom.conj
        return found


def _property(tableau: Tableau, properties: Properties, name: str) -> bool:
    state = properties.state(name)
    return state is not None and tableau.possible(state)


def item_state(branch: Branch, index: int) -> State:
    """Return what holds of the item at `index`."""
    found: State = frozenset()
    for atom in branch:
        if isinstance(atom, Items) and atom.start <= index and (atom.stop is None or index < atom.stop):
            found |= atom.conj
    return found


def _item(tableau: Tableau, branch: Branch, index: int) -> bool:
    return tableau.possible(item_state(branch, index))
