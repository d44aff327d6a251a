"""Whether a state has any value at all, as far as that is seen quickly. "No" is certain, "yes" may be too kind."""

from __future__ import annotations

from typing import Final

from accelplug.constrained.regex.derive import is_empty, matches
from accelplug.constrained.schema.atoms import Absent, Items, Keys, Property, Required, Size, Values
from accelplug.constrained.schema.branches import Branch, Tableau
from accelplug.constrained.schema.document import State
from accelplug.constrained.schema.numbers import Numbers
from accelplug.constrained.schema.texts import text_of

_NOTHING_KNOWN: Final[State] = frozenset()


def possible(tableau: Tableau, state: State, kind: str) -> bool:
    """Whether some value of one type may satisfy a state."""
    return any(_some(tableau, branch, kind) for branch in tableau.branches(state, kind))


def _some(tableau: Tableau, branch: Branch, kind: str) -> bool:
    if any(isinstance(atom, Values) for atom in branch):
        return True
    if kind == "string":
        return not is_empty(text_of(branch))
    if kind == "number":
        return not Numbers.of(branch).is_empty
    sizes = [atom for atom in branch if isinstance(atom, Size)]
    low, high = max((size.low for size in sizes), default=0), min((size.high for size in sizes if size.high is not None), default=1 << 60)
    if low > high:
        return False
    if kind == "object":
        names = {atom.name for atom in branch if isinstance(atom, Required)}
        properties = Properties(branch) if names else None
        return len(names) <= high and (properties is None or all(_property(tableau, properties, name) for name in names))
    if kind == "array":
        return all(_item(tableau, branch, index) for index in range(min(low, 8)))
    return True


class Properties:
    """What a branch says about properties, by their names."""

    def __init__(self, branch: Branch) -> None:
        self.absent = {atom.name for atom in branch if isinstance(atom, Absent)}
        self.keys = [atom for atom in branch if isinstance(atom, Keys)]
        self.named: dict[str, State] = {}
        for atom in branch:
            if isinstance(atom, Property):
                self.named[atom.name] = self.named.get(atom.name, frozenset()) | atom.conj

    def state(self, name: str) -> State | None:
        """Return what holds of the property `name`, None where there must be none."""
        if name in self.absent:
            return None
        return self.named.get(name, _NOTHING_KNOWN).union(*(atom.conj for atom in self.keys if matches(atom.regex, name)))


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
