"""A structural tag read: its parts, and the JSON Schemas that stand in them, by their places.

Both ways of writing one are read: ``{"type": "structural_tag", "format": {...}}``, and ``{"structures": [...], "triggers": [...]}`` of older
releases. Source: the models of ``xgrammar.structural_tag``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from accelplug._errors import ConstraintError
from accelplug.constrained.engines.known import begin
from accelplug.constrained.expressions import misread
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.schema.document import Document
from accelplug.constrained.tags.older import STRUCTURES, as_format
from accelplug.constrained.tags.parts import Alternatives, AnyText, Fixed, Json, Matched, Part, Repeated, Sequenced, Triggered
from accelplug.hooks import GrammarSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT: Final = "structural_tag"


class Schema(NamedTuple):
    """A JSON Schema in a structural tag.

    :ivar place: such as ``structural_tag/format/tags/0/content/json_schema``.
    :ivar given: the format that holds it, for its options.
    :ivar hidden: why its JSON cannot be found in a text; empty where it can be.
    """

    place: str
    given: dict[str, Any]
    document: Document
    hidden: str


class Form(NamedTuple):
    """A structural tag.

    :ivar hidden: why no JSON can be told from what stands before it; empty where it can be.
    """

    root: Part
    schemas: tuple[Schema, ...]
    hidden: str


def read(given: Any, *, asserted: bool) -> Form:
    """Read a structural tag that xgrammar took.

    :param asserted: whether ``format`` of its schemas constrains.
    :raises ConstraintError: a schema in it is none, or a format with a schema is none of those that are known.
    """
    reader = _Reader(asserted=asserted, legacy=isinstance(given, dict) and STRUCTURES in given)
    root = reader.part(as_format(given)["format"], f"{_ROOT}/format", ())
    return Form(root, tuple(reader.schemas), next(iter(reader.loose), ""))


class _Reader:
    """Reads formats, one in the other."""

    def __init__(self, *, asserted: bool, legacy: bool) -> None:
        self.asserted, self.legacy = asserted, legacy
        self.schemas: list[Schema] = []
        self.loose: list[str] = []  # what may be any text and stands between no fixed ones
        self._fenced = False  # between the fixed texts of a tag
        self._hidden = ""  # why nothing here can be found

    def part(self, given: dict[str, Any], place: str, ends: tuple[str, ...]) -> Part:
        """Read a format.

        :param ends: what ends the tag around it, which free text in it does not hold.
        """
        reading = _READING.get(given["type"])
        if reading is not None:
            return reading(self, given, place, ends)
        if '"json_schema"' in json.dumps(given):
            raise ConstraintError(f"what the schemas in {place} are is not known of a format {given['type']!r:.40}; use one that xgrammar 0.2 has")
        return self.unread(given, place, ends)

    def parts(self, given: Sequence[dict[str, Any]], place: str, ends: tuple[str, ...]) -> list[Part]:
        """Read formats of a list."""
        return [self.part(one, f"{place}/{index}", ends) for index, one in enumerate(given)]

    def unread(self, given: dict[str, Any], place: str, ends: tuple[str, ...]) -> Part:
        """Take a format for any text."""
        if not self._fenced:
            self.loose.append(f"{place} is a {given['type']}, which is not read")
        return AnyText(ends)

    def expression(self, given: dict[str, Any], place: str, _: tuple[str, ...]) -> Part:
        """Read an expression, if the engine enforces all of it."""
        if features := misread("xgrammar", given["pattern"]):
            raise ConstraintError(f"{place}/pattern: xgrammar does not enforce {' and '.join(features)}; leave them out, or take a sequence of formats")
        return Matched(begin("xgrammar", GrammarSpec("regex", given["pattern"]), bytes_only()))

    def grammar(self, given: dict[str, Any], *_: object) -> Part:
        """Read a grammar."""
        return Matched(begin("xgrammar", GrammarSpec("ebnf", given["grammar"]), bytes_only()))

    def json(self, given: dict[str, Any], place: str, ends: tuple[str, ...]) -> Part:
        """Read a schema."""
        where = self._named(place)
        try:
            document = Document(given["json_schema"], asserted=self.asserted)
        except ConstraintError as exc:
            raise ConstraintError(f"in {where}: {exc}") from exc
        style = given.get("style", "json" if given["type"] == "json_schema" else "qwen_xml")
        hidden = self._hidden or ("" if style == "json" else f"its parameters are written as {style}")
        self.schemas.append(Schema(where, given, document, hidden))
        return AnyText(ends) if hidden else Json(document, where)

    def _named(self, place: str) -> str:
        if self.legacy:
            return place.replace("/format/tags/", f"/{STRUCTURES}/").replace("/content", "") + "/schema"
        return f"{place}/json_schema"

    def tag(self, given: dict[str, Any], place: str, ends: tuple[str, ...]) -> Part:
        """Read a tag."""
        closing = [given["end"]] if isinstance(given["end"], str) else given["end"]
        fixed = isinstance(given["begin"], str) and isinstance(closing, list)
        if not fixed:
            with self._hiding(f"{place} begins or ends with a token"):
                self.part(given["content"], f"{place}/content", ())
            return self.unread(given, place, ends)
        before, self._fenced = self._fenced, self._fenced or bool(given["begin"] and all(closing))
        content = self.part(given["content"], f"{place}/content", tuple(closing))
        self._fenced = before
        return Sequenced([Fixed([given["begin"]]), content, Fixed(closing)])

    def by_tokens(self, given: dict[str, Any], place: str, ends: tuple[str, ...]) -> Part:
        """Read the schemas of what is begun by tokens, which texts do not show."""
        with self._hiding(f"{place} is begun by tokens"):
            if "tags" in given:
                self.parts(given["tags"], f"{place}/tags", ())
            for index, (_, one) in enumerate(given.get("rules", ())):
                self.part(one, f"{place}/rules/{index}/1", ())
        return self.unread(given, place, ends)

    @contextmanager
    def _hiding(self, why: str) -> Iterator[None]:
        before, self._hidden = self._hidden, self._hidden or why
        yield
        self._hidden = before

    def triggered(self, given: dict[str, Any], place: str, ends: tuple[str, ...]) -> Part:
        """Read tags that free text leads to; where there is at least one, nothing stands before it."""
        tags, once = self.parts(given["tags"], f"{place}/tags", ()), given.get("stop_after_first", False)
        rules = [(_trigger(given["triggers"], tag["begin"]), part) for tag, part in zip(given["tags"], tags, strict=True)]
        found = Triggered(rules, (*ends, *given.get("excludes", ())), once=once)
        if not given.get("at_least_one"):
            return found
        return Alternatives(tags) if once else Sequenced([Alternatives(tags), found])

    def separated(self, given: dict[str, Any], place: str, ends: tuple[str, ...]) -> Part:
        """Read tags with nothing but separators between."""
        tags = Alternatives(self.parts(given["tags"], f"{place}/tags", ends))
        most = 1 if given.get("stop_after_first") else None
        return Repeated(tags, int(given.get("at_least_one", False)), most, Fixed([given["separator"]]))

    def dispatched(self, given: dict[str, Any], place: str, _: tuple[str, ...]) -> Part:
        """Read formats that texts lead to; what ends the tag around them may stand in the free text, where they do not exclude it."""
        rules = [
            (pattern, Sequenced([Fixed([pattern]), self.part(one, f"{place}/rules/{index}/1", ())]))
            for index, (pattern, one) in enumerate(given["rules"])
        ]
        return Triggered(rules, given.get("excludes", ()), once=not given.get("loop", True))

    def repeated(self, given: dict[str, Any], place: str, _: tuple[str, ...]) -> Part:
        """Read what stands several times; unlike elsewhere, what ends the tag around it may stand in it."""
        least, most = _COUNTS.get(given["type"]) or (given["min"], given["max"] if given["max"] >= 0 else None)
        return Repeated(self.part(given["content"], f"{place}/content", ()), least, most)


def _trigger(triggers: Iterable[str], begin: str) -> str:
    return next((one for one in triggers if begin.startswith(one)), begin)


_COUNTS: Final[dict[str, tuple[int, int | None]]] = {"optional": (0, 1), "plus": (1, None), "star": (0, None)}
_READING: Final[dict[str, Callable[[_Reader, dict[str, Any], str, tuple[str, ...]], Part]]] = {
    "const_string": lambda _, given, __, ___: Fixed([given["value"]]),
    "any_text": lambda _, given, __, ends: AnyText((*ends, *given.get("excludes", ()))),
    "json_schema": _Reader.json,
    "qwen_xml_parameter": _Reader.json,
    "or": lambda reader, given, place, ends: Alternatives(reader.parts(given["elements"], f"{place}/elements", ends)),
    "sequence": lambda reader, given, place, ends: Sequenced(reader.parts(given["elements"], f"{place}/elements", ends)),
    "tag": _Reader.tag,
    "triggered_tags": _Reader.triggered,
    "tags_with_separator": _Reader.separated,
    "dispatch": _Reader.dispatched,
    "token_triggered_tags": _Reader.by_tokens,
    "token_dispatch": _Reader.by_tokens,
    **dict.fromkeys(("optional", "plus", "star", "repeat"), _Reader.repeated),
    **dict.fromkeys(("token", "exclude_token", "any_tokens"), _Reader.unread),
    "regex": _Reader.expression,
    "grammar": _Reader.grammar,
}
