"""Which function says what a keyword means. Keywords that are not here constrain nothing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from accelplug.constrained.schema import arrays, combining, objects, scalars, unevaluated
from accelplug.constrained.schema.clauses import Keyword

_OF_ALL: Final[Mapping[str, Keyword]] = {
    "$ref": combining.reference,
    "$dynamicRef": combining.reference,
    "$recursiveRef": combining.reference,
    "allOf": combining.all_of,
    "anyOf": combining.any_of,
    "oneOf": combining.one_of,
    "not": combining.negation,
    "if": combining.condition,
    "extends": combining.extends,
    "disallow": combining.disallow,
    "type": scalars.type_,
    "const": scalars.constant,
    "enum": scalars.enumeration,
}
_OF_NUMBERS: Final[Mapping[str, Keyword]] = {
    "minimum": scalars.bound,
    "maximum": scalars.bound,
    "exclusiveMinimum": scalars.exclusive_bound,
    "exclusiveMaximum": scalars.exclusive_bound,
    "multipleOf": scalars.multiple_of,
    "divisibleBy": scalars.multiple_of,
}
_OF_STRINGS: Final[Mapping[str, Keyword]] = {
    "minLength": scalars.min_length,
    "maxLength": scalars.max_length,
    "pattern": scalars.pattern,
    "format": scalars.format_,
}
_OF_ARRAYS: Final[Mapping[str, Keyword]] = {
    "prefixItems": arrays.prefix_items,
    "items": arrays.items,
    "additionalItems": arrays.additional_items,
    "contains": arrays.contains,
    "minItems": arrays.min_items,
    "maxItems": arrays.max_items,
    "uniqueItems": arrays.unique_items,
    "unevaluatedItems": unevaluated.unevaluated,
}
_OF_OBJECTS: Final[Mapping[str, Keyword]] = {
    "dependencies": combining.dependencies,
    "dependentRequired": combining.dependent_required,
    "dependentSchemas": combining.dependent_schemas,
    "properties": objects.properties,
    "required": objects.required,
    "patternProperties": objects.pattern_properties,
    "additionalProperties": objects.additional_properties,
    "propertyNames": objects.property_names,
    "minProperties": objects.min_properties,
    "maxProperties": objects.max_properties,
    "unevaluatedProperties": unevaluated.unevaluated,
}
KEYWORDS: Final[Mapping[str, Keyword]] = {**_OF_ALL, **_OF_NUMBERS, **_OF_STRINGS, **_OF_ARRAYS, **_OF_OBJECTS}
SPEAKING: Final = frozenset((*KEYWORDS, "then", "else", "minContains", "maxContains"))
"""The keywords that say something of values, by themselves or beside others."""
KEYWORDS_OF: Final[Mapping[str, Mapping[str, Keyword]]] = {
    "null": _OF_ALL,
    "boolean": _OF_ALL,
    "number": {**_OF_ALL, **_OF_NUMBERS},
    "string": {**_OF_ALL, **_OF_STRINGS},
    "array": {**_OF_ALL, **_OF_ARRAYS},
    "object": {**_OF_ALL, **_OF_OBJECTS},
}
"""The keywords that say something of values of a type."""
_FIRST_DRAFTS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "not", "multipleOf", "minProperties", "maxProperties"), 4),
    **dict.fromkeys(("const", "contains", "propertyNames"), 6),
    **dict.fromkeys(("if", "then", "else"), 7),
    **dict.fromkeys(("dependentRequired", "dependentSchemas", "unevaluatedProperties", "unevaluatedItems", "$recursiveRef"), 2019),
    **dict.fromkeys(("minContains", "maxContains"), 2019),
    **dict.fromkeys(("prefixItems", "$dynamicRef"), 2020),
}
MAPS: Final = ("properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions")
"""The keywords whose objects have names of the schema's own."""
_OF_DRAFT_3: Final = frozenset({"extends", "disallow", "divisibleBy"})


def is_known(keyword: str, draft: int) -> bool:
    """Whether a draft has a keyword: in earlier ones it is a word like any other."""
    return _FIRST_DRAFTS.get(keyword, 0) <= draft and (draft == 3 or keyword not in _OF_DRAFT_3)


@cache
def handlers_of(kind: str, draft: int) -> Mapping[str, Keyword]:
    """Return what a draft's keywords say of values of a type."""
    return {keyword: handler for keyword, handler in KEYWORDS_OF[kind].items() if is_known(keyword, draft)}


@cache
def spoken_in(draft: int) -> frozenset[str]:
    """Return the keywords that say something of values in a draft."""
    return frozenset(keyword for keyword in SPEAKING if is_known(keyword, draft))


@cache
def later_than(draft: int) -> frozenset[str]:
    """Return the keywords that came after a draft."""
    later = [keyword for keyword, first in _FIRST_DRAFTS.items() if first > draft]
    return frozenset((*later, *(("exclusiveMinimum", "exclusiveMaximum") if draft < 6 else ())))


def has_any_of(keywords: frozenset[str], schema: Any) -> bool:
    """Whether one of these stands in a schema as a keyword, and not as the name of a property or of a definition."""
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting.extend(one)
        elif isinstance(one, dict):
            if not keywords.isdisjoint(one):
                return True
            for keyword, value in one.items():
                waiting.extend(value.values() if keyword in MAPS and isinstance(value, dict) else [value])
    return False
