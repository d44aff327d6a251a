"""The search of a tableau: paths through the choices that a state leaves, each to a branch or to a contradiction.

A path takes in what must hold, then what must not. What leaves no choice follows at once; of what does, the choice with the fewest
ways out is made first, each way a path of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from accelplug.constrained.schema.atoms import Absent, Atom, Inexact, Property, Required, Some
from accelplug.constrained.schema.clauses import Alternative, Alternatives
from accelplug.constrained.schema.document import Node, Signed, State
from accelplug.constrained.schema.ledger import Branch, Fork, Ledger, Path
from accelplug.constrained.schema.narrowing import Known, Narrowing, Readied, readied

if TYPE_CHECKING:
    from accelplug.constrained.schema.branches import Tableau

MOST_BRANCHES: Final = 300
FEW_STEPS: Final = 50
MOST_STEPS: Final = 20_000
_DEPENDING: Final[Alternatives] = [[Inexact("*/dependencies"), Inexact("*/dependentRequired"), Inexact("*/dependentSchemas")]]


_OF_PROPERTIES: Final = (Some, Absent, Required)


class TooManyBranchesError(Exception):
    """A state has more alternatives than a grammar should."""


class Search:
    """Finds branches; what signed nodes leave open is worked out once for all states of a tableau."""

    def __init__(self, tableau: Tableau) -> None:
        self._tableau, self._ledger = tableau, Ledger()
        self._narrowing = Narrowing(tableau, self._ledger)
        self._expanded: dict[tuple[int, str, bool], tuple[list[tuple[Alternatives, Readied | None]], list[Fork] | None]] = {}
        self._narrowed: dict[tuple[int, bool, int], list[Fork]] = {}
        self._facts: dict[int, Known] = {}
        self._hopeless: dict[int, bool] = {}

    def branches(self, start: list[Signed], kind: str, *, loose: bool) -> list[Branch]:
        """Return the branches of what must hold of a value of one type; where `loose`, choices between negations are given up.

        :raises TooManyBranchesError: they are too many, or take too long to find.
        """
        numbers = list(map(self._ledger.number, start))
        return [self._ledger.branch(path.atoms) for path in _weakest(list(self._walk(numbers, kind, loose=loose)))]

    def certain(self, start: list[Signed], kind: str) -> list[Branch]:
        """Return the one branch of what holds whatever is chosen. The choices themselves are checked."""
        path = Path(list(map(self._ledger.number, start)), [], 1, [])
        if not self._settle(path, kind, loose=True):
            return []
        met = [item[1].place for number in path.todo if isinstance(item := self._ledger.items[number], tuple)]
        return [(*self._ledger.branch(path.atoms), *map(Inexact, dict.fromkeys(met)))]

    def _walk(self, start: list[int], kind: str, *, loose: bool) -> Iterator[Path]:
        """Follow the paths to their ends; one that says no less than another did before is left."""
        found, steps, waiting = list[int](), 0, [Path(start, [], 1, [])]
        while waiting:
            path = waiting.pop()
            forks = self._settled(path, kind, loose=loose)
            steps += 1
            if forks is None or any(bits & path.known == bits for bits in found) or (steps > FEW_STEPS and self._is_hopeless(path)):
                continue
            if forks:
                waiting.extend(_ways(path, forks))
            else:
                found.append(path.bits)
                yield path
            if len(found) > MOST_BRANCHES or steps > MOST_STEPS or len(waiting) > 10 * MOST_BRANCHES:
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

    def _settle(self, path: Path, kind: str, *, loose: bool) -> bool:
        """Take in what is to be done, negations last; return whether the path goes on."""
        items, against = self._ledger.items, self._ledger.against
        todo, known = path.todo, path.known
        denied: list[int] = []
        for number in todo:  # grows on the way
            if against[number] & known:
                return False
            if known >> number & 1:
                continue
            known |= 1 << number
            item = items[number]
            if not isinstance(item, tuple):
                path.atoms.append(number)
            elif not item[0]:
                denied.append(number)
            elif not _takes(path, self._forks(number, item, kind, known, loose=loose)):
                return False
        path.known = known
        return not denied or self._settle_denied(path, denied, kind, loose=loose)

    def _settle_denied(self, path: Path, denied: list[int], kind: str, *, loose: bool) -> bool:
        """Take in negations, now that it is known what holds."""
        for number in denied:
            item = self._ledger.items[number]
            assert isinstance(item, tuple)
            before = len(path.todo)
            if not _takes(path, self._forks(number, item, kind, path.known, loose=loose)):
                return False
            if len(path.todo) > before and not self._follow(path, before, kind, loose=loose):
                return False
        return True

    def _follow(self, path: Path, start: int, kind: str, *, loose: bool) -> bool:
        """Take in what follows from what was just taken in."""
        before, path.todo = path.todo[:start], path.todo[start:]
        goes_on = self._settle(path, kind, loose=loose)
        path.todo = before + path.todo
        return goes_on

    def _open(self, path: Path) -> list[Fork] | None:
        """Return the choices still open, None where one of them has no way out."""
        against, known = self._ledger.against, path.known
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

    def _forks(self, number: int, item: Signed, kind: str, known: int, *, loose: bool) -> list[Fork]:
        """Return the choices that a signed node leaves, beside what is known."""
        key = number, kind, loose
        expanded = self._expanded.get(key)
        if expanded is None:
            before = self._tableau.guesses
            found = self._choices(item, kind, loose=loose)
            narrows = [readied(one) if kind == "object" and _may_narrow(one, negative=not item[0]) else None for one in found]
            expanded = list(zip(found, narrows, strict=True)), None if any(narrows) else list(map(self._fork, found))
            if self._tableau.guesses == before:  # else something was not told apart yet that may be later
                self._expanded[key] = expanded
        choices, forks = expanded
        return self._beside(number, choices, known, loose=loose) if forks is None else forks

    def _beside(self, number: int, choices: list[tuple[Alternatives, Readied | None]], known: int, *, loose: bool) -> list[Fork]:
        """Return choices about an object as what is known of it narrows them. What is none keeps the names that it only puts in order."""
        key = number, loose, known & self._ledger.of_objects
        found = self._narrowed.get(key)
        if found is None:
            facts = self._facts_of(key[2])
            found = self._narrowed[key] = [self._fork(one) if narrows is None else self._narrowing.narrowed(narrows, facts) for one, narrows in choices]
        return found

    def _facts_of(self, bits: int) -> Known:
        found = self._facts.get(bits)
        if found is None:
            found = self._facts[bits] = Known(self._ledger.within(bits))
        return found

    def _fork(self, alternatives: Alternatives) -> Fork:
        return [self._ledger.choice(one) for one in alternatives]

    def _choices(self, item: Signed, kind: str, *, loose: bool) -> list[Alternatives]:
        sign, node = item
        found = self._tableau.clauses_of(node, kind)
        if sign:
            return [
                _DEPENDING if loose and _depends(clause.holds) else self._told_apart(clause.holds, kind, loose=loose) for clause in found
            ]
        alternatives = [alternative for clause in found for alternative in clause.fails]
        return [[[Inexact(f"{node.place}")]]] if loose and len(alternatives) > 1 else [alternatives]

    def _told_apart(self, alternatives: Alternatives, kind: str, *, loose: bool) -> Alternatives:
        """Leave out schemas of other types, and the negation of schemas that cannot hold beside the first one anyway."""
        if len(alternatives) < 2:
            return alternatives
        found: Alternatives = []
        kinds_of = self._tableau.kinds_of
        for alternative in alternatives:
            first = alternative[0] if alternative else None
            if not isinstance(first, tuple) or not first[0]:
                found.append(alternative)
            elif kind in kinds_of(first[1]):
                others = [item for item in alternative[1:] if not isinstance(item, tuple) or item[0] or kind in kinds_of(item[1])]
                if not any(self._denies_all(item, kind) for item in others):
                    found.append([first, *self._denied_beside(first, others, kind, loose=loose)])
        return found

    def _denies_all(self, item: Atom | Signed, kind: str) -> bool:
        """Whether this denies what says nothing about a type."""
        return isinstance(item, tuple) and not item[0] and isinstance(item[1].value, dict) and not self._tableau.clauses_of(item[1], kind)

    def _leaves_no_choice(self, node: Node) -> bool:
        return isinstance(node.value, bool) or all(len(clause.holds) == 1 for clause in self._tableau.clauses_of(node, "object"))

    def _denied_beside(self, first: Signed, others: Alternative, kind: str, *, loose: bool) -> Alternative:
        if not others or (kind == "object" and not loose and self._leaves_no_choice(first[1])):
            return others  # once it is known what the first one says of an object, that narrows the negations of the others
        kept = [item for item in others if not isinstance(item, tuple) or item[0] or not self._tableau.apart(first[1], item[1], kind)]
        if loose and any(map(_negative, kept)):
            return [item for item in kept if not _negative(item)] + [Inexact(first[1].place)]
        return kept

    def _is_hopeless(self, path: Path) -> bool:
        """Whether a property that must be there has no value left. Looked at where alternatives are many, such as of one kind each."""
        key = path.known & self._ledger.of_properties
        found = self._hopeless.get(key)
        if found is None:
            found = self._hopeless[key] = self._lacks_a_value(path)
        return found

    def _lacks_a_value(self, path: Path) -> bool:
        atoms = [self._ledger.items[number] for number in path.atoms]
        needed = {atom.name for atom in atoms if isinstance(atom, Required)}
        states: dict[str, list[State]] = {}
        for atom in atoms:
            if isinstance(atom, Property) and atom.name in needed:
                states.setdefault(atom.name, []).append(atom.conj)
        return any(len(found) > 1 and not self._tableau.possible(frozenset().union(*found)) for found in states.values())


def _takes(path: Path, forks: list[Fork]) -> bool:
    """Add choices to what is to be done, or what is to be chosen; return whether each has a way out."""
    for fork in forks:
        if len(fork) == 1:
            path.todo.extend(fork[0].numbers)
        elif fork:
            path.forks.append(fork)
        else:
            return False
    return True


def _ways(path: Path, forks: list[Fork]) -> Iterator[Path]:
    """Return the paths onward, that which adds least last, which is followed first."""
    first = min(forks, key=len)
    rest = [fork for fork in forks if fork is not first]
    by_what_is_new = sorted(first, key=lambda way: (way.bits & ~path.known).bit_count())
    for one in reversed(by_what_is_new):
        yield Path(list(one.numbers), list(rest), path.known, list(path.atoms))


def _weakest(paths: list[Path]) -> list[Path]:
    """Leave out the paths that say no less than another."""
    if len(paths) < 2:
        return paths
    bits = [path.bits for path in paths]
    return [
        path
        for at, (path, mine) in enumerate(zip(paths, bits, strict=True))
        if not any(mine & one == one and (one != mine or index < at) for index, one in enumerate(bits) if index != at)
    ]


def _may_narrow(alternatives: Alternatives, *, negative: bool) -> bool:
    """Whether what is known of properties may say something about a choice."""
    return (negative or len(alternatives) > 1) and any(isinstance(item, _OF_PROPERTIES) for one in alternatives for item in one)


def _depends(alternatives: Alternatives) -> bool:
    return len(alternatives) > 1 and isinstance(alternatives[0][0] if alternatives[0] else None, Absent)


def _negative(item: Atom | Signed) -> bool:
    return isinstance(item, tuple) and not item[0]
