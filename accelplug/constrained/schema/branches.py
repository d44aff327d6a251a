"""The tableau: a state becomes branches, alternatives of which each is a list of atoms about one type of value.

A state is a set of signed nodes that all hold of one value. Sub-values are states again, so that a grammar has one rule per
state, however often and however recursively it is reached. Most states leave no choice and are read off here; the others are searched.
Source: tableaux for modal logics, e.g. F. Baader et al., The Description Logic Handbook, 2003, chapter 2.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import combinations
from typing import Final, cast

from accelplug._errors import ConstraintError
from accelplug.constrained.disjoint import Disjoint
from accelplug.constrained.schema.alive import is_possible
from accelplug.constrained.schema.atoms import Absent, Atom, Bound
from accelplug.constrained.schema.clauses import Clause
from accelplug.constrained.schema.document import Document, Node, Signed, State
from accelplug.constrained.schema.fixed import with_values
from accelplug.constrained.schema.kinds import Kinds
from accelplug.constrained.schema.ledger import Branch, apart
from accelplug.constrained.schema.reading import clauses
from accelplug.constrained.schema.search import MOST_BRANCHES, Search, TooManyBranchesError
from accelplug.hooks import CompileLimits

_OF_ANYTHING: Final[list[Branch]] = [()]


class Tableau:
    """Branches of states, each worked out once.

    :ivar guesses: how often an answer was asked for that was still being worked out.
    """

    def __init__(self, document: Document, deadline: float, limits: CompileLimits, *, loose: bool = False) -> None:
        """Prepare for one document.

        :param deadline: when to give up, on the monotonic clock.
        :param limits: say whether the grammar is still wanted.
        :param loose: leave choices between negations, and what depends on other properties, to the final check everywhere.
        """
        self.document, self.deadline, self.limits, self.loose = document, deadline, limits, loose
        self._clauses: dict[tuple[Node, str], list[Clause]] = {}
        self._branches: dict[tuple[State, str], list[Branch]] = {}
        self._possible: dict[State, bool] = {}
        self._at_sight = Disjoint(document)
        self._disjoint: dict[tuple[Node, Node], bool] = {}
        self._apart: dict[tuple[Node, Node, str], bool | None] = {}
        self._kinds, self._search = Kinds(document), Search(self)
        self.kinds_of, self.viable = self._kinds.of, self._kinds.left_by
        self.guesses = 0

    def branches(self, state: State, kind: str) -> list[Branch]:
        """Return the alternatives of a state for one type; those that contradict themselves at sight are left out.

        :raises ConstraintError: the deadline has passed.
        """
        if not state:
            return _OF_ANYTHING
        key = state, kind
        found = self._branches.get(key)
        if found is None:
            self.check_time()
            found = self._branches[key] = with_values(self.document, state, self._all(state, kind))
        return found

    def check_time(self) -> None:
        """Go on while there is time and somebody waits.

        :raises ConstraintError: the deadline has passed, or nobody does.
        """
        self.limits.check_wanted()
        if time.monotonic() > self.deadline:
            raise ConstraintError("the schema takes longer to compile than its limit; raise seconds, or simplify its combinations")

    def kinds(self, state: State) -> Iterator[tuple[str, list[Branch]]]:
        """Return every type with its branches."""
        for kind in self.viable(state):
            if found := self.branches(state, kind):
                yield kind, found

    def _all(self, state: State, kind: str) -> list[Branch]:
        for sign, node in state:
            if sign and kind not in self.kinds_of(node):
                return []
        start = list(state) if len(state) == 1 else sorted(state, key=lambda signed: (signed[1].number, signed[0]))
        plain = self._without_choice(start, kind)
        if plain is not None:
            return plain
        for loose in (True,) if self.loose else (False, True):
            try:
                return self._search.branches(start, kind, loose=loose)
            except TooManyBranchesError:
                continue
        return self._search.certain(start, kind)

    def _without_choice(self, start: list[Signed], kind: str) -> list[Branch] | None:
        """Return the branches, one or none, of a state that leaves no choice and denies nothing, as most do; None of others."""
        atoms: dict[Atom, None] = {}
        todo, seen = list(start), set[Node]()
        for sign, node in todo:  # grows on the way
            if not sign:
                return self._only_denied(node, kind) if len(todo) == 1 and isinstance(node.value, dict) else None
            if node in seen or node.value is True:
                continue
            if node.value is False:
                return []
            seen.add(node)
            for clause in self.clauses_of(node, kind):
                if len(clause.holds) != 1:
                    return None if clause.holds else []
                for item in clause.holds[0]:
                    if isinstance(item, tuple):
                        todo.append(item)
                    else:
                        atoms[item] = None
        bounds = [atom for atom in atoms if isinstance(atom, Bound)] if kind == "number" else []
        return [] if any(apart(one, other) for one, other in combinations(bounds, 2)) else [tuple(atoms)]

    def _only_denied(self, node: Node, kind: str) -> list[Branch] | None:
        """Return the branches of a negation that leads to atoms at once and leaves few choices, None of others."""
        alternatives = [alternative for clause in self.clauses_of(node, kind) for alternative in clause.fails]
        if [] in alternatives:
            return [()]
        if len(alternatives) > (1 if self.loose else MOST_BRANCHES) or any(isinstance(item, tuple) for one in alternatives for item in one):
            return None
        found = dict.fromkeys(tuple(dict.fromkeys(cast("list[Atom]", one))) for one in alternatives)
        return None if any(map(_may_contradict, found)) else list(found)

    def clauses_of(self, node: Node, kind: str) -> list[Clause]:
        """Return what a node says about values of one type."""
        key = node, kind
        found = self._clauses.get(key)
        if found is None:
            found = self._clauses[key] = clauses(self.document, node, kind)
        return found

    def possible(self, state: State) -> bool:
        """Whether some value may satisfy a state; True while that is being worked out."""
        found = self._possible.get(state)
        if found is None:
            self._possible[state] = True
            found = self._possible[state] = any(is_possible(self, state, kind) for kind in self.viable(state))
        return found

    def disjoint(self, one: Node, other: Node) -> bool:
        """Whether certainly no value satisfies both nodes."""
        key = (one, other) if one.number < other.number else (other, one)
        found = self._disjoint.get(key)
        if found is None:
            at_sight = self._at_sight.apart(one.value, other.value)
            found = self._disjoint[key] = at_sight or not self.possible(frozenset({(True, one), (True, other)}))
        return found

    def apart(self, one: Node, other: Node, kind: str) -> bool:
        """Whether certainly no value of a type satisfies both nodes."""
        key = (one, other, kind) if one.number < other.number else (other, one, kind)
        if key not in self._apart:
            self._apart[key] = None  # while it is being worked out: the answer that claims nothing
            self._apart[key] = not is_possible(self, frozenset({(True, one), (True, other)}), kind)
        found = self._apart[key]
        self.guesses += found is None
        return bool(found)


def _may_contradict(branch: Branch) -> bool:
    """Whether atoms may contradict each other at sight."""
    return len(branch) > 1 and any(isinstance(atom, Absent | Bound) for atom in branch)
