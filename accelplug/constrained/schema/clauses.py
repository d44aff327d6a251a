"""A schema object as a conjunction of clauses, each with its complement.

A clause is one keyword: `holds` are the alternatives of which one must be true for the keyword to be satisfied, `fails` those of
which one must be true for it to be violated. An alternative is a list of signed nodes and atoms, all of them true. So a negated schema
is one choice between all `fails`, and negation is only ever of a keyword, whose complement is known here, never of an approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from accelplug.constrained.schema.atoms import Atom, Inexact
from accelplug.constrained.schema.document import Document, Node, Signed, State

Alternative = list["Atom | Signed"]
Alternatives = list[Alternative]


class Clause:
    """One keyword: when it is satisfied, and when it is not.

    :param fails: the alternatives, or what works them out once they are asked for, which is seldom.
    """

    __slots__ = ("_fails", "holds")

    def __init__(self, holds: Alternatives, fails: Alternatives | Callable[[], Alternatives]) -> None:
        self.holds, self._fails = holds, fails

    @property
    def fails(self) -> Alternatives:
        """When the keyword is violated."""
        if not isinstance(self._fails, list):
            self._fails = self._fails()
        return self._fails


class Place(NamedTuple):
    """A keyword of a node, in a document, with what it says there, for one type of value."""

    document: Document
    node: Node
    keyword: str
    kind: str
    value: Any

    @property
    def name(self) -> str:
        """Where it stands, e.g. ``"#/properties/age/minimum"``."""
        return f"{self.node.place}/{self.keyword}"

    def below(self, *path: str | int) -> Node:
        """Return a subschema of the keyword's value."""
        return self.document.below(self.node, self.keyword, *path)

    def unknown(self) -> Clause:
        """The keyword is beyond any mask: both ways it is checked at the end."""
        return Clause([[Inexact(self.name)]], [[Inexact(self.name)]])

    @property
    def legacy(self) -> bool:
        """Whether the schema's draft is one before 2019-09."""
        return self.document.draft <= 7


Keyword = Callable[[Place], Iterator[Clause]]
TRUE: Final[Alternatives] = [[]]
FALSE: Final[Alternatives] = []


def just(*signed: Signed) -> State:
    """Return the state in which these hold."""
    return frozenset(signed)


def always(clause: Alternatives) -> Clause:
    """Return a clause from what satisfies it, which is all or nothing."""
    return Clause(clause, FALSE if clause else TRUE)
