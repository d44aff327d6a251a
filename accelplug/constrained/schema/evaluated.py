"""``unevaluatedProperties`` and ``unevaluatedItems`` for the final check, in sets and with ECMA 262 expressions.

jsonschema looks names up in lists, searches them by Python's expressions, and takes ``contains`` of 2019-09 for one that evaluates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelplug.constrained.schema.searching import found_in


def unevaluated_properties(validator: Any, given: Any, instance: Any, schema: dict[str, Any]) -> Iterator[Any]:
    """``unevaluatedProperties``."""
    from jsonschema import ValidationError

    if not validator.is_type(instance, "object"):
        return
    known = _names(validator, instance, schema)
    for name, value in instance.items():
        if name not in known and not _satisfies(validator, value, given):
            yield ValidationError(f"the unevaluated property {name!r} was unexpected or is not what it should be")


def unevaluated_items(validator: Any, given: Any, instance: Any, schema: dict[str, Any], *, newest: bool) -> Iterator[Any]:
    """``unevaluatedItems``.

    :param newest: whether the draft is 2020-12, where items that satisfy ``contains`` are evaluated, and ``prefixItems`` is what ``items`` was.
    """
    from jsonschema import ValidationError

    if not validator.is_type(instance, "array"):
        return
    known = _places(validator, instance, schema, newest=newest)
    for place, value in enumerate(instance):
        if place not in known and not _satisfies(validator, value, given):
            yield ValidationError(f"the unevaluated item {place} was unexpected or is not what it should be")


def _satisfies(validator: Any, value: Any, schema: Any) -> bool:
    return next(validator.descend(value, schema), None) is None


def _names(validator: Any, instance: dict[str, Any], schema: Any, *, inner: bool = False) -> set[str]:
    """Return the properties that a schema, which the instance satisfies, evaluates.

    :param inner: whether this is a part of the schema whose ``unevaluatedProperties`` is asked about.
    """
    if isinstance(schema, bool):
        return set()
    if "additionalProperties" in schema or (inner and "unevaluatedProperties" in schema):
        return set(instance)
    known = set(schema.get("properties", ())) & instance.keys()
    for pattern in schema.get("patternProperties", ()):
        known |= {name for name in instance if found_in(pattern, name)}
    for below, part in _in_place(validator, instance, schema):
        known |= _names(below, instance, part, inner=True)
    return known


def _places(validator: Any, instance: list[Any], schema: Any, *, newest: bool, inner: bool = False) -> set[int]:
    """Return the indices that a schema, which the instance satisfies, evaluates."""
    if isinstance(schema, bool):
        return set()
    items = schema.get("items")
    everything = {"additionalItems", "unevaluatedItems"} if inner else {"additionalItems"}
    if isinstance(items, dict | bool) or (isinstance(items, list) and not everything.isdisjoint(schema)) or (inner and "unevaluatedItems" in schema):
        return set(range(len(instance)))
    known = set(range(len(schema.get("prefixItems", ()) if newest else items or ())))
    if newest and "contains" in schema:
        known |= {place for place, value in enumerate(instance) if _satisfies(validator, value, schema["contains"])}
    for below, part in _in_place(validator, instance, schema):
        known |= _places(below, instance, part, newest=newest, inner=True)
    return known


def _in_place(validator: Any, instance: Any, schema: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Return the subschemas that hold of the instance itself, each with the validator that reads it."""
    for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
        if keyword in schema:
            yield _referred(validator, keyword, schema[keyword])
    for keyword in ("allOf", "oneOf", "anyOf"):
        yield from ((_reader(validator, part), part) for part in schema.get(keyword, ()) if _satisfies(validator, instance, part))
    if isinstance(instance, dict):
        yield from ((_reader(validator, part), part) for name, part in schema.get("dependentSchemas", {}).items() if name in instance)
    if "if" in schema:
        holds = _satisfies(validator, instance, schema["if"])
        chosen = [schema["if"], schema.get("then", True)] if holds else [schema.get("else", True)]
        yield from ((_reader(validator, part), part) for part in chosen)


def _referred(validator: Any, keyword: str, reference: str) -> tuple[Any, Any]:
    from referencing.jsonschema import lookup_recursive_ref

    resolver = validator._resolver
    found = lookup_recursive_ref(resolver) if keyword == "$recursiveRef" else resolver.lookup(reference)
    return validator.evolve(schema=found.contents, _resolver=found.resolver), found.contents


def _reader(validator: Any, schema: Any) -> Any:
    """Return the validator of a subschema, which may have an identity of its own."""
    if not isinstance(schema, dict) or "$id" not in schema:
        return validator
    from referencing.jsonschema import specification_with

    specification = specification_with(validator.META_SCHEMA["$schema"])
    return validator.evolve(schema=schema, _resolver=validator._resolver.in_subresource(specification.create_resource(schema)))
