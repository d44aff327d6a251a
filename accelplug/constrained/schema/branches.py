"""The tableau: a state becomes branches, alternatives of which each is a list of atoms about one type of value.

A state is a set of signed nodes that all hold of one value. Sub-values are states again, so that a grammar has one rule per
state, however often and however recursively it is reached.
Source: tableaux for modal logics, e.g. F. Baader et al., The Description Logic Handbook, 2003, chapter 2.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from accelplug._errors import ConstraintError
from accelplug.constrained.schema.atoms import KINDS, Absent, Atom, Bound, Inexact, Required, Values
from accelplug.constrained.schema.clauses import Alternative, Alternatives, Clause, clauses
from accelplug.constrained.schema.document import Document, Node, Signed, State
from accelplug.hooks import CompileLimits

Branch = tuple[Atom, ...]
MOST_BRANCHES: Final = 300
MOST_STEPS: Final = 20_000


class TooManyBranchesError(Exception):
    """A state has more alternatives than a grammar should."""


@dataclass
class Path:
    """What is known on the way to one branch."""

    todo: deque[Atom | Signed]
    forks: list[Alternatives] = field(default_factory=list)
    signed: dict[Signed, None] = field(default_factory=dict)
    atoms: dict[Atom, None] = field(default_factory=dict)

    def copy(self, more: Alternative, forks: list[Alternatives]) -> Path:
        """Go on along one alternative."""
        return Path(deque(more), list(forks), dict(self.signed), dict(self.atoms))

    def refutes(self, item: Atom | Signed) -> bool:
        """Whether something known contradicts it at sight."""
        if isinstance(item, tuple):
            sign, node = item
            return (not sign, node) in self.signed or node.value is (not sign)
        if isinstance(item, Required):
            return Absent(item.name) in self.atoms
        if isinstance(item, Absent):
            return Required(item.name) in self.atoms
        return isinstance(item, Bound) and any(isinstance(one, Bound) and _apart(one, item) for one in self.atoms)

    def knows(self, item: Atom | Signed) -> bool:
        """Whether it is known already."""
        return (item in self.signed or item[1].value is item[0]) if isinstance(item, tuple) else item in self.atoms


def _apart(one: Bound, other: Bound) -> bool:
    if one.lower == other.lower:
        return False
    low, high = (one, other) if one.lower else (other, one)
    return bool(low.value > high.value) or (low.value == high.value and (low.exclusive or high.exclusive))


class Tableau:
    """Branches of states, each worked out once."""

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
        self._apart: dict[tuple[Node, Node, str], bool] = {}

    def branches(self, state: State, kind: str) -> list[Branch]:
        """Return the alternatives of a state for one type; those that contradict themselves at sight are left out.

        :raises ConstraintError: the deadline has passed.
        """
        key = state, kind
        if key not in self._branches:
            self.limits.check_wanted()
            if time.monotonic() > self.deadline:
                raise ConstraintError("the schema takes longer to compile than its limit; raise seconds, or simplify its combinations")
            self._branches[key] = self._with_values(state, self._all(state, kind))
        return self._branches[key]

    def _all(self, state: State, kind: str) -> list[Branch]:
        if not state:
            return [()]
        if any(sign and self._is_of_another_type(node.value, kind) for sign, node in state):
            return []
        start = sorted(state, key=lambda signed: (signed[1].number, signed[0]))
        for loose in (True,) if self.loose else (False, True):
            try:
                return list(dict.fromkeys(self._walk(Path(deque(start)), kind, [MOST_STEPS], loose=loose)))
            except TooManyBranchesError:
                continue
        return [(Inexact(start[0][1].place),)]

    def _is_of_another_type(self, schema: Any, kind: str) -> bool:
        """Whether a schema names one type, and not this."""
        if not isinstance(schema, dict) or (self.document.draft <= 7 and "$ref" in schema):
            return False
        named = schema.get("type")
        return isinstance(named, str) and named in _TYPES and named != kind and not (named == "integer" and kind == "number")

    def _walk(self, path: Path, kind: str, steps: list[int], *, loose: bool) -> Iterator[Branch]:
        """Follow a path to its branches; where `loose`, choices that hold by themselves a negation are given up."""
        found, waiting = 0, [path]
        while waiting:
            path = waiting.pop()
            if not self._settle(path, kind, loose=loose):
                continue
            forks = self._open(path, kind)
            if forks is None:
                continue
            if not forks:
                found += 1
                yield tuple(path.atoms)
            else:
                first = min(forks, key=len)
                rest = [fork for fork in forks if fork is not first]
                waiting.extend(path.copy(alternative, rest) for alternative in reversed(first))
            steps[0] -= 1
            if found > MOST_BRANCHES or steps[0] < 0 or len(waiting) > 10 * MOST_BRANCHES:
                raise TooManyBranchesError

    def _settle(self, path: Path, kind: str, *, loose: bool) -> bool:
        """Work off everything that leaves no choice; return whether the path goes on."""
        while path.todo:
            item = path.todo.popleft()
            if path.refutes(item):
                return False
            if path.knows(item):
                continue
            if not isinstance(item, tuple):
                path.atoms[item] = None
                continue
            path.signed[item] = None
            for fork in self._choices(item, kind, loose=loose):
                if not fork:
                    return False
                if len(fork) == 1:
                    path.todo.extend(fork[0])
                else:
                    path.forks.append(fork)
        return True

    def _choices(self, item: Signed, kind: str, *, loose: bool) -> list[Alternatives]:
        sign, node = item
        if node.value is True or node.value is False:
            return [[[]]] if node.value is sign else [[]]
        key = node, kind
        if key not in self._clauses:
            self._clauses[key] = clauses(self.document, node, kind)
        found = self._clauses[key]
        if sign:
            return [
                _DEPENDING if loose and _depends(clause.holds) else self._told_apart(clause.holds, kind, loose=loose) for clause in found
            ]
        alternatives = [alternative for clause in found for alternative in clause.fails]
        return [[[Inexact(f"{node.place}")]]] if loose and len(alternatives) > 1 else [alternatives]

    def _told_apart(self, alternatives: Alternatives, kind: str, *, loose: bool) -> Alternatives:
        """Leave out the negation of schemas that cannot hold beside the first one anyway."""
        found: Alternatives = []
        for alternative in alternatives:
            first = alternative[0] if alternative else None
            if not isinstance(first, tuple) or not first[0] or len(alternative) < 2:
                found.append(alternative)
                continue
            kept = [
                item for item in alternative[1:] if not (isinstance(item, tuple) and not item[0] and self.apart(first[1], item[1], kind))
            ]
            if loose and any(_negative(item) for item in kept):
                kept = [item for item in kept if not _negative(item)] + [Inexact(first[1].place)]
            found.append([first, *kept])
        return found

    def possible(self, state: State) -> bool:
        """Whether some value may satisfy a state; True while that is being worked out."""
        if state not in self._possible:
            from accelplug.constrained.schema.alive import possible

            self._possible[state] = True
            self._possible[state] = any(possible(self, state, kind) for kind in KINDS)
        return self._possible[state]

    def apart(self, one: Node, other: Node, kind: str) -> bool:
        """Whether certainly no value of a type satisfies both nodes."""
        key = (one, other, kind) if one.number < other.number else (other, one, kind)
        if key not in self._apart:
            from accelplug.constrained.schema.alive import possible

            self._apart[key] = False  # while it is being worked out: the answer that claims nothing
            self._apart[key] = not possible(self, frozenset({(True, one), (True, other)}), kind)
        return self._apart[key]

    def _open(self, path: Path, kind: str) -> list[Alternatives] | None:
        """Return the choices still open, None where one of them has no way out."""
        del kind
        found: list[Alternatives] = []
        for fork in path.forks:
            if any(all(path.knows(item) for item in alternative) for alternative in fork):
                continue
            left = [alternative for alternative in fork if not any(path.refutes(item) for item in alternative)]
            if not left:
                return None
            found.append(left)
        return found

    def kinds(self, state: State) -> Iterator[tuple[str, list[Branch]]]:
        """Return every type with its branches."""
        for kind in KINDS:
            if found := self.branches(state, kind):
                yield kind, found

    def _with_values(self, state: State, branches: list[Branch]) -> list[Branch]:
        """Filter fixed values by the whole state, which leaves nothing else to be said about them."""
        kept: dict[Branch, None] = {}
        for branch in branches:
            given = [atom for atom in branch if isinstance(atom, Values)]
            if not given:
                kept[branch] = None
                continue
            good = tuple(text for text in given[0].texts if all(text in other.texts for other in given))
            if len(given) < len(branch):  # something else is known as well
                good = tuple(text for text in good if all(self.document.holds(signed, json.loads(text)) for signed in state))
            if good:
                kept[Values(good),] = None
        return list(kept)


_TYPES: Final = frozenset({*KINDS, "integer"})
_DEPENDING: Final[Alternatives] = [[Inexact("*/dependencies"), Inexact("*/dependentRequired"), Inexact("*/dependentSchemas")]]


def _depends(alternatives: Alternatives) -> bool:
    return len(alternatives) > 1 and isinstance(alternatives[0][0] if alternatives[0] else None, Absent)


def _negative(item: Atom | Signed) -> bool:
    return isinstance(item, tuple) and not item[0]
