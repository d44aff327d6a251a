"""What a keyword's value must be by the metaschema of its draft, which refuses what has no meaning there.

Left out is what constrains nothing: annotations, entries that repeat in lists, empty lists of names or of ``items``, whole numbers with a fraction in
drafts to 4. Where no draft is named, what older ones have differently is known too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Final, NamedTuple

from accelplug._errors import ConstraintError
from accelplug.constrained.schema.seen import escaped

TYPES: Final = ("array", "boolean", "integer", "null", "number", "object", "string")
Parts = Iterable[tuple[str | int | None, Any]]
Trail = tuple[Any, ...]
"""How one came to a schema: the trail to the one above, the keyword there, and the step below it, None for no step. For sentences alone."""


class Shape(NamedTuple):
    """What a value must be.

    :param what: it in words.
    :param fits: whether a value is that, but for the schemas in it.
    :param parts: the schemas in it, with the steps that lead there.
    """

    what: str
    fits: Callable[[Any], bool]
    parts: Callable[[Any], Parts] | None = None


def check_shapes(schema: dict[str, Any], shapes: Mapping[str, Shape], pointed: Callable[[str], Any]) -> set[int]:
    """Refuse a schema in which a keyword has a value that means nothing; return the identities of the schemas in it that were looked at.

    :param pointed: what a reference leads to, where that is known at sight; elsewhere than among definitions nothing else leads there.
    :raises ConstraintError: naming the place, and what should be there.
    """
    waiting: list[tuple[Trail, Any]] = [(("#",), schema)]
    referred, seen = {"#"}, set[int]()
    while waiting:
        trail, one = waiting.pop()
        seen.add(id(one))
        for keyword, value in one.items():
            shape = shapes.get(keyword)
            if shape is None:
                continue
            if not shape.fits(value):
                raise misshapen(f"{_place(trail)}/{keyword}", shape, value)
            if shape.parts is not None:
                for step, part in shape.parts(value):
                    if isinstance(part, dict):
                        waiting.append(((trail, keyword, step), part))
            elif keyword == "$ref" and value not in referred and not value.startswith(("#/definitions/", "#/$defs/")):
                referred.add(value)
                if isinstance(part := pointed(value), dict):
                    waiting.append(((value,), part))
    return seen


def _place(trail: Trail) -> str:
    """Write where a trail leads."""
    if len(trail) == 1:
        return str(trail[0])
    before, keyword, step = trail
    return "/".join([_place(before), keyword, *([] if step is None else [escaped(step)])])


def misshapen(place: str, shape: Shape, value: Any) -> ConstraintError:
    """Return the error for a value of another shape, which names the place and what should be there."""
    return ConstraintError(f"{place} should be {shape.what} and is {json.dumps(value):.60}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and 0 <= value < math.inf and value == int(value)


def _is_step(value: Any) -> bool:
    return _is_number(value) and 0 < value < math.inf


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_anchor(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.:-]*", value, re.ASCII) is not None


def _is_map_of_names(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_names, value.values()))


def _is_type(value: Any) -> bool:
    return value in TYPES if isinstance(value, str) else isinstance(value, list) and bool(value) and all(isinstance(one, str) and one in TYPES for one in value)


def _itself(value: Any) -> Parts:
    return ((None, value),)


def _each(value: Any) -> Parts:
    return enumerate(value) if isinstance(value, list) else ()


def _each_or_itself(value: Any) -> Parts:
    return enumerate(value) if isinstance(value, list) else ((None, value),)


def _named(value: dict[str, Any]) -> Parts:
    return value.items()


NUMBER: Final = Shape("a number", _is_number)
COUNT: Final = Shape("a whole number from 0 on", _is_count)
STEP: Final = Shape("a number above 0", _is_step)
TEXT: Final = Shape("text", _is_text)
FLAG: Final = Shape("true or false", _is_flag)
LIST: Final = Shape("a list", _is_list)
NAMES: Final = Shape("a list of names", _is_names)
ANCHOR: Final = Shape("a name of letters, digits and any of _.-", _is_anchor)
TYPE: Final = Shape(f"one of the types {', '.join(TYPES)}, or a list of them", _is_type)
ANY_SCHEMA: Final = Shape("a schema", _is_schema, _itself)


def _of_schemas(inner: Callable[[Any], bool]) -> dict[str, Shape]:
    """Return the shapes of keywords whose values hold schemas.

    :param inner: whether a value is a schema: in drafts to 4 an object.
    """
    word = "a schema" if inner(True) else "a schema, which in this draft is an object"

    def some(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(map(inner, value))

    def named(value: Any) -> bool:
        return isinstance(value, dict) and all(map(inner, value.values()))

    def items(value: Any) -> bool:
        return inner(value) or (isinstance(value, list) and all(map(inner, value)))

    def depending(value: Any) -> bool:
        return isinstance(value, dict) and all(inner(one) or _is_names(one) for one in value.values())

    one, many = Shape(word, inner, _itself), Shape(f"a list of {word.replace('a schema', 'schemas', 1)}, at least one", some, _each)
    return {
        **dict.fromkeys(("not", "if", "then", "else", "contains", "propertyNames"), one),
        **dict.fromkeys(("unevaluatedItems", "unevaluatedProperties"), one),
        **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), many),
        **dict.fromkeys(("properties", "patternProperties", "dependentSchemas", "$defs", "definitions"), Shape(f"an object, each value {word}", named, _named)),
        "additionalItems": ANY_SCHEMA,
        "additionalProperties": ANY_SCHEMA,
        "items": Shape(f"{word}, or a list of such", items, _each_or_itself),
        "dependencies": Shape(f"an object, each value a list of names or {word}", depending, _named),
    }


_ALWAYS: Final = {
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), COUNT),
    **dict.fromkeys(("minimum", "maximum"), NUMBER),
    **dict.fromkeys(("pattern", "format", "$ref", "$schema"), TEXT),
    "uniqueItems": FLAG,
    "enum": LIST,
}
_FROM_4: Final = {"multipleOf": STEP, "minProperties": COUNT, "maxProperties": COUNT, "required": NAMES, "type": TYPE}
_FROM_2019: Final = {
    **dict.fromkeys(("minContains", "maxContains"), COUNT),
    "dependentRequired": Shape("an object, each value a list of names", _is_map_of_names),
    "$anchor": ANCHOR,
    "$recursiveRef": TEXT,
}


@cache
def shapes_of(draft: int, *, declared: bool) -> Mapping[str, Shape]:
    """Return the shape of every keyword that a draft has.

    :param declared: whether the schema names it; where it does not, older ones' forms count too.
    """
    from accelplug.constrained.schema.vocabulary import is_known

    of_schemas = _of_schemas(_is_schema if draft > 4 else _is_object)
    found = {keyword: shape for keyword, shape in of_schemas.items() if is_known(keyword, draft)} | _ALWAYS
    found |= _of_3() if draft == 3 else _FROM_4
    bounds = FLAG if draft <= 4 else NUMBER
    found |= {"exclusiveMinimum": bounds, "exclusiveMaximum": bounds, "id" if draft <= 4 else "$id": TEXT}
    if draft < 2019:
        found.pop("$defs")
    if draft >= 2019:
        found |= _FROM_2019 | ({"$dynamicRef": TEXT, "$dynamicAnchor": ANCHOR} if draft == 2020 else {"$recursiveAnchor": FLAG})
    if draft == 2020:
        found.pop("additionalItems")
        found["items"] = Shape("a schema; a list of them is prefixItems in this draft", _is_schema, _itself)
    return found if declared else found | _UNDECLARED


def _of_3() -> dict[str, Shape]:
    """Draft 3's own."""

    def kinds(value: Any) -> bool:
        return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str | dict) for one in value))

    def extended(value: Any) -> bool:
        return isinstance(value, dict) or (isinstance(value, list) and all(map(_is_object, value)))

    def depending(value: Any) -> bool:
        return isinstance(value, dict) and all(isinstance(one, str | dict) or _is_names(one) for one in value.values())

    some = Shape("a type, or a list of types and schemas", kinds, _each)
    return {
        "type": some,
        "disallow": some,
        "extends": Shape("a schema, or a list of such", extended, _each_or_itself),
        "dependencies": Shape("an object, each value a name, a list of names or a schema", depending, _named),
        "divisibleBy": STEP,
        "required": FLAG,
    }


def _is_any_bound(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_any_required(value: Any) -> bool:
    return isinstance(value, bool) or _is_names(value)


def _is_any_dependency(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, str | bool | dict) or _is_names(one) for one in value.values())


_UNDECLARED: Final = {
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), Shape("a number, or true or false", _is_any_bound)),
    "required": Shape("a list of names", _is_any_required),
    "dependencies": Shape("an object, each value a list of names or a schema", _is_any_dependency, _named),
    "items": _of_schemas(_is_schema)["items"],
}
