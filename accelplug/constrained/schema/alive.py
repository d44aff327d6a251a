"""Whether a state has any value at all, as far as that is seen quickly. "No" is certain, "yes" may be too kind."""

from __future__ import annotations

from accelplug.constrained.regex.derive import is_empty, matches
from accelplug.constrained.schema.atoms import Absent, Items, Keys, Property, Required, Size, Values
from accelplug.constrained.schema.branches import Branch, Tableau
from accelplug.constrained.schema.document import State
from accelplug.constrained.schema.numbers import Numbers
from accelplug.constrained.schema.texts import text_of


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
        return len(names) <= high and all(_property(tableau, branch, name) for name in names)
    if kind == "array":
        return all(_item(tableau, branch, index) for index in range(min(low, 8)))
    return True


def property_state(branch: Branch, name: str) -> State | None:
    """Return what holds of the property `name`, None where there must be none."""
    found: State = frozenset()
    for atom in branch:
        if atom == Absent(name):
            return None
        if (isinstance(atom, Property) and atom.name == name) or (isinstance(atom, Keys) and matches(atom.regex, name)):
            found |= atom.conj
    return found


def _property(tableau: Tableau, branch: Branch, name: str) -> bool:
    state = property_state(branch, name)
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
