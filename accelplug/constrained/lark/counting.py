"""Arrays of which some items must, or may at most, satisfy a schema: rules that count as they go."""

from __future__ import annotations

from itertools import product

from accelplug.constrained.lark.arrays import MOST_STATES, Shape, plain
from accelplug.constrained.lark.builder import Builder
from accelplug.constrained.lark.finished import Symbols
from accelplug.constrained.schema.atoms import Contains
from accelplug.constrained.schema.document import State

Counts = tuple[int, ...]


def counted(builder: Builder, shape: Shape, contained: list[Contains]) -> list[Symbols]:
    """Write an array's rules by how far it is and how many of each kind were seen."""
    most = [atom.low if atom.high is None else atom.high for atom in contained]
    length = max(1, len(shape.front), shape.low if shape.high is None else shape.high)
    states = length + 1
    for top in most:
        states *= top + 1
    if states > MOST_STATES:
        builder.give_up(lambda atom: isinstance(atom, Contains))
        return plain(builder, shape)
    return [['"["', _Counting(builder, shape, contained, most, length).rule(0, (0,) * len(most)), '"]"']]


class _Counting:
    """The rules of one array, by position and counts."""

    def __init__(self, builder: Builder, shape: Shape, contained: list[Contains], most: list[int], length: int) -> None:
        self.builder, self.shape, self.contained, self.most, self.length = builder, shape, contained, most, length
        self.names: dict[tuple[int, Counts], str] = {}

    def rule(self, index: int, counts: Counts) -> str:
        """Return the rule of what may follow."""
        index = min(index, self.length) if self.shape.high is None else index
        if (index, counts) not in self.names:
            self.names[index, counts] = name = self.builder.new("count")
            self._fill(name, index, counts)
        return self.names[index, counts]

    def _fill(self, name: str, index: int, counts: Counts) -> None:
        done = all(count >= atom.low for count, atom in zip(counts, self.contained, strict=True))
        if done and index >= self.shape.low:
            self.builder.add(name)
        if self.shape.high is not None and index >= self.shape.high:
            return
        here = self.shape.front[index] if index < len(self.shape.front) else self.shape.tail
        for members in product((True, False), repeat=len(counts)):
            step = self._step(index, counts, members)
            if step is not None:
                following, conj = step
                value = self.builder.value(here | conj)
                self.builder.add(name, *([self.builder.comma] if index else []), value, self.rule(index + 1, following))

    def _step(self, index: int, counts: Counts, members: tuple[bool, ...]) -> tuple[Counts, State] | None:
        """Return the counts behind one item that is, or is not, in each state; None where that is not allowed or no step."""
        following = list(counts)
        conj: State = frozenset()
        for at, (atom, member) in enumerate(zip(self.contained, members, strict=True)):
            if index < atom.start:
                if member:
                    return None
            elif member:
                if counts[at] == self.most[at] and atom.high is not None:
                    return None
                following[at] = min(counts[at] + 1, self.most[at])
                conj |= atom.conj
            elif atom.high is not None:
                conj |= atom.others
        return tuple(following), conj
