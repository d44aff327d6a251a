"""The keywords of a schema with their places, and what an engine must know of each."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Set
from functools import partial, reduce
from typing import Any, Final, NamedTuple

from accelplug.constrained.regex.parse import SIGN
from accelplug.constrained.schema.document import Document
from accelplug.constrained.schema.formats import FORMATS
from accelplug.constrained.schema.seen import escaped
from accelplug.constrained.schema.vocabulary import MAPS, SPEAKING, spoken_in

MOST_COUNTED: Final = 2**53
MOST_STEP: Final = 100_000  # an automaton that counts remainders takes seconds beyond, then gigabytes
LISTS: Final = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
ONES: Final = ("not", "if", "then", "else", "items", "additionalItems", "contains", "additionalProperties", "propertyNames")
_MORE_ONES: Final = ("unevaluatedItems", "unevaluatedProperties")
HOLDING: Final = frozenset((*MAPS, *LISTS, *ONES, *_MORE_ONES))
"""The keywords whose values hold schemas."""
_ALL_ONES: Final = frozenset((*ONES, *_MORE_ONES))
_PARTS: Final = (dict, list)
_LOOKED_AT: Final = HOLDING | SPEAKING
_CLASSES: Final = re.compile(r"\\[dwDWb]|\(\?")
_OF_OTHERS: Final = re.compile(
    r"\\[pPsS]|-\\[dDwW]|\(\?[^:=!<P]"  # the characters of Unicode's releases, ranges to a class, flags
    r"|\[\^?\]|\[(?:\\.|[^\]\\])*?\[|&&|--|~~"  # classes that are empty, or that others nest, intersect and subtract
    r"|\{[\d,]*\s",  # blanks between braces
    re.DOTALL,
)
IN_A_DIALECT: Final = " in a dialect"
WITH_CLASSES: Final = " with classes"
"""Forms of expressions: what no engine is trusted with, and what those are that were seen to read it."""
_IN_A_MAP: Final = re.compile(r"#/(\$defs|definitions)/[^/%]*")
_ANCHOR: Final = re.compile(r"#[A-Za-z_][\w.-]*")
_SIBLINGS: Final = SPEAKING - {"$ref"}


class Use(NamedTuple):
    """A keyword at its place, and the feature that an engine would need for it."""

    place: str
    keyword: str
    feature: str


_use: Final[Callable[[tuple[str, str, str]], Use]] = partial(tuple.__new__, Use)  # a third of the time of calling the class


def uses(document: Document) -> list[Use]:
    """Return every keyword that constrains, in the order of the text."""
    found: list[Use] = []
    if isinstance(document.schema, dict):
        spoken = spoken_in(document.draft)
        _add_uses(found, document, document.schema, "#", spoken)
        if any(map(_leads_aside, document.seen.references)):
            _add_hidden(found, document, spoken)
    return found


def _add_hidden(found: list[Use], document: Document, spoken: frozenset[str]) -> None:
    """Add what stands where only references lead: behind keywords that hold no schemas, such as ``components``."""
    known = set[str]()
    for use in found:  # which grows as it goes
        reference = str(at(document.schema, use.place)) if use.keyword == "$ref" else ""
        if reference in known or not _leads_aside(reference):
            continue
        known.add(reference)
        target = document.names.at(reference)
        if isinstance(target, dict):
            _add_uses(found, document, target, reference, spoken)
        elif target is None:
            found.append(_use((use.place, "$ref", "$ref beyond a pointer")))


def _leads_aside(reference: Any) -> bool:
    """Whether a pointer leads where a walk from schema to schema does not come."""
    if not isinstance(reference, str) or not reference.startswith("#/") or _IN_A_MAP.fullmatch(reference):
        return False
    steps = reference.split("/")[1:]
    while steps:
        keyword = steps.pop(0)
        if keyword not in HOLDING:
            return True
        if steps and (keyword in MAPS or (keyword in LISTS and steps[0].isdecimal())):
            steps.pop(0)
    return False


def at(schema: Any, place: str) -> Any:
    """Return what stands at a place that a walk has met."""
    return reduce(stepped, place.split("/")[1:], schema)


def stepped(value: Any, step: str) -> Any:
    """Return what stands a pointer's step below a value.

    :raises LookupError: nothing does; ValueError or TypeError: it takes no such step.
    """
    return value[int(step)] if isinstance(value, list) else value[step.replace("~1", "/").replace("~0", "~")]


def _add_uses(found: list[Use], document: Document, schema: dict[str, Any], place: str, spoken: frozenset[str]) -> None:
    alone = document.draft <= 7 and "$ref" in schema
    for keyword, value in schema.items():
        if keyword not in _LOOKED_AT:
            continue
        here = f"{place}/{keyword}"
        if keyword in spoken and (not alone or keyword == "$ref") and (keyword != "format" or _asserted(document, value)):
            feature = keyword if keyword not in _FORMED else _feature({keyword: value} if alone else schema, keyword)
            found.append(_use((here, keyword, feature)))
        if keyword in HOLDING and isinstance(value, _PARTS):
            for below, child in children(keyword, value, here):
                _add_uses(found, document, child, below, spoken)


def children(keyword: str, value: dict[str, Any] | list[Any], place: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the schema objects that stand directly below a keyword, with their places."""
    if isinstance(value, list):
        return [(f"{place}/{index}", child) for index, child in enumerate(value) if keyword in LISTS and isinstance(child, dict)]
    if keyword in MAPS:
        return [(f"{place}/{escaped(name)}", child) for name, child in value.items() if isinstance(child, dict)]
    return [(place, value)] if keyword in _ALL_ONES else []


