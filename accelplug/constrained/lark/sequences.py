"""The properties of an object as rules that remember how far it is, what was proved and how many there were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from accelplug.constrained.lark.builder import Builder
from accelplug.constrained.schema.atoms import Required, Size
from accelplug.constrained.schema.document import State

if TYPE_CHECKING:
    from accelplug.constrained.lark.objects import Pair, Shape

MOST_RULES: Final = 4000
MOST_IN_ANY_ORDER: Final = 6000


class At(NamedTuple):
    """Where an object is: the index of the next named property, or the required ones already written where order is free."""

    named: int | frozenset[str]
    proved: int
    pairs: int
    begun: bool


def sequence(builder: Builder, shape: Shape) -> str:
    """Return the rule of an object's inside."""
    counted = shape.low > len(shape.required) or shape.high is not None
    most = (shape.high if shape.high is not None else shape.low) if counted else 0
    if (len(shape.named) + 1) * (most + 1) * (1 << shape.demands) > MOST_RULES:
        builder.give_up(lambda atom: isinstance(atom, Size))
        counted, most = False, 0
    if builder.any_order and shape.named:
        steps = (len(shape.named) + len(shape.others)) * (most + 1) * (1 << shape.demands)
        if steps << len(shape.required) > MOST_IN_ANY_ORDER:
            builder.give_up(lambda atom: isinstance(atom, Required) or (isinstance(atom, Size) and atom.low > 1))  # each may come again
            shape = shape._replace(required=frozenset())
        return _Free(builder, shape, counted=counted).written(At(frozenset(), 0, 0, begun=False))
    if not counted and not shape.demands:
        return _linked(builder, shape)
    return _Ordered(builder, shape, counted=counted).written(At(0, 0, 0, begun=False))


class _Link(NamedTuple):
    """What may follow in an object whose properties come in order, where nothing is counted or to be proved: a property and the rest, or the others.

    :param number: equal for what is equal, so that objects which end alike end in the same rules.
    """

    number: int
    pairs: tuple[Pair, ...]
    optional: bool
    rest: _Link | None

    def rule(self, builder: Builder, *, begun: bool) -> str:
        """Return the rule of what may follow."""
        found = builder.shared.get((self.number, begun))
        if found is not None:
            return found
        found = builder.shared[self.number, begun] = builder.new("obj")
        if self.rest is None:
            builder.add(found)
        comma = [builder.comma] if begun else []
        for pair in self.pairs:
            key = builder.string(pair.keys)
            if key is not None:
                following = (self.rest or self).rule(builder, begun=True)
                builder.add(found, *comma, key, builder.colon, builder.value(pair.state), following)
        if self.rest is not None and self.optional:
            builder.add(found, self.rest.rule(builder, begun=begun))
        return found


def _linked(builder: Builder, shape: Shape) -> str:
    """Return the rule of an object's inside. Rules are written from its end on: one within the other, a thousand would be too deep."""
    pairs = tuple(shape.others)
    links = [_Link(builder.number(tuple([(pair.keys, pair.state) for pair in pairs])), pairs, optional=True, rest=None)]
    for pair in reversed(shape.named):
        rest, optional = links[-1], pair.name not in shape.required
        links.append(_Link(builder.number((pair.keys, pair.state, optional, rest.number)), (pair,), optional, rest))
    for link in links[:-1]:
        link.rule(builder, begun=True)
    begins = next((i for i, link in enumerate(reversed(links)) if not link.optional), len(links) - 1)  # so many may be left out first
    return [link.rule(builder, begun=False) for link in links[-1 - begins :]][-1]


class _Sequence:
    """The rules of one object."""

    def __init__(self, builder: Builder, shape: Shape, *, counted: bool) -> None:
        self.builder, self.shape, self.counted = builder, shape, counted
        self.names: dict[At, str] = {}
        self.waiting: list[At] = []
        self.all = (1 << shape.demands) - 1

    def written(self, at: At) -> str:
        """Write the rule of what may follow and all that it asks for, one after the other: one within the other would be too deep; return its name."""
        name = self.rule(at)
        while self.waiting:
            following = self.waiting.pop()
            self.fill(self.names[following], following)
        return name

    def rule(self, at: At) -> str:
        """Return the rule of what may follow, which is to be written."""
        if at not in self.names:
            self.names[at] = self.builder.new("obj")
            self.waiting.append(at)
        return self.names[at]

    def fill(self, name: str, at: At) -> None:
        """Write the alternatives of a rule."""
        raise NotImplementedError

    def may_end(self, at: At) -> bool:
        """Whether enough was written and proved."""
        return at.proved == self.all and (not self.counted or at.pairs >= self.shape.low)

    def step(self, name: str, at: At, pair: Pair, named: int | frozenset[str]) -> None:
        """Write one property, which may meet a demand."""
        count = at.pairs
        if self.counted:
            if self.shape.high is not None and count >= self.shape.high:
                return
            count = count + 1 if self.shape.high is not None else min(count + 1, self.shape.low)
        key = self.builder.string(pair.keys)
        if key is None:
            return
        comma = [self.builder.comma] if at.begun else []
        for proved, state in _ways(pair, at.proved):
            following = At(named, at.proved | proved, count, begun=True)
            if self.builder.tableau.possible(state):
                self.builder.add(name, *comma, key, self.builder.colon, self.builder.value(state), self.rule(following))


def _ways(pair: Pair, proved: int) -> list[tuple[int, State]]:
    """Return which open demands a property may meet, none or several, each with the state of its value then."""
    ways = [(0, pair.state)]
    for index, conj in pair.proves:
        if not proved >> index & 1:
            ways += [(met | 1 << index, state | conj) for met, state in ways]
    return ways


class _Ordered(_Sequence):
    """Named properties in their order, then the others."""

    def fill(self, name: str, at: At) -> None:
        index = at.named
        assert isinstance(index, int)
        if index < len(self.shape.named):
            pair = self.shape.named[index]
            self.step(name, at, pair, index + 1)
            if pair.name not in self.shape.required:
                self.builder.add(name, self.rule(at._replace(named=index + 1)))
            return
        if self.may_end(at):
            self.builder.add(name)
        for pair in self.shape.others:
            self.step(name, at, pair, index)


class _Free(_Sequence):
    """Properties in any order; which of the required ones were written is remembered, the others may come again."""

    def fill(self, name: str, at: At) -> None:
        written = at.named
        assert isinstance(written, frozenset)
        if written == self.shape.required and self.may_end(at):
            self.builder.add(name)
        for pair in [*self.shape.named, *self.shape.others]:
            if pair.name in written:
                continue
            self.step(name, at, pair, written | ({pair.name} & self.shape.required if pair.name is not None else frozenset()))
