"""The tableau: a state becomes branches, alternatives of which each is a list of atoms about one type of value.

A state is a set of signed nodes that all hold of one value. Sub-values are states again, so that a grammar has one rule per
state, however often and however recursively it is reached.
Source: tableaux for modal logics, e.g. F. Baader et al., The Description Logic Handbook, 2003, chapter 2.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import combinations
from typing import Any, Final, cast

from accelplug._errors import ConstraintError
from accelplug.constrained.regex.derive import matches
from accelplug.constrained.schema.atoms import (
    KINDS,
    Absent,
    Atom,
    Bound,
    Inexact,
    Keys,
    Property,
    Required,
    Size,
    Some,
    Values,
    in_all,
    kind_of,
    kinds_named,
    satisfies,
)
from accelplug.constrained.schema.clauses import Alternative, Alternatives, Clause, clauses
from accelplug.constrained.schema.document import Document, Node, Signed, State
from accelplug.constrained.schema.ledger import Branch, Choice, Fork, Ledger, Path, apart
from accelplug.hooks import CompileLimits

MOST_BRANCHES: Final = 300
FEW_STEPS: Final = 50
MOST_STEPS: Final = 20_000


class TooManyBranchesError(Exception):
    """A state has more alternatives than a grammar should."""


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
        self._apart: dict[tuple[Node, Node, str], bool | None] = {}
        self._kinds: dict[int, frozenset[str]] = {}
        self._expanded: dict[tuple[int, str, bool], list[Fork]] = {}
        self._hopeless: dict[int, bool] = {}
        self._guesses = 0
        self.ledger = Ledger()

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
        for sign, node in state:
            if sign and kind not in self.kinds_of(node):
                return []
        start = sorted(state, key=lambda signed: (signed[1].number, signed[0]))
        plain = self._without_choice(start, kind)
        if plain is not None:
            return plain
        numbers = list(map(self.ledger.number, start))
        for loose in (True,) if self.loose else (False, True):
            try:
                found = dict.fromkeys(self._walk(numbers, kind, loose=loose))
                return [self.ledger.branch(numbers) for numbers in found]
            except TooManyBranchesError:
                continue
        return self._certain(numbers, kind)

    def _certain(self, numbers: list[int], kind: str) -> list[Branch]:
        """Return the one branch of what holds whatever is chosen. The choices themselves are checked."""
        path = Path(list(numbers), [], 1, [])
        if not self._settle(path, kind, loose=True):
            return []
        met = [item[1].place for number in path.todo if isinstance(item := self.ledger.items[number], tuple)]
        return [(*self.ledger.branch(tuple(path.atoms)), *map(Inexact, dict.fromkeys(met)))]

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
            for clause in self._clauses_of(node, kind):
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
        alternatives = [alternative for clause in self._clauses_of(node, kind) for alternative in clause.fails]
        if [] in alternatives:
            return [()]
        if len(alternatives) > (1 if self.loose else MOST_BRANCHES) or any(isinstance(item, tuple) for one in alternatives for item in one):
            return None
        found = dict.fromkeys(tuple(dict.fromkeys(cast("list[Atom]", one))) for one in alternatives)
        return None if any(map(_may_contradict, found)) else list(found)

    def kinds_of(self, node: Node) -> frozenset[str]:
        """Return the types of which a value may satisfy a node, as far as that is seen at sight."""
        found = self._kinds.get(node.number)
        if found is None:
            self._kinds[node.number] = _ALL_KINDS  # while it is being worked out: references may go in circles
            found = self._kinds[node.number] = self._kinds_at_sight(node)
        return found

    def _kinds_at_sight(self, node: Node) -> frozenset[str]:
        schema = node.value
        if not isinstance(schema, dict):
            return _ALL_KINDS if schema else frozenset()
        if "$ref" in schema and (self.document.draft <= 7 or "type" not in schema):
            target = self.document.target(node, "$ref")
            return _ALL_KINDS if target is None else self.kinds_of(target)
        found = kinds_named(schema.get("type"))  # what no type is, its keyword refuses
        listed = schema.get("enum")
        return found.intersection(map(kind_of, listed)) if isinstance(listed, list) else found

    def _walk(self, start: list[int], kind: str, *, loose: bool) -> Iterator[tuple[int, ...]]:
        """Follow a path to its branches, the numbers of their atoms; where `loose`, choices that hold by themselves a negation are given up."""
        found, steps, waiting = 0, 0, [Path(list(start), [], 1, [])]
        while waiting:
            path = waiting.pop()
            forks = self._settled(path, kind, loose=loose)
            steps += 1
            if forks is None or (steps > FEW_STEPS and self._is_hopeless(path)):
                continue
            if not forks:
                found += 1
                yield tuple(path.atoms)
            else:
                first = min(forks, key=len)
                rest = [fork for fork in forks if fork is not first]
                waiting.extend(Path(list(one.numbers), list(rest), path.known, list(path.atoms)) for one in reversed(first))
            if found > MOST_BRANCHES or steps > MOST_STEPS or len(waiting) > 10 * MOST_BRANCHES:
                raise TooManyBranchesError

    def _settled(self, path: Path, kind: str, *, loose: bool) -> list[Fork] | None:
        """Work off everything that leaves no choice; return the choices still open, None where the path ends."""
        while True:
            if not self._settle(path, kind, loose=loose):
                return None
            forks = self._open(path)
            only = None if forks is None else next((fork for fork in forks if len(fork) == 1), None)
            if only is None:
                return forks
            path.todo, path.forks = list(only[0].numbers), [fork for fork in forks or () if fork is not only]

    def _is_hopeless(self, path: Path) -> bool:
        """Whether a property that must be there has no value left. Looked at where alternatives are many, such as of one kind each."""
        key = path.known & self.ledger.of_properties
        found = self._hopeless.get(key)
        if found is None:
            found = self._hopeless[key] = self._lacks_a_value(path)
        return found

    def _lacks_a_value(self, path: Path) -> bool:
        atoms = [self.ledger.items[number] for number in path.atoms]
        needed = {atom.name for atom in atoms if isinstance(atom, Required)}
        states: dict[str, list[State]] = {}
        for atom in atoms:
            if isinstance(atom, Property) and atom.name in needed:
                states.setdefault(atom.name, []).append(atom.conj)
        return any(len(found) > 1 and not self.possible(frozenset().union(*found)) for found in states.values())

    def _settle(self, path: Path, kind: str, *, loose: bool) -> bool:
        """Take in what is to be done; return whether the path goes on."""
        items, against = self.ledger.items, self.ledger.against
        todo, known = path.todo, path.known
        for number in todo:  # grows on the way
            if against[number] & known:
                return False
            if known >> number & 1:
                continue
            known |= 1 << number
            item = items[number]
            if not isinstance(item, tuple):
                path.atoms.append(number)
                continue
            for fork in self._forks(number, item, kind, loose=loose):
                if len(fork) == 1:
                    todo.extend(fork[0].numbers)
                elif fork:
                    path.forks.append(fork)
                else:
                    return False
        path.known = known
        return True

    def _open(self, path: Path) -> list[Fork] | None:
        """Return the choices still open, None where one of them has no way out."""
        against, known = self.ledger.against, path.known
        found: list[Fork] = []
        for fork in path.forks:
            left: Fork = []
            for one in fork:
                if one.bits & known == one.bits:
                    break
                for number in one.numbers:
                    if against[number] & known:
                        break
                else:
                    left.append(one)
            else:
                if not left:
                    return None
                found.append(left)
        return found

    def _forks(self, number: int, item: Signed, kind: str, *, loose: bool) -> list[Fork]:
        """Return the choices that a signed node leaves."""
        key = number, kind, loose
        found = self._expanded.get(key)
        if found is None:
            before = self._guesses
            found = [[self._choice(one) for one in fork] for fork in self._choices(item, kind, loose=loose)]
            if self._guesses == before:  # else something was not told apart yet that may be later
                self._expanded[key] = found
        return found

    def _choice(self, alternative: Alternative) -> Choice:
        numbers = tuple(dict.fromkeys(map(self.ledger.number, alternative)))
        bits = 0
        for number in numbers:
            bits |= 1 << number
        return Choice(numbers, bits)

    def _choices(self, item: Signed, kind: str, *, loose: bool) -> list[Alternatives]:
        sign, node = item
        found = self._clauses_of(node, kind)
        if sign:
            return [
                _DEPENDING if loose and _depends(clause.holds) else self._told_apart(clause.holds, kind, loose=loose) for clause in found
            ]
        alternatives = [alternative for clause in found for alternative in clause.fails]
        return [[[Inexact(f"{node.place}")]]] if loose and len(alternatives) > 1 else [alternatives]

    def _clauses_of(self, node: Node, kind: str) -> list[Clause]:
        key = node, kind
        found = self._clauses.get(key)
        if found is None:
            found = self._clauses[key] = clauses(self.document, node, kind)
        return found

    def _told_apart(self, alternatives: Alternatives, kind: str, *, loose: bool) -> Alternatives:
        """Leave out the negation of schemas that cannot hold beside the first one anyway."""
        if len(alternatives) < 2:
            return alternatives
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
        found = self._possible.get(state)
        if found is None:
            from accelplug.constrained.schema.alive import possible

            self._possible[state] = True
            found = self._possible[state] = any(possible(self, state, kind) for kind in self.viable(state))
        return found

    def apart(self, one: Node, other: Node, kind: str) -> bool:
        """Whether certainly no value of a type satisfies both nodes."""
        key = (one, other, kind) if one.number < other.number else (other, one, kind)
        if key not in self._apart:
            from accelplug.constrained.schema.alive import possible

            self._apart[key] = None  # while it is being worked out: the answer that claims nothing
            self._apart[key] = not possible(self, frozenset({(True, one), (True, other)}), kind)
        found = self._apart[key]
        self._guesses += found is None
        return bool(found)

    def kinds(self, state: State) -> Iterator[tuple[str, list[Branch]]]:
        """Return every type with its branches."""
        for kind in self.viable(state):
            if found := self.branches(state, kind):
                yield kind, found

    def viable(self, state: State) -> list[str]:
        """Return the types that no schema of a state rules out by its own ``type``."""
        left = _ALL_KINDS
        for sign, node in state:
            if sign:
                left &= self.kinds_of(node)
        return [kind for kind in KINDS if kind in left]

    def _with_values(self, state: State, branches: list[Branch]) -> list[Branch]:
        """Filter fixed values by the whole state, which leaves nothing else to be said about them."""
        kept: dict[Branch, None] = {}
        for branch in branches:
            given = [atom for atom in branch if isinstance(atom, Values)]
            if not given:
                kept[branch] = None
                continue
            good = in_all(given)
            if len(given) < len(branch):  # something else is known as well
                others: list[Atom] = [atom for atom in branch if not isinstance(atom, Values)]
                good = tuple(text for text in good if self._holds(state, others, json.loads(text)))
            if good:
                kept[Values(good),] = None
        return list(kept)

    def _object_is(self, atom: Atom, value: dict[str, Any]) -> bool | None:
        """Whether an object satisfies an atom, None where that is not said here."""
        if isinstance(atom, Size):
            return atom.low <= len(value) and (atom.high is None or len(value) <= atom.high)
        if isinstance(atom, Required | Absent):
            return (atom.name in value) is isinstance(atom, Required)
        if isinstance(atom, Property):
            return atom.name not in value or self._is(value[atom.name], atom.conj)
        if not isinstance(atom, Keys | Some):
            return None
        values = (self._is(child, atom.conj) for name, child in value.items() if matches(atom.regex, name))
        return all(values) if isinstance(atom, Keys) else any(values)

    def _is(self, value: Any, state: State) -> bool:
        """Whether a value satisfies a state, as the final check says."""
        return all(self.document.holds(signed, value) for signed in state)

    def _holds(self, state: State, others: list[Atom], value: Any) -> bool:
        """Whether a fixed value satisfies what else is known of it: the atoms themselves where they say it, else the whole state."""
        said = [self._object_is(atom, value) if isinstance(value, dict) else satisfies(atom, value) for atom in others]
        if None not in said and (all(said) or isinstance(value, str)):
            return all(said)
        return self._is(value, state)  # it may satisfy the state in another way, by which it would be written otherwise


_ALL_KINDS: Final = frozenset(KINDS)
_DEPENDING: Final[Alternatives] = [[Inexact("*/dependencies"), Inexact("*/dependentRequired"), Inexact("*/dependentSchemas")]]


def _may_contradict(branch: Branch) -> bool:
    """Whether atoms may contradict each other at sight."""
    return len(branch) > 1 and any(isinstance(atom, Absent | Bound) for atom in branch)


def _depends(alternatives: Alternatives) -> bool:
    return len(alternatives) > 1 and isinstance(alternatives[0][0] if alternatives[0] else None, Absent)


def _negative(item: Atom | Signed) -> bool:
    return isinstance(item, tuple) and not item[0]
