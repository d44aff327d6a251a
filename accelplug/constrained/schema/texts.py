"""States of strings as one expression: everything that can be said about a string is regular."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from accelplug.constrained.regex.tree import Regex, alt, both, literal
from accelplug.constrained.schema.atoms import Atom, Inexact, Text, Values
from accelplug.constrained.schema.document import Document, State
from accelplug.constrained.schema.ledger import Branch

_OF_STRINGS: Final = (Text, Values)


@dataclass(frozen=True, slots=True)
class Texts:
    """The strings of a state, or more than those where something is `inexact`."""

    regex: Regex
    inexact: tuple[Inexact, ...]


def text_of(branch: Branch) -> Regex:
    """Return the strings of one branch."""
    return both(*[_of_atom(atom) for atom in branch if isinstance(atom, _OF_STRINGS)])


def _of_atom(atom: Atom) -> Regex:
    if isinstance(atom, Values):
        return alt(*(literal(json.loads(text)) for text in atom.texts))
    assert isinstance(atom, Text)
    return atom.regex


def texts_of(document: Document, state: State) -> Texts:
    """Return the strings of a state."""
    branches = document.strings.branches(state, "string")
    inexact = dict.fromkeys(atom for branch in branches for atom in branch if isinstance(atom, Inexact))
    return Texts(alt(*map(text_of, branches)), tuple(inexact))
