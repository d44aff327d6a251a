"""The formats of a structural tag as parts of a text: where each may end, and what is wrong with the JSON within.

Every way of reading a text is followed at once, position by position. What cannot be read, such as a token, may be any text, so that a
text that its mask admits is read in the way that it was meant, among others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from accelplug.constrained.finishing import fault, no_constant
from accelplug.constrained.schema.document import Document
from accelplug.constrained.time_limit import seconds_left
from accelplug.hooks import Matcher

Ends = dict[int, str | None]
"""Positions where a part may end -> what is wrong within it, None if nothing is."""
_LONG: Final = 40  # digits of a number, beyond which it is not thought to end before its last
_END: Final = 256
_BLANKS: Final = re.compile(r"[ \t\r\n]*")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)


class Part(Protocol):
    """A part of a text."""

    def ends(self, walk: Walk, start: int) -> Ends:
        """Return where the part may end that begins at a position; nowhere if it cannot begin there."""


class Walk:
    """One reading of one text, which asks each part once at each position."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._known: dict[tuple[int, int], Ends] = {}

    def __call__(self, part: Part, start: int) -> Ends:
        """Return where a part may end.

        :raises OutOfTimeError: reading took too long.
        """
        seconds_left("its structural tag")
        if isinstance(part, (AnyText, Matched)):
            return part.ends(self, start)  # as many ends as the text has letters: worked out again rather than kept
        key = id(part), start
        if key not in self._known:
            self._known[key] = part.ends(self, start)
        return self._known[key]

    def behind(self, begun: Ends, part: Part) -> Ends:
        """Return where a part may end that begins where others ended."""
        found: Ends = {}
        for start, problem in begun.items():
            merge(found, {end: problem or more for end, more in self(part, start).items()})
        return found


def merge(into: Ends, more: Ends) -> Ends:
    """Add ends to others, the faultless first; return those that were new or better."""
    better = {end: problem for end, problem in more.items() if end not in into or (into[end] is not None and problem is None)}
    into.update(better)
    return better


class Fixed:
    """One of several fixed texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(texts)

    def ends(self, walk: Walk, start: int) -> Ends:
        """Return the ends of those that stand here."""
        return {start + len(text): None for text in self.texts if walk.text.startswith(text, start)}


class AnyText:
    """Any text in which certain others do not stand."""

    def __init__(self, but: Iterable[str] = ()) -> None:
        self.but = tuple(text for text in but if text)

    def ends(self, walk: Walk, start: int) -> Ends:
        """Return every position up to where one of those would be complete."""
        return dict.fromkeys(range(start, _end_without(walk.text, start, self.but) + 1))


class Matched:
    """What an engine's own matcher takes: an expression, or a grammar.

    :param begin: makes a matcher over single bytes, whose end is the token 256.
    """

    def __init__(self, begin: Callable[[], Matcher]) -> None:
        self.begin = begin

    def ends(self, walk: Walk, start: int) -> Ends:
        """Return every position up to which it matches."""
        found, matcher = Ends(), self.begin()
        for place in range(start, len(walk.text) + 1):
            seconds_left("its structural tag")
            if matcher.validate((_END,)):
                found[place] = None
            if place < len(walk.text) and matcher.accept(letter := list(walk.text[place].encode())) < len(letter):
                break
        return found


def _end_without(text: str, start: int, but: Sequence[str]) -> int:
    """Return the last position up to which none of some texts stands as a whole."""
    found = [place + len(one) - 1 for one in but if (place := text.find(one, start)) >= 0]
    return min(found, default=len(text))


class Json:
    """JSON by a schema.

    :ivar place: of the schema, for sentences.
    """

    def __init__(self, document: Document, place: str) -> None:
        self.document, self.place = document, place

    def ends(self, walk: Walk, start: int) -> Ends:
        """Return where the value ends, or the blanks behind it; a number may end before another digit."""
        begin = _blanks(walk.text, start)
        try:
            value, end = _READER.raw_decode(walk.text, begin)
        except ValueError:
            return {}
        found = {end: self._problem(value)}
        if isinstance(value, int | float) and not isinstance(value, bool) and end - begin < _LONG:
            shorter = {to: walk.text[begin:to] for to in range(begin + 1, end)}
            found |= {to: self._problem(json.loads(one)) for to, one in shorter.items() if _NUMBER.fullmatch(one)}
        for end, problem in list(found.items()):
            merge(found, dict.fromkeys(range(end, _blanks(walk.text, end) + 1), problem))
        return found

    def _problem(self, value: Any) -> str | None:
        problem = fault(self.document, value)
        return None if problem is None else f"in {self.place}, {problem}"


def _blanks(text: str, start: int) -> int:
    found = _BLANKS.match(text, start)
    return start if found is None else found.end()


_READER: Final = json.JSONDecoder(parse_constant=no_constant)


class Alternatives:
    """One of several parts."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts

    def ends(self, walk: Walk, start: int) -> Ends:
        """Return where one of them may end."""
        found: Ends = {}
        for part in self.parts:
            merge(found, walk(part, start))
        return found


class Sequenced:
    """Parts one behind the other."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts

    def ends(self, walk: Walk, start: int) -> Ends:
        """Return where the last one may end."""
        found: Ends = {start: None}
        for part in self.parts:
            found = walk.behind(found, part)
        return found


class Repeated:
    """A part several times.

    :param most: None where there is no limit.
    :param between: what stands between two of them.
    """

    def __init__(self, part: Part, least: int, most: int | None, between: Part | None = None) -> None:
        self.part, self.least, self.most = part, least, most
        self.further = part if between is None else Sequenced([between, part])

    def ends(self, walk: Walk, start: int) -> Ends:
        """Return where the last one may end."""
        found: Ends = {}
        begun: Ends = {start: None}
        count = 0
        while begun:
            if count >= self.least:
                begun = merge(found, begun)  # what is known already leads nowhere else
            if count == self.most:
                break
            begun = walk.behind(begun, self.further if count else self.part)
            count += 1
        return found


class Triggered:
    """Free text in which certain texts begin parts, and stand nowhere else.

    :param rules: what begins a part, and the part; it begins with that text.
    :param but: what does not stand in the free text.
    :param once: whether nothing follows the first part.
    """

    def __init__(self, rules: Sequence[tuple[str, Part]], but: Iterable[str], *, once: bool) -> None:
        self.rules, self.but, self.once = rules, tuple(text for text in but if text), once
        self._triggers = tuple(text for text, _ in rules)

    def ends(self, walk: Walk, start: int) -> Ends:
        """Return every position of free text, and where parts may end."""
        found: Ends = {}
        waiting: Ends = {start: None}
        while waiting:
            place = min(waiting)
            problem = waiting.pop(place)
            until = _end_without(walk.text, place, self.but + self._triggers)
            merge(found, dict.fromkeys(range(place, until + 1), problem))
            begun = {end: problem or more for end, more in self._tagged(walk, place, until + 1).items()}
            if self.once:
                merge(found, begun)
            else:
                merge(waiting, {end: what for end, what in begun.items() if end > place})
        return found

    def _tagged(self, walk: Walk, start: int, complete: int) -> Ends:
        """Return where a part may end whose beginning is complete at a position, the first at which one is."""
        found: Ends = {}
        for text, part in self.rules:
            place = complete - len(text)
            if place >= start and walk.text.startswith(text, place):
                merge(found, walk(part, place))
        return found
