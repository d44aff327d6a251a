"""What a tableau's paths know, as numbers: every item once, and what contradicts it at sight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

from accelplug.constrained.schema.atoms import Absent, Atom, Bound, Keys, Property, Required
from accelplug.constrained.schema.document import Signed

Branch = tuple[Atom, ...]
_OF_OBJECTS: Final = (Property, Required, Keys)


class Ledger:
    """Everything that a tableau's paths may come to know, numbered, so that what a path knows is one whole number, bit by bit.

    Bit 0 is what every path knows: that what is always true is true. Item 1 is what is never true.

    :ivar of_properties: the bits of all that says which values a property has, or that it must be there.
    :ivar of_objects: those, and the bits of what holds of all properties of some names.
    """

    def __init__(self) -> None:
        self.items: list[Atom | Signed | None] = [None, None]
        self.against: list[int] = [0, 1]
        self._numbers: dict[Atom | Signed, int] = {}
        self.of_properties = self.of_objects = 0
        self._bounds: list[int] = []

    def number(self, item: Atom | Signed) -> int:
        """Return the number of an item; what contradicts it at sight is noted in `against`."""
        found = self._numbers.get(item)
        return self._added(item) if found is None else found

    def _added(self, item: Atom | Signed) -> int:
        if isinstance(item, tuple) and isinstance(item[1].value, bool):
            return int(item[1].value is not item[0])
        found = self._numbers[item] = len(self.items)
        self.items.append(item)
        self.against.append(0)
        if isinstance(item, _OF_OBJECTS):
            self.of_objects |= 1 << found
            if not isinstance(item, Keys):
                self.of_properties |= 1 << found
        for other in self._opposed(item, found):
            self.against[found] |= 1 << other
            self.against[other] |= 1 << found
        return found

    def choice(self, items: Iterable[Atom | Signed]) -> Choice:
        """Return the alternative that says these."""
        numbers, bits = list[int](), 0
        for item in items:
            found = self.number(item)
            if not bits >> found & 1:
                bits |= 1 << found
                numbers.append(found)
        return _choice((tuple(numbers), bits))

    def joined(self, choices: Iterable[Choice]) -> Choice:
        """Return the alternative that says what all of these say."""
        numbers = tuple(dict.fromkeys(number for one in choices for number in one.numbers))
        return Choice(numbers, _bits(numbers))

    def within(self, bits: int) -> Iterator[Atom | Signed | None]:
        """Return the items of these bits, in the order of their numbers."""
        while bits:
            lowest = bits & -bits
            yield self.items[lowest.bit_length() - 1]
            bits ^= lowest

    def branch(self, numbers: Iterable[int]) -> Branch:
        """Return the atoms of these numbers."""
        return tuple([item for number in numbers if (item := self.items[number]) is not None and not isinstance(item, tuple)])

    def _opposed(self, item: Atom | Signed, number: int) -> list[int]:
        if isinstance(item, tuple):
            other = self._numbers.get((not item[0], item[1]))
        elif isinstance(item, Required):
            other = self._numbers.get(Absent(item.name))
        elif isinstance(item, Absent):
            other = self._numbers.get(Required(item.name))
        elif isinstance(item, Bound):
            found = [one for one in self._bounds if apart(self.items[one], item)]
            self._bounds.append(number)
            return found
        else:
            return []
        return [] if other is None else [other]


class Choice(NamedTuple):
    """One alternative: the numbers of what it says, in order, and their bits."""

    numbers: tuple[int, ...]
    bits: int


_choice: Final[Callable[[tuple[tuple[int, ...], int]], Choice]] = partial(tuple.__new__, Choice)  # a third of the time of calling the class


Fork = list[Choice]


class Path:
    """What is known on the way to one branch.

    :param todo: numbers of what is still to be taken in.
    :param forks: choices that are open.
    :param known: bits of all that was taken in.
    :param atoms: those of it that are atoms, in order.
    """

    __slots__ = ("atoms", "forks", "known", "todo")

    def __init__(self, todo: list[int], forks: list[Fork], known: int, atoms: list[int]) -> None:
        self.todo, self.forks, self.known, self.atoms = todo, forks, known, atoms

    @property
    def bits(self) -> int:
        """The bits of its atoms."""
        return _bits(self.atoms)


def _bits(numbers: Iterable[int]) -> int:
    bits = 0
    for number in numbers:
        bits |= 1 << number
    return bits


def apart(one: Any, other: Bound) -> bool:
    """Whether no number is within both bounds."""
    if one.lower == other.lower:
        return False
    low, high = (one, other) if one.lower else (other, one)
    return bool(low.value > high.value) or (low.value == high.value and (low.exclusive or high.exclusive))
