"""What is known of an object's properties narrows the choices that are left: some cannot be made any more, some say nothing new.

An object that is closed to ``{"a"}`` and is not of a schema that is closed to ``{"b"}`` has some other property than ``b``: it has ``a``. Seen one
by one, such choices would be tried in all their combinations.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import TYPE_CHECKING, Final

from accelplug.constrained.regex.derive import matches, matching
from accelplug.constrained.regex.tree import Regex
from accelplug.constrained.schema.atoms import Absent, Atom, Keys, Property, Required, Some
from accelplug.constrained.schema.clauses import Alternative, Alternatives
from accelplug.constrained.schema.document import Signed, State
from accelplug.constrained.schema.ledger import Fork, Ledger

if TYPE_CHECKING:
    from accelplug.constrained.schema.branches import Tableau

MOST_NAMES: Final = 40
"""A demand for some property is not divided among more names than these."""
Pair = tuple[str, State]
Readied = list[tuple[Pair | None, Alternative]]
_NOTHING: Final[State] = frozenset()
_OF_ONE_PROPERTY: Final = (Required, Property, Absent)


def is_certain(signed: Signed) -> bool:
    """Whether every value is as a signed node asks."""
    return signed[1].value is signed[0]


def _is_false(signed: Signed) -> bool:
    return signed[1].value is not signed[0] and isinstance(signed[1].value, bool)


class Known:
    """What is known of an object.

    :ivar required: names of properties that it has.
    :ivar never: expressions of names that no property of it has.
    :ivar closed: the only names that it may have, None where they are not few.
    :ivar pairs: what is left of demands for one property, by its name and the state of its value.
    """

    def __init__(self, atoms: Iterable[Atom | Signed | None]) -> None:
        self.required: dict[str, None] = {}
        self.never: list[Regex] = []
        self._named: dict[str, State] = {}
        self._states: dict[str, State] = {}
        self._keys: list[Keys] = []
        self.pairs: dict[Pair, Fork] = {}
        for atom in atoms:
            if isinstance(atom, Property):
                self._named[atom.name] = self._named.get(atom.name, _NOTHING) | atom.conj
            elif isinstance(atom, Required):
                self.required[atom.name] = None
            elif isinstance(atom, Keys):
                self._keys.append(atom)
                if any(map(_is_false, atom.conj)):
                    self.never.append(atom.regex)
        self.closed = self._only_names()

    def _only_names(self) -> dict[str, None] | None:
        names: frozenset[str] | None = None
        for regex in self.never:
            texts = regex.parts[0].texts if regex.op == "not" else None
            if texts is not None:
                names = texts if names is None else names & texts
        if names is None:
            return None
        left = names if len(self.never) == 1 else [name for name in names if not self._is_never(name)]
        return dict.fromkeys(sorted(left))

    def _is_never(self, name: str) -> bool:
        return any(matches(regex, name) for regex in self.never)

    def forbids(self, name: str) -> bool:
        """Whether there is no property `name`."""
        return self._is_never(name) if self.closed is None else name not in self.closed

    def of(self, name: str) -> State:
        """Return what holds of the property `name`, if there is one."""
        found = self._states.get(name)
        if found is None:
            found = self._named.get(name, _NOTHING)
            for atom in self._keys:
                if not atom.conj <= found and matches(atom.regex, name):
                    found |= atom.conj
            self._states[name] = found
        return found


def readied(alternatives: Alternatives) -> Readied:
    """Return alternatives with what most of them demand: one property whose value is in a state."""
    return [(_pair_of(*one) if len(one) == 2 else None, one) for one in alternatives]


def _pair_of(first: Atom | Signed, second: Atom | Signed) -> Pair | None:
    if isinstance(first, Required) and isinstance(second, Property) and first.name == second.name:
        return second.name, second.conj
    return None


class Narrowing:
    """Narrows the choices of one tableau."""

    def __init__(self, tableau: Tableau, ledger: Ledger) -> None:
        self._tableau, self._ledger = tableau, ledger

    def narrowed(self, alternatives: Readied, known: Known) -> Fork:
        """Return what is left of alternatives: none where none is possible, one that says nothing where one of them holds anyway."""
        found: Fork = []
        for pair, alternative in alternatives:
            ways = None if pair is None else known.pairs.get(pair)
            if ways is None:
                ways = self._under(known, alternative) if pair is None else self._pair(known, *pair)
            for one in ways:
                if not one.numbers:
                    return [one]
                found.append(one)
        return found

    def _under(self, known: Known, alternative: Alternative) -> Fork:
        """Return one alternative as it is under what is known: none, one, or several where a property must be one of few."""
        if len(alternative) == 1 and isinstance(some := alternative[0], Some):
            return self._ways(known, some)
        required = [item.name for item in alternative if isinstance(item, Required)]
        kept: Alternative = []
        several: list[Fork] = []
        for item in alternative:
            if isinstance(item, Some):
                several.append(self._ways(known, item))
            elif not isinstance(item, _OF_ONE_PROPERTY):
                kept.append(item)
            elif known.forbids(item.name):
                if item.name in required:
                    return []
            elif not isinstance(item, Property):
                kept.append(item)
            elif (left := self._left(item.name, item.conj, known, needed=item.name in required or item.name in known.required)) is None:
                return []
            else:
                kept.extend(left)
        mine = self._ledger.choice(kept)
        return [self._ledger.joined([mine, *ways]) for ways in product(*several)] if several else [mine]

    def _pair(self, known: Known, name: str, conj: State) -> Fork:
        """Return what is left of the demand for one property whose value is in a state: schemas beside each other often have the same ones."""
        key = name, conj
        found = known.pairs.get(key)
        if found is None:
            left = None if known.forbids(name) else self._left(name, conj, known, needed=True)
            found = known.pairs[key] = [] if left is None else [self._ledger.choice([Required(name), *left])]
        return found

    def _ways(self, known: Known, some: Some) -> Fork:
        """Return the ways to have some property: by name, where the names are few."""
        if known.closed is None or len(known.closed) > MOST_NAMES:
            met = any(matches(some.regex, name) and not self._said(some.conj, known.of(name)) for name in known.required)
            return [self._ledger.choice([] if met else [some])]
        ways: Fork = []
        for name in matching(some.regex, known.closed):
            ways += self._pair(known, name, some.conj)
        return ways

    def _left(self, name: str, conj: State, known: Known, *, needed: bool) -> list[Atom] | None:
        """Return what a property's state says beyond what is known of it, None where it must be there and nothing is left for it."""
        before = known.of(name)
        if needed:
            for sign, node in conj:
                if (not sign, node) in before:
                    return None
        said = self._said(conj, before)
        if not said:
            return []
        if needed and not self._tableau.possible(before | said):
            return None
        return [Property(name, said)]

    def _said(self, conj: State, before: State) -> State:
        """Return what of a state does not follow from another."""
        return frozenset([one for one in conj if not is_certain(one) and one not in before and not self._follows(one, before)])

    def _follows(self, signed: Signed, before: State) -> bool:
        """Whether a negation holds of every value of a state."""
        sign, node = signed
        return not sign and any(positive and self._tableau.disjoint(one, node) for positive, one in before)
