"""The final check: `jsonschema` with its format validators, the formats it leaves out, and a limit on how long it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache, partial
from typing import Any, Final

from accelplug._errors import ConstraintError
from accelplug.constrained.regex.backtracking import backtracking
from accelplug.constrained.regex.parse import UnsupportedPatternError, parse
from accelplug.constrained.schema import evaluated, searching
from accelplug.constrained.schema.format_checks import MORE
from accelplug.constrained.schema.formats import FORMATS
from accelplug.constrained.time_limit import seconds_left

_EXCLUSIVE: Final = {"minimum": "exclusiveMinimum", "maximum": "exclusiveMaximum"}


class Checking:
    """A draft's validators."""

    def __init__(self, base: Any, checker: Any) -> None:
        self._base, self._checker = base, checker

    def over(self, schema: Any, *, asserted: bool) -> Any:
        """Return the validator of one schema."""
        from jsonschema_specifications import REGISTRY  # and no way to fetch anything else

        return self._base(schema, registry=REGISTRY, format_checker=self._checker if asserted else None)


@cache
def validator_class(draft: int, *, declared: bool) -> Checking:
    """Return the validators of a draft.

    :param declared: whether the schema names its draft; where it does not, older ones' forms count too. ``dependencies`` counts in all.
    :raises ConstraintError: jsonschema is not installed.
    """
    try:
        import jsonschema
    except ImportError as exc:
        raise ConstraintError("JSON Schemas need jsonschema for their final check; install accelplug[grammar]") from exc
    name = {3: "Draft3", 4: "Draft4", 6: "Draft6", 7: "Draft7", 2019: "Draft201909", 2020: "Draft202012"}[draft]
    base = getattr(jsonschema, f"{name}Validator")
    extra = {
        "multipleOf": _multiple_of,
        "required": partial(_required, base.VALIDATORS.get("required")),
        "pattern": searching.pattern,
        "patternProperties": searching.pattern_properties,
        "additionalProperties": searching.additional_properties,
        "uniqueItems": _unique_items,
    }
    if draft < 2020:
        extra["additionalItems"] = _additional_items
    if draft > 7:
        extra |= {"unevaluatedProperties": evaluated.unevaluated_properties}
        extra |= {"unevaluatedItems": partial(evaluated.unevaluated_items, newest=draft == 2020)}
    if draft == 3:
        extra["divisibleBy"] = _multiple_of
    if draft > 7:
        extra |= {"dependencies": _dependencies}
    if not declared and draft > 7:
        extra |= {name: partial(_bound, base.VALIDATORS, name) for name in (*_EXCLUSIVE, *_EXCLUSIVE.values())}
    checker = jsonschema.FormatChecker(())
    checker.checkers = dict(base.FORMAT_CHECKER.checkers) | {"regex": (_is_expression, ConstraintError)}
    if draft == 3:
        del checker.checkers["time"]  # which has no zone there, and one in all others and in masks
    for format_name in FORMATS:
        checker.checks(format_name)(_Formatted(format_name, checker.checkers.get(format_name)))
    limited = {name: _limited(name, keyword) for name, keyword in {**base.VALIDATORS, **extra}.items()}
    found = jsonschema.validators.extend(base, limited)
    found.evolve = _evolved
    return Checking(found, checker)


def _evolved(validator: Any, **changes: Any) -> Any:
    """Return the same validator of something else: jsonschema's own goes over to the stock validator of whatever draft a subschema names."""
    import attrs  # which jsonschema brings

    return attrs.evolve(validator, **changes)


def _limited(name: str, keyword: Any) -> Any:
    """Return a keyword that looks at the limit of time first."""

    def limited(*args: Any) -> Any:
        seconds_left(name)
        return keyword(*args)

    return limited


def _is_expression(value: str) -> bool:
    try:
        parse(value)
    except (UnsupportedPatternError, RecursionError):
        backtracking(value)
    return True


