"""Which further keywords a text may break where a mask does not hold some: what those are parts of, and what they lead to.

A text that breaks ``#/not/anyOf/0/pattern``, or is let through although it does not, may break ``not``. Of ``if``, either side may then be asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Set
from functools import cached_property
from typing import Final

from accelplug.constrained.schema.document import Document
from accelplug.constrained.statements import Use, at

_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")
_CHOICES: Final = frozenset({"anyOf", "oneOf", "not", "contains", "unevaluatedItems", "unevaluatedProperties"})
"""Keywords that are broken as a whole, by whatever in them."""
_BESIDE: Final = {
    "if": ("if", "then", "else"),
    "contains": ("minContains", "maxContains"),
}
_IN_PLACE: Final = frozenset({*_REFERENCES, "allOf", "anyOf", "oneOf", "if", "then", "else", "dependentSchemas"})
_EVALUATING: Final = frozenset({"anyOf", "oneOf", "if"})


def with_affected(document: Document, uses: list[Use], checked: Collection[str]) -> Set[str]:
    """Return the places of keywords that the final check may find broken, where the mask does not hold these."""
    if not checked or (_CHOICES | _BESIDE.keys() | {*_REFERENCES}).isdisjoint(use.keyword for use in uses):
        return frozenset(checked)
    return _Affected(document, uses, checked).all.keys()


class _Affected:
    """One search, from the keywords that are checked to what they are parts of, up to where nothing new is found."""

    def __init__(self, document: Document, uses: list[Use], checked: Collection[str]) -> None:
        self._document = document
        self._keywords = {use.place: use.keyword for use in uses}
        self._targets = {use.place: self._target(use) for use in uses if use.keyword in _REFERENCES}
        self._references: dict[str | None, list[str]] = {}
        for place, target in self._targets.items():
            self._references.setdefault(target, []).append(place)
        self._sorted = sorted(self._keywords)
        self._evaluating = set[str]()
        self._parts: dict[str, list[str]] = {}
        self._met: dict[str, None] = {}
        self.all: dict[str, None] = {}
        self._add(checked)
        self._climb()
        self._add_ways()

    @cached_property
    def _places(self) -> dict[int, str]:
        """Where the objects of the schema stand."""
        schemas = dict.fromkeys(place.rpartition("/")[0] for place in self._keywords)
        return {id(at(self._document.schema, place)): place for place in schemas}

    def _target(self, use: Use) -> str | None:
        """Return where a reference leads, None where that is not known."""
        document = self._document
        value = at(document.schema, use.place)
        if use.keyword == "$ref" and document.names.is_plain(value):
            return str(value)
        target = document.leads_to(at(document.schema, use.place.rpartition("/")[0]), use.keyword)
        return "" if isinstance(target, bool) else self._places.get(id(target))

    def _add(self, places: Iterable[str]) -> None:
        """Note keywords that may be broken; where one is a reference, so may be all that it leads to."""
        waiting = [place for place in places if place in self._keywords]
        for place in waiting:  # grows on the way
            if place not in self.all:
                self.all[place] = None
                self._met[place] = None
                if place in self._targets:
                    waiting.extend(self._below(self._targets[place]))

    def _below(self, place: str | None) -> list[str]:
        if place is None:
            return self._sorted
        begin = bisect_left(self._sorted, f"{place}/")
        below = self._sorted[begin : bisect_left(self._sorted, f"{place}0", begin)]  # "0" comes next to "/"
        return [place, *below] if place in self._keywords else below

    def _climb(self) -> None:
        """Come to all that what was noted is part of."""
        seen = set[str]()
        while waiting := [place for place in self._met if place not in seen]:
            seen.update(waiting)
            for place in waiting:
                self._add_beside(place)
                for whole in self._wholes(place):
                    self._parts.setdefault(whole, []).append(place)
                    self._met[whole] = None

    def _wholes(self, place: str) -> Iterator[str]:
        """Yield the keyword that a keyword stands in, and the references that lead to where it stands."""
        yield from self._references.get(None, ())
        while place := place.rpartition("/")[0]:
            yield from self._references.get(place, ())
            if place in self._keywords:
                yield place
                return

    def _add_beside(self, place: str) -> None:
        keyword, around = self._keywords[place], place.rpartition("/")[0]
        for other in _BESIDE.get(keyword, ()):
            self._add(self._below(f"{around}/{other}") if keyword == "if" else [f"{around}/{other}"])
        if keyword in _EVALUATING:
            self._add_unevaluated(place)

    def _add_unevaluated(self, place: str) -> None:
        """Note what looks at all that no other keyword has evaluated, beside a choice or around it: it depends on what was chosen."""
        waiting = [place]
        while waiting:
            one = waiting.pop()
            if one not in self._evaluating:
                self._evaluating.add(one)
                around = one.rpartition("/")[0]
                self._add(f"{around}/{name}" for name in ("unevaluatedItems", "unevaluatedProperties"))
                waiting += [whole for whole in self._wholes(one) if self._keywords[whole] in _IN_PLACE]

    def _add_ways(self) -> None:
        """Note the choices that were come to, and the way from each to what was noted."""
        waiting = [place for place in self._met if self._keywords[place] in _CHOICES or self._keywords[place] == "if"]
        for place in waiting:  # grows on the way
            if place not in self.all or self._parts.get(place):
                self.all[place] = None
                waiting.extend(self._parts.pop(place, ()))
