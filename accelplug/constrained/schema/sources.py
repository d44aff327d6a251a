"""Which keywords said what a grammar gives up: those that are then left to the final check."""

from __future__ import annotations

from collections.abc import Iterator

from accelplug._errors import ConstraintError
from accelplug.constrained.regex.derive import matches
from accelplug.constrained.schema.atoms import Atom, Required, Some
from accelplug.constrained.schema.document import Document, Signed, State
from accelplug.constrained.schema.reading import placed


def sources(document: Document, state: State, kind: str, atoms: frozenset[Atom]) -> Iterator[str]:
    """Yield the places of all keywords that may have brought these atoms into a branch of a state.

    An atom that no keyword says word for word came of several together: then all that is said of such values is named.
    """
    left, waiting, met = set(atoms), list(state), dict[Signed, None]()
    for signed in waiting:  # grows on the way
        if signed in met or isinstance(signed[1].value, bool):
            continue
        met[signed] = None
        for place, items in _said(document, signed, kind):
            waiting += [item for item in items if isinstance(item, tuple)]
            if any(_may_bring(item, atoms) for item in items):
                yield place
                left.difference_update(items)
    if left:
        yield from (node.place for _, node in met)


def _said(document: Document, signed: Signed, kind: str) -> Iterator[tuple[str, list[Atom | Signed]]]:
    """Yield what a node's keywords may say of values of one type: of such as satisfy it, or of such as do not."""
    sign, node = signed
    try:
        for place, clause in placed(document, node, kind):
            yield place.name, [item for alternative in (clause.holds if sign else clause.fails) for item in alternative]
    except ConstraintError:  # of what nobody asked about until now
        return


def _may_bring(item: Atom | Signed, atoms: frozenset[Atom]) -> bool:
    """Whether an item is one of these, or becomes one where the names that a property may have are few."""
    if isinstance(item, Some):
        return item in atoms or any(isinstance(atom, Required) and matches(item.regex, atom.name) for atom in atoms)
    return item in atoms