class _Formatted:
    """A format's own check, the expression that masks follow, and what neither asks."""

    def __init__(self, name: str, before: Any) -> None:
        self._name, self._before, self._more = name, before, MORE.get(name)

    def __call__(self, value: Any) -> bool:
        if not isinstance(value, str):
            return True
        if self._before is not None and not self._holds(value):
            return False
        return searching.found_in(FORMATS[self._name].pattern, value) and (self._more is None or self._more(value))

    def _holds(self, value: str) -> bool:
        check, raises = self._before
        caught: tuple[type[Exception], ...] = raises if isinstance(raises, tuple) else (raises,) if raises else ()
        try:
            return bool(check(value))
        except caught:
            return False


@contextmanager
def translated() -> Iterator[None]:
    """Say in one sentence what the final check cannot do.

    :raises ConstraintError: jsonschema cannot go on; `OutOfTimeError` where it takes too long.
    :raises RecursionError: references go round in a circle, or the value is nested deeply.
    """
    try:
        yield
    except (ConstraintError, RecursionError):
        raise
    except Exception as exc:
        said = " ".join(f"{type(exc).__name__}: {exc}".split())
        raise ConstraintError(f"the final check cannot read the schema ({said:.200}); write it as the specification asks") from exc
    except BaseException as exc:
        if type(exc).__module__ == "pyo3_runtime":  # where the stack ends inside jsonschema's maps, they panic, which is no Exception
            raise RecursionError(str(exc)) from exc
        raise


def _multiple_of(validator: Any, step: Any, instance: Any, _schema: Any) -> Iterator[Any]:
    """``multipleOf`` of the numbers as they are written: jsonschema divides floats, by which 0.3 is no multiple of 0.1."""
    from jsonschema import ValidationError

    if validator.is_type(instance, "number") and not (math.isfinite(instance) and Fraction(str(instance)) % Fraction(str(step)) == 0):
        yield ValidationError(f"{instance!r} is not a multiple of {step!r}")


def _additional_items(validator: Any, given: Any, instance: Any, schema: dict[str, Any]) -> Iterator[Any]:
    """``additionalItems``, which says something beside a list of ``items`` alone."""
    from jsonschema import ValidationError

    items = schema.get("items")
    if not isinstance(items, list) or not validator.is_type(instance, "array"):
        return
    for place, value in enumerate(instance[len(items) :], len(items)):
        if given is False:
            yield ValidationError(f"the item {place} was unexpected")
        else:
            yield from validator.descend(value, given, path=place)


def _unique_items(validator: Any, wanted: Any, instance: Any, _schema: Any) -> Iterator[Any]:
    """``uniqueItems``, by hashes: jsonschema compares each item with each other."""
    from jsonschema import ValidationError

    if wanted and validator.is_type(instance, "array") and len(set(map(_key, instance))) < len(instance):
        yield ValidationError(f"{instance!r} has non-unique elements")


def _key(value: Any) -> Any:
    """Return what is equal for equal values of JSON alone: 1 is 1.0 and not true."""
    if isinstance(value, bool):
        return bool, value
    if isinstance(value, list):
        return list, tuple(map(_key, value))
    return (dict, frozenset((name, _key(one)) for name, one in value.items())) if isinstance(value, dict) else value


def _bound(keywords: Any, name: str, validator: Any, bound: Any, instance: Any, schema: dict[str, Any]) -> Iterator[Any]:
    """A bound of a schema that names no draft: in draft 4 what makes it exclusive is a truth value."""
    if not isinstance(bound, bool):
        given = _EXCLUSIVE.get(name)
        yield from keywords[given if given and schema.get(given) is True else name](validator, bound, instance, schema)


def _required(keyword: Any, validator: Any, names: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """``required``; draft 3 reads its truth value elsewhere, and it says nothing in the others."""
    if keyword is not None and not isinstance(names, bool):
        yield from keyword(validator, names, instance, schema)


def _dependencies(validator: Any, dependencies: Any, instance: Any, _schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if not isinstance(instance, dict) or not isinstance(dependencies, dict):
        return
    for name, wanted in dependencies.items():
        if name not in instance:
            continue
        if not isinstance(wanted, list):
            yield from validator.descend(instance, wanted, schema_path=name)
            continue
        for other in wanted:
            if other not in instance:
                yield ValidationError(f"{other!r} is a dependency of {name!r}")