def _asserted(document: Document, name: object) -> bool:
    return document.asserted and isinstance(name, str) and name in FORMATS


def _feature(schema: dict[str, Any], keyword: str) -> str:
    """Name what an engine must be able to do: a keyword, or one form of it."""
    value = schema[keyword]
    if keyword == "format":
        return f"format {value}"
    form = next((form for form, applies in _FORMS_OF[keyword] if applies(schema, value)), "{}")
    if keyword == "patternProperties" and _is_beside_others(schema, value):  # whatever its expressions are like
        form += BESIDE_OTHERS
    return form.format(keyword)


def _has_classes(_: dict[str, Any], value: Any) -> bool:
    return any(_CLASSES.search(pattern) for pattern in (value if isinstance(value, dict) else [str(value)]))


def _in_a_dialect(_: dict[str, Any], value: Any) -> bool:
    patterns = value if isinstance(value, dict) else [str(value)]
    return any(map(is_a_dialect, patterns))


def is_a_dialect(pattern: str) -> bool:
    """Whether an expression says what engines may read in a way of their own, such as the dot and blanks. Some that do not count too."""
    return _OF_OTHERS.search(pattern) is not None or ("." in pattern and "." in SIGN.findall(pattern))


def _is_anchor(_: dict[str, Any], value: Any) -> bool:
    return isinstance(value, str) and _ANCHOR.fullmatch(value) is not None


def _is_from_zero_on(schema: dict[str, Any], value: Any) -> bool:
    least = [schema[keyword] for keyword in ("minimum", "exclusiveMinimum") if keyword in schema]
    whole = isinstance(value, int) and value <= MOST_STEP and schema.get("type") == "integer"
    return whole and any(not isinstance(one, bool) and isinstance(one, int | float) and one >= 0 for one in least)


def _is_rounded(_: dict[str, Any], value: Any) -> bool:
    """Whether a number is among those that engines round: they count in floats of 64 bits."""
    return (isinstance(value, int) and abs(value) > MOST_COUNTED) or value in (math.inf, -math.inf)


def _has_spellings(schema: dict[str, Any], value: Any) -> bool:
    """Whether among fixed values are numbers that engines round, or that they write in another way than the schema: 1.0 as 1, 1e-07 without exponent."""
    if isinstance(value, dict | list):
        return any(_has_spellings(schema, one) for one in (value.values() if isinstance(value, dict) else value))
    return _is_rounded(schema, value) or (isinstance(value, float) and (value.is_integer() or "e" in repr(value)))


def _has_siblings(schema: dict[str, Any], _: Any) -> bool:
    return not _SIBLINGS.isdisjoint(schema)


def _beyond_a_pointer(_: dict[str, Any], value: Any) -> bool:
    return not isinstance(value, str) or not (value == "#" or value.startswith("#/"))


