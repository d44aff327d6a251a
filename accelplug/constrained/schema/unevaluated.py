"""``unevaluatedProperties`` and ``unevaluatedItems``: an alternative for each way in which schemas beside or inside have looked at a value.

What these look at depends on which of them hold, so each case carries that as conditions; what holds in any case has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from accelplug.constrained.regex.parse import UnsupportedPatternError, parse
from accelplug.constrained.regex.tree import EVERY, NOTHING, Regex, alt, literal, without
from accelplug.constrained.schema.atoms import Absent, Atom, Contains, Items, Keys, Required, Some
from accelplug.constrained.schema.clauses import Alternative, Clause, Place, just
from accelplug.constrained.schema.document import Document, Node, Signed

MOST_CASES: Final = 32
"""More would make too many alternatives; the keyword is then left to the final check."""


class _UnknownError(Exception):
    """No mask of ours says what is evaluated."""


class _Case(NamedTuple):
    """What is evaluated under conditions.

    :param names: of properties.
    :param items: how many from the first on, None for all.
    """

    conditions: tuple[Atom | Signed, ...]
    names: Regex = NOTHING
    items: int | None = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing is evaluated."""
        return self.names == NOTHING and self.items == 0


_NOTHING: Final = [_Case(())]


def unevaluated(place: Place) -> Iterator[Clause]:
    """What no keyword beside, or in a schema applied beside, has looked at."""
    kind = "object" if place.keyword == "unevaluatedProperties" else "array"
    if place.kind != kind or place.document.draft < 2019 or place.value is True:
        return
    try:
        cases = _Cases(place.document, kind).of(place.node, frozenset(), inner=False)
    except (_UnknownError, UnsupportedPatternError, RecursionError):
        yield place.unknown()
        return
    part = place.below()
    both = [_holding(place, part, case) if kind == "object" else _holding_items(part, case) for case in cases]
    yield Clause([holds for holds, _ in both], [fails for _, fails in both if fails is not None])


def _holding(place: Place, part: Node, case: _Case) -> tuple[Alternative, Alternative | None]:
    """Return when the keyword is satisfied in a case, and when not, None for never."""
    if case.names == EVERY:
        return [*case.conditions], None
    rest = without(case.names)
    return [*case.conditions, Keys(rest, just((True, part)), place.name)], [*case.conditions, Some(rest, just((False, part)), place.name)]


def _holding_items(part: Node, case: _Case) -> tuple[Alternative, Alternative | None]:
    if case.items is None:
        return [*case.conditions], None
    yes, no = just((True, part)), just((False, part))
    return [*case.conditions, Items(case.items, None, yes)], [*case.conditions, Contains(case.items, no, yes, 1, None)]


def _both(one: _Case, other: _Case) -> _Case:
    items = None if one.items is None or other.items is None else max(one.items, other.items)
    names = EVERY if EVERY in (one.names, other.names) else alt(one.names, other.names)
    return _Case((*one.conditions, *other.conditions), names, items)


def _times(left: Sequence[_Case], right: Sequence[_Case]) -> list[_Case]:
    found = [_both(one, other) for one in left for other in right]
    if len(found) > MOST_CASES:
        raise _UnknownError
    return found


def _under(conditions: tuple[Atom | Signed, ...], cases: Sequence[_Case]) -> list[_Case]:
    return [case._replace(conditions=(*conditions, *case.conditions)) for case in cases]


def _or_nothing(options: list[_Case]) -> list[_Case]:
    """Drop the conditions where whatever holds evaluates nothing."""
    return _NOTHING if all(case.is_empty for case in options) else options


class _Cases:
    """What schemas evaluate of values of one type."""

    def __init__(self, document: Document, kind: str) -> None:
        self.document, self.kind = document, kind

    def of(self, node: Node, trail: frozenset[int], *, inner: bool = True) -> list[_Case]:
        """Return the cases of a schema that holds.

        :param trail: the numbers of the schemas that lead here in place.
        :param inner: whether this is a part of the schema whose keyword is asked about.
        """
        if isinstance(node.value, bool):
            return _NOTHING
        if node.number in trail:
            raise _UnknownError
        trail = trail | {node.number}
        found = [self._names(node, inner=inner) if self.kind == "object" else self._items(node, inner=inner)]
        for options in self._in_place(node, trail):
            found = _times(found, options)
        return found

    def _names(self, node: Node, *, inner: bool) -> _Case:
        given = node.value
        if "additionalProperties" in given or (inner and "unevaluatedProperties" in given):
            return _Case((), EVERY)
        return _Case((), alt(*map(literal, given.get("properties", ())), *map(parse, given.get("patternProperties", ()))))

    def _items(self, node: Node, *, inner: bool) -> _Case:
        given, newest = node.value, self.document.draft >= 2020
        items = given.get("items")
        if newest and "contains" in given:
            raise _UnknownError
        listed = items if isinstance(items, list) and not newest else None
        rest = "additionalItems" in given and listed is not None
        if rest or (inner and "unevaluatedItems" in given) or (items is not None and listed is None):
            return _Case((), items=None)
        return _Case((), items=len(given.get("prefixItems", ()) if newest else listed or ()))

    def _in_place(self, node: Node, trail: frozenset[int]) -> Iterator[list[_Case]]:
        """Return, for each keyword that applies schemas to the value itself, the cases of which one is."""
        given, draft = node.value, self.document.draft
        for keyword in ("$ref", "$dynamicRef" if draft >= 2020 else "$recursiveRef"):
            if keyword in given:
                if (target := self.document.target(node, keyword)) is None:
                    raise _UnknownError
                yield self.of(target, trail)
        for part in self._parts(node, "allOf"):
            yield self.of(part, trail)
        if "oneOf" in given:
            yield _or_nothing([case for part in self._parts(node, "oneOf") for case in _under(((True, part),), self.of(part, trail))])
        for part in self._parts(node, "anyOf"):
            yield _or_nothing([*_under(((True, part),), self.of(part, trail)), _Case(((False, part),))])
        if "if" in given:
            yield self._of_condition(node, trail)
        for name in given.get("dependentSchemas", ()) if self.kind == "object" else ():
            depending = self.of(self.document.below(node, "dependentSchemas", name), trail)
            yield _or_nothing([*_under((Required(name),), depending), _Case((Absent(name),))])

    def _parts(self, node: Node, keyword: str) -> list[Node]:
        return [self.document.below(node, keyword, index) for index in range(len(node.value.get(keyword, ())))]

    def _of_condition(self, node: Node, trail: frozenset[int]) -> list[_Case]:
        test = self.document.below(node, "if")
        then, other = (self.of(self.document.below(node, name), trail) if name in node.value else _NOTHING for name in ("then", "else"))
        return _or_nothing([*_under(((True, test),), _times(self.of(test, trail), then)), *_under(((False, test),), other)])
