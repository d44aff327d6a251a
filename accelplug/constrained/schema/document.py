"""A schema document: its draft, its references, and its nodes, each with one identity."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Final

from accelplug._errors import ConstraintError
from accelplug.constrained.schema.drafts import declared, draft_of
from accelplug.constrained.schema.names import Names, has_anchor, is_name
from accelplug.constrained.schema.seen import NAMING, Seen, escaped
from accelplug.constrained.schema.shapes import check_shapes, shapes_of
from accelplug.constrained.schema.validation import Checking, translated, validator_class
from accelplug.hooks import CompileLimits

if TYPE_CHECKING:
    from referencing._core import Resolver

    from accelplug.constrained.schema.branches import Tableau

MOST_DEPTH: Final = 150
_MEANT_BY_PLACE: Final = ("'$id'", "'id': '", "'id': \"", "'$dynamic", "'$recursive")
BESIDE_NOTHING: Final = frozenset(
    {"$ref", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
)
"""What may stand beside a reference that is all that a schema says."""


@dataclass(slots=True, eq=False)
class Node:
    """A subschema, equal to itself alone. The same text at several places is one node, as far as it means the same there.

    Never changed once it is made, and not frozen because that doubles the time of making one.

    :param number: in the order of the first visit, the same in every process.
    :param place: where it was met first, for sentences.
    :param resolver: what its references are looked up by, None where they are pointers into a document that names no part of itself.
    """

    number: int
    value: Any
    place: str
    resolver: Any = field(repr=False)


_in_order: Final = json.JSONEncoder(sort_keys=True).encode
Signed = tuple[bool, Node]
"""A node, True where a value must satisfy it and False where it must not."""
State = frozenset[Signed]


class Document:
    """One schema with everything it refers to."""

    def __init__(self, schema: Any, *, asserted: bool) -> None:
        """Look at a schema.

        :param asserted: whether ``format`` constrains.
        :raises ConstraintError: the schema is neither an object nor a truth value, is nested too deeply, or a keyword in it has a value that
            its draft gives no meaning.
        """
        if not isinstance(schema, dict | bool):
            raise ConstraintError(f"a JSON Schema is an object, true or false, got {json.dumps(schema):.60}")
        self.seen = Seen(schema)
        if self.seen.depth > MOST_DEPTH:
            raise ConstraintError(f"the schema is nested more than {MOST_DEPTH} deep; flatten it with $defs and $ref")
        self.schema, self.asserted, self.names = schema, asserted, Names(schema, self.seen)
        self.draft = draft_of(schema, self.seen)
        self._nodes: dict[int, Node] = {}
        self._meanings: dict[int, Node] = {}
        self._truths: dict[bool, Node] = {value: Node(number, value, "", None) for number, value in enumerate((False, True))}
        self._valid: dict[tuple[int, str], bool] = {}
        self._by_text: dict[tuple[str, str], Node] = {}
        self._again: dict[str, list[str]] = {}
        self._targets: dict[tuple[int, str], Node | None] = {}
        self._telling = telling()
        self.shapes = shapes_of(self.draft, declared=self.names_draft)
        self._shaped = check_shapes(schema, self.shapes, self.names.pointed) if isinstance(schema, dict) else set[int]()

    @property
    def false(self) -> Node:
        """The schema that nothing satisfies."""
        return self._truths[False]

    @property
    def truth(self) -> Node:
        """The schema that everything satisfies."""
        return self._truths[True]

    @property
    def names_draft(self) -> bool:
        """Whether the schema says which draft it is written in."""
        return declared(self.schema) is not None

    @cached_property
    def validator(self) -> Any:
        """The final check of this schema."""
        return self.checking.over(self.schema, asserted=self.asserted)

    @property
    def checking(self) -> Checking:
        """What checks values by the rules of this draft.

        :raises ConstraintError: jsonschema is not installed.
        """
        return validator_class(self.draft, declared=self.names_draft)

    @cached_property
    def strings(self) -> Tableau:
        """What is known of strings alone, such as names, where nothing else is asked."""
        from accelplug.constrained.schema.branches import Tableau

        return Tableau(self, math.inf, CompileLimits())

    @cached_property
    def root(self) -> Node:
        """The whole schema."""
        self.checking  # noqa: B018  # said early: jsonschema is missing
        return self.node(self.schema, "#", self._resolver if self.names.inside else None)

    @cached_property
    def _resolver(self) -> Resolver[Any]:
        found: Resolver[Any] = self.validator._resolver
        return found

    @cached_property
    def _crawled(self) -> Resolver[Any]:
        """The same with all names known: where it has not gone through the whole, each look for a name does."""
        return self._resolver._registry.crawl().resolver(self._resolver._base_uri)

    def is_shaped(self, value: Any) -> bool:
        """Whether the keywords of a schema object are known to have values of their shapes: what only a reference leads to was not looked at."""
        return id(value) in self._shaped

    def node(self, value: Any, place: str, resolver: Resolver[Any] | None) -> Node:
        """Return the node of a subschema.

        :raises ConstraintError: it is no schema.
        """
        if isinstance(value, bool):
            return self._truths[value]
        if not isinstance(value, dict):
            raise ConstraintError(f"{place} should be a schema and is {json.dumps(value):.60}")
        found = self._nodes.get(id(value))
        if found is None:
            if resolver is not None and place != "#" and ("$id" in value or "id" in value):
                resolver = resolver.in_subresource(self._specification.create_resource(value))
            found = self._nodes[id(value)] = self._met(value, place, resolver)
        return found

    def _met(self, value: dict[str, Any], place: str, resolver: Resolver[Any] | None) -> Node:
        """Return the node of a subschema met for the first time, an older one where that says the same, whatever it is called."""
        node = Node(len(self._nodes) + 2, value, place, resolver)
        text = repr(value if self._telling.issuperset(value) else {word: said for word, said in value.items() if word in self._telling})
        if resolver is not None and any(sign in text for sign in _MEANT_BY_PLACE):
            return node
        found = self._by_text.setdefault((text, resolver._base_uri if resolver is not None and "'$ref'" in text else ""), node)
        if found is not node:
            self._again.setdefault(found.place, []).append(place)
        return found

    def everywhere(self, places: Iterable[str]) -> tuple[str, ...]:
        """Return places of keywords, and where the same subschemas stand again."""
        found = dict.fromkeys(places)
        waiting = list(found)
        while waiting:
            steps = waiting.pop().split("/")
            for count in range(1, len(steps)):
                for again in self._again.get("/".join(steps[:count]), ()):
                    other = "/".join([again, *steps[count:]])
                    if other not in found:
                        found[other] = None
                        waiting.append(other)
        return tuple(found)

    @cached_property
    def _specification(self) -> Any:
        from referencing.jsonschema import DRAFT3, DRAFT4, DRAFT6, DRAFT7, DRAFT201909, DRAFT202012

        return {3: DRAFT3, 4: DRAFT4, 6: DRAFT6, 7: DRAFT7, 2019: DRAFT201909, 2020: DRAFT202012}[self.draft]

    def below(self, node: Node, *path: str | int) -> Node:
        """Return the subschema at `path` below a node."""
        value = node.value
        for step in path:
            value = value[step]
        met = self._meanings.get(id(value))
        if met is None:
            met = self._meant(self.node(value, "/".join([node.place, *map(escaped, path)]), node.resolver))
            if isinstance(value, dict):  # which the schema keeps, so that its identity is its own
                self._meanings[id(value)] = met
        return met

    def _meant(self, node: Node) -> Node:
        """Return what a node stands for that is no more than a reference: one node, however one comes there."""
        met = set[Node]()
        while isinstance(node.value, dict) and "$ref" in node.value and (self.draft <= 7 or node.value.keys() <= BESIDE_NOTHING):
            met.add(node)
            try:
                target = self.target(node, "$ref")
            except ConstraintError:  # said where somebody asks what the node says
                return node
            if target is None or target in met:
                return node
            node = target
        return node

    def target(self, node: Node, keyword: str) -> Node | None:
        """Return what a reference names, None if that depends on how one came there.

        :raises ConstraintError: it names nothing here.
        """
        key = node.number, keyword
        if key not in self._targets:
            self._targets[key] = self._looked_up(node, keyword)
        return self._targets[key]

    def leads_to(self, schema: Any, keyword: str) -> Any:
        """Return the schema that a reference in one that was met names, None where that is not known."""
        node = self._nodes.get(id(schema))
        try:
            target = None if node is None else self.target(node, keyword)
        except ConstraintError:
            return None
        return None if target is None else target.value

    def _looked_up(self, node: Node, keyword: str) -> Node | None:
        reference = node.value[keyword]
        if keyword != "$ref" and self.names.anchors(reference) > 1:
            if keyword == "$dynamicRef":
                return self._from_the_root(node, reference)
            return self.root if self.names.is_one_resource else None
        if node.resolver is None and (pointed := self.names.at(reference)) is not None:
            return self.node(pointed, reference, None)
        resolver = node.resolver or self._resolver
        try:
            found = (self._crawled if resolver is self._resolver and is_name(reference) else resolver).lookup(reference)
        except Exception as exc:
            raise ConstraintError(
                f"{node.place}/{keyword} names {reference!r:.100}, which is not in the schema; nothing is fetched"
            ) from exc
        return self.node(found.contents, reference if isinstance(reference, str) else node.place, found.resolver)

    def _from_the_root(self, node: Node, reference: Any) -> Node | None:
        """Return what a dynamic reference names, where the root has the anchor: it is the outermost however one came there. Else None."""
        name = str(reference).rpartition("#")[2]
        try:
            outermost, found = self._resolver.lookup(f"#{name}"), (node.resolver or self._resolver).lookup(reference)
        except Exception:  # noqa: BLE001  said where it is checked
            return None
        if not has_anchor(outermost.contents, name):
            return None
        if has_anchor(found.contents, name):
            return self.node(outermost.contents, f"#{name}", outermost.resolver)
        return self.node(found.contents, str(reference), found.resolver)

    def holds(self, signed: Signed, value: Any) -> bool:
        """Whether a value satisfies a node, or does not, as the sign asks."""
        sign, node = signed
        if isinstance(node.value, bool):
            return node.value is sign
        key = (node.number, _in_order(value))
        if key not in self._valid:
            with translated():
                self._valid[key] = self.validator.evolve(schema=node.value, _resolver=node.resolver or self._resolver).is_valid(value)
        return self._valid[key] is sign


@cache
def telling() -> frozenset[str]:
    """Return the keywords that say what a schema is, or what it is called."""
    from accelplug.constrained.schema.vocabulary import SPEAKING

    return SPEAKING | NAMING