def _counts_optional(schema: dict[str, Any], value: Any) -> bool:
    """Whether properties are counted of which some may be missing, and other names are free."""
    named, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(named, dict) or not isinstance(required, list) or named.keys() <= {*map(str, required)}:
        return False
    if "maxProperties" not in schema and isinstance(value, int) and value <= len(required):
        return False
    return "patternProperties" in schema or schema.get("additionalProperties", True) is not False


def _is_beside_others(schema: dict[str, Any], value: Any) -> bool:
    """Whether other names are free; where properties are counted, whether more are wanted than are named: one that comes twice is counted twice."""
    free = schema.get("additionalProperties", True) is not False
    if not isinstance(value, int):
        return free
    required = schema.get("required")
    named = len(required) if isinstance(required, list) else 0
    return (free or "patternProperties" in schema) and value > max(1, named)


def _has_parts(_: dict[str, Any], value: Any) -> bool:
    return any(isinstance(one, dict | list | float) for one in (value if isinstance(value, list) else [value]))


BESIDE_OTHERS: Final = " beside others"
"""Where other names are free, engines let a name be written with escapes, ``"\\u0061"``, which is then no longer that name to them."""
_FORMS: Final[dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any], Any], bool]]]] = {
    f"{{}}{IN_A_DIALECT}": (("pattern", "patternProperties"), _in_a_dialect),
    f"{{}}{WITH_CLASSES}": (("pattern", "patternProperties"), _has_classes),
    "{} with siblings": (("$ref",), _has_siblings),
    "{} to an anchor": (("$ref",), _is_anchor),
    "{} beyond a pointer": (("$ref",), _beyond_a_pointer),
    "{} beyond 2**53": (("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _is_rounded),
    "{} in several spellings": (("const", "enum"), _has_spellings),
    "{} of parts": (("enum", "const"), _has_parts),
    "{} as a list": (("items",), lambda _, value: isinstance(value, list)),
    "{} as a flag": (("exclusiveMinimum", "exclusiveMaximum", "required"), lambda _, value: isinstance(value, bool)),
    "{} beyond 1000": (
        ("minItems", "maxItems", "minProperties", "maxProperties"),
        lambda _, value: not isinstance(value, int) or value > 1000,
    ),
    "{} beside optional properties": (("minProperties", "maxProperties"), _counts_optional),
    f"{{}}{BESIDE_OTHERS}": (("properties", "minProperties"), _is_beside_others),
    "{} from zero on": (("multipleOf",), _is_from_zero_on),
    "{} of fractions": (("multipleOf",), lambda _, value: not isinstance(value, int)),
    "{} beyond 100000": (("multipleOf",), lambda _, value: value > MOST_STEP),
}
"""Forms of keywords that are features of their own -> the keywords, and what tells them."""
_FORMS_OF: Final = {
    keyword: tuple((form, applies) for form, (keywords, applies) in _FORMS.items() if keyword in keywords)
    for keyword in {keyword for keywords, _ in _FORMS.values() for keyword in keywords}
}


_FORMED: Final = frozenset({*_FORMS_OF, "format"})
"""The keywords of which one form or another is a feature of its own."""


def split(all_uses: list[Use], inexact: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divide places into those that are enforced and those that are checked, by what a mask does not hold."""
    return divided(all_uses, inexact_among(all_uses, inexact))


def divided(all_uses: list[Use], checked: Set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divide places into those that are enforced and those that are checked, each once and in the document's order."""
    places = tuple(dict.fromkeys([use.place for use in all_uses]))
    if not checked:
        return places, ()
    return tuple([place for place in places if place not in checked]), tuple([place for place in places if place in checked])


def inexact_among(all_uses: list[Use], inexact: Iterable[str]) -> Set[str]:
    """Return the places that a mask does not hold exactly: what stands at or below an inexact one.

    ``"*/required"`` is every such keyword. Where a place is none of the document's, being named by another way there, all of it counts as checked.
    """
    vague = frozenset(inexact)
    if not vague:
        return vague
    known = {use.place for use in all_uses}
    if all(place in known or place.startswith("*/") or any(one.startswith(f"{place}/") for one in known) for place in vague):
        return {use.place for use in all_uses if f"*/{use.keyword}" in vague or is_below(use.place, vague)}
    return known


def is_below(place: str, vague: Set[str]) -> bool:
    """Whether a place, or one above it, is among these."""
    while place not in vague:
        place, slash, _ = place.rpartition("/")
        if not slash:
            return False
    return True
