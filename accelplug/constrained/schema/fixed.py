"""Branches whose value is one of a few that are listed: which of those satisfy all the rest, so that nothing else need be said about them."""

from __future__ import annotations

import json
from typing import Any

from accelplug.constrained.regex.derive import matches
from accelplug.constrained.schema.atoms import Absent, Atom, Keys, Property, Required, Size, Some, Values, in_all, satisfies
from accelplug.constrained.schema.document import Document, State
from accelplug.constrained.schema.ledger import Branch


def with_values(document: Document, state: State, branches: list[Branch]) -> list[Branch]:
    """Return the branches of a state; of those with fixed values only the values that satisfy the whole state are left, and alone."""
    if not any(isinstance(atom, Values) for branch in branches for atom in branch):
        return branches
    kept: dict[Branch, None] = {}
    for branch in branches:
        given = [atom for atom in branch if isinstance(atom, Values)]
        if not given:
            kept[branch] = None
            continue
        good = in_all(given)
        if len(given) < len(branch):  # something else is known as well
            others: list[Atom] = [atom for atom in branch if not isinstance(atom, Values)]
            good = tuple(text for text in good if _holds(document, state, others, json.loads(text)))
        if good:
            kept[Values(good),] = None
    return list(kept)


def _holds(document: Document, state: State, others: list[Atom], value: Any) -> bool:
    """Whether a fixed value satisfies what else is known of it: the atoms themselves where they say it, else the whole state."""
    if isinstance(value, dict):
        if all(_object_is(document, atom, value) for atom in others):
            return True
    else:
        said = [satisfies(atom, value) for atom in others]
        if None not in said and (all(said) or isinstance(value, str)):
            return all(said)
    return _is(document, value, state)  # it may satisfy the state in another way, by which it would be written otherwise


def _object_is(document: Document, atom: Atom, value: dict[str, Any]) -> bool | None:
    """Whether an object satisfies an atom, None where that is not said here."""
    if isinstance(atom, Size):
        return atom.low <= len(value) and (atom.high is None or len(value) <= atom.high)
    if isinstance(atom, Required | Absent):
        return (atom.name in value) is isinstance(atom, Required)
    if isinstance(atom, Property):
        return atom.name not in value or _is(document, value[atom.name], atom.conj)
    if not isinstance(atom, Keys | Some):
        return None
    values = (_is(document, child, atom.conj) for name, child in value.items() if matches(atom.regex, name))
    return all(values) if isinstance(atom, Keys) else any(values)


def _is(document: Document, value: Any, state: State) -> bool:
    """Whether a value satisfies a state, as the final check says."""
    return all(document.holds(signed, value) for signed in state)
