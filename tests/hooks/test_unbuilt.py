"""What a class and its options tell before a technique is built, and when they tell nothing."""

from __future__ import annotations

import functools
from dataclasses import InitVar, dataclass, field
from typing import ClassVar

import pytest

from accelplug import PluginError
from accelplug.hooks import DrafterTraits, Entry, Owner, VerifierTraits, option, parse_spec
from accelplug.hooks.capabilities import drafter_traits
from accelplug.hooks.unbuilt import unbuilt

TREE = DrafterTraits(shape="tree")


class Never:
    """Fails as soon as it is built."""

    def __post_init__(self, *_: object) -> None:
        raise AssertionError("nothing is built")


@dataclass(slots=True)
class ByOption(Never):
    shape: str = option("tree")
    other: list[int] = field(default_factory=list)
    context: InitVar[object] = None

    @property
    def traits(self):
        assert self.other == []
        return DrafterTraits(shape=self.shape)

    def propose(self, view):
        raise AssertionError("nor asked")


@dataclass(frozen=True, slots=True)
class Fixed:
    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless=None)

    def __post_init__(self) -> None:
        raise AssertionError("nothing is built")

    def choose(self, view):
        raise AssertionError("nor asked")


@dataclass
class Plain:
    traits: ClassVar[DrafterTraits] = TREE
    num_tokens: int = 4


class Nothing:
    """Says nothing of itself, which is the smallest drafter."""


class InItsOwnWay:
    """Its class says one thing, and what is built another."""

    traits = TREE

    def __init__(self) -> None:
        self.traits = DrafterTraits()


@dataclass
class Afterwards:
    traits: ClassVar[DrafterTraits] = TREE

    def __post_init__(self) -> None:
        self.traits = DrafterTraits()  # type: ignore[misc]


class OnlyThen:
    def __init__(self) -> None:
        self.traits = TREE


@dataclass(slots=True)
class AsAField:
    traits: DrafterTraits = field(init=False, default=TREE)


class FromState:
    def __init__(self) -> None:
        self.shape = "tree"

    @property
    def traits(self):
        return DrafterTraits(shape=self.shape)


class NoTraits:
    __slots__ = ()
    traits = "tree"


def made(**options):
    return Plain(**options)


def look(factory, spec="it"):
    return unbuilt(Entry("drafter", "it", Owner("p", "d", "1"), factory), parse_spec(spec))


@pytest.mark.parametrize(
    ("factory", "spec", "shape"),
    [
        (ByOption, "it", "tree"), (ByOption, "it(shape='chain')", "chain"), (functools.partial(ByOption, shape="chain"), "it", "chain"),
        (functools.partial(ByOption, shape="chain"), "it(shape='tree')", "tree"), (Plain, "it", "tree"), (Nothing, "it", "chain"),
    ],
)  # fmt: skip
def test_traits_that_are_known(factory, spec, shape):
    found = look(factory, spec)
    assert drafter_traits(found).shape == shape
    assert (str(found), found.spec) == ("drafter 'it' (d 1)", spec)


def test_methods_are_those_of_the_class():
    assert callable(look(ByOption).instance.propose)
    assert callable(look(Fixed).instance.choose)


@pytest.mark.parametrize("factory", [InItsOwnWay, Afterwards, OnlyThen, AsAField, FromState, NoTraits, made])
def test_traits_that_only_building_tells(factory):
    assert look(factory) is None


def test_a_factory_that_cannot_be_imported_is_named():
    with pytest.raises(PluginError, match=r"drafter 'it' \(d 1\) cannot be imported from 'nowhere:It'"):
        look("nowhere:It")
