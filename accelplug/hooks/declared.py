"""Check what a technique declares about itself, where it is written down: a misspelt trait would switch a check off."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from accelplug._errors import PluginError

T = TypeVar("T")


def check_word(field: str, value: object, allowed: tuple[object, ...]) -> None:
    """Refuse a value that is none of the words a trait takes.

    :param field: the trait as errors should name it, e.g. ``DrafterTraits.shape``.
    :raises PluginError: naming the value and the words.
    """
    if not any(value is word or (isinstance(value, str) and value == word) for word in allowed):
        raise PluginError(f"{field} is {value!r}; it takes {', '.join(map(repr, allowed))}")


def set_of(field: str, given: object, member: type[T], example: str) -> frozenset[T]:
    """Return the members as a set, from any collection of them; a lone text is no collection of words.

    :param example: a right value, for the error.
    :raises PluginError: `given` is no collection, or one of something else.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise PluginError(f"{field} is {given!r}; it takes a set such as {example}")
    members = tuple(given)
    for found in members:
        if not isinstance(found, member):
            raise PluginError(f"{field} holds {found!r}; it takes a set such as {example}")
    return frozenset(members)
