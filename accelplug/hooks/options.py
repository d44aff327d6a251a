"""Options: what a factory takes, and the check of what a user gives it before anything is built."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

from accelplug._errors import OptionError

_SCALARS: Final[Mapping[str, type]] = {"int": int, "float": float, "bool": bool, "str": str, "None": NoneType, "NoneType": NoneType}
_NAMED: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def option(
    default: Any = dataclasses.MISSING, *, ge: float | None = None, le: float | None = None, per_request: bool = False, help: str = ""
) -> Any:  # fmt: skip
    """Declare a dataclass field that users may set.

    :param default: its default; without one the user must give it.
    :param ge: smallest value allowed.
    :param le: largest value allowed.
    :param per_request: a request may bring its own value, within the same bounds; the technique then reads it from
        ``view.parameters[name]``.
    :param help: one sentence for listings.
    """
    metadata = {"ge": ge, "le": le, "per_request": per_request, "help": help}
    return dataclasses.field(default=default, metadata={"accelplug": metadata})


def fields_of(factory: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """Return the options a factory takes: the parameters it names, less ``context``."""
    parameters = inspect.signature(factory).parameters
    return {name: parameter for name, parameter in parameters.items() if name != "context" and parameter.kind in _NAMED}


def takes_any(factory: Callable[..., object]) -> bool:
    """Whether a factory also takes options that it does not name, as ``**options``."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(factory).parameters.values())


def unwrapped(factory: object) -> object:
    """Return the class or function behind ``functools.partial``, which is where options are declared."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    return factory


def _metadata(factory: Callable[..., object], name: str) -> Mapping[str, Any]:
    declaring = unwrapped(factory)
    if isinstance(declaring, type) and dataclasses.is_dataclass(declaring):
        for declared in dataclasses.fields(declaring):
            if declared.name == name:
                found: Mapping[str, Any] = declared.metadata.get("accelplug", {})
                return found
    return {}


def per_request_options(factory: Callable[..., object]) -> dict[str, Mapping[str, Any]]:
    """Return the options that a request may set for itself, with their bounds."""
    return {name: meta for name in fields_of(factory) if (meta := _metadata(factory, name)).get("per_request")}


@dataclasses.dataclass(frozen=True, slots=True)
class Offer:
    """An option that requests may set for themselves: whose it is, its type and its bounds."""

    who: str
    annotation: object
    metadata: Mapping[str, Any]


def offers_of(who: str, factory: Callable[..., object]) -> dict[str, Offer]:
    """Return the options of a technique that requests may set for themselves.

    :param who: the technique as errors should name it.
    """
    fields = fields_of(factory)
    return {name: Offer(who, fields[name].annotation, metadata) for name, metadata in per_request_options(factory).items()}


def check_request(who: str, given: Mapping[str, Any], offers: Mapping[str, Offer]) -> None:
    """Refuse what nobody offers to requests, and values of the wrong type or out of bounds.

    :param who: who would take the options, as errors should name it.
    :raises OptionError: naming the option and what is allowed.
    """
    for name, value in given.items():
        if name not in offers:
            near = difflib.get_close_matches(str(name), offers, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise OptionError(f"{who} takes no per-request option {name!r}; {hint}it takes {', '.join(sorted(offers)) or 'none'}")
        check_value(offers[name].who, name, value, offers[name].annotation, offers[name].metadata)


def is_number(annotation: object) -> bool:
    """Whether values of an option's type are numbers or truth values, which a tensor can hold."""
    admitted = _admitted(annotation)
    return bool(admitted) and {int, float, bool}.issuperset(admitted)


def may_be_none(annotation: object) -> bool:
    """Whether values of an option's type are whole numbers or None."""
    return set(_admitted(annotation)) == {int, type(None)}


def check_options(who: str, factory: Callable[..., object], options: Mapping[str, Any]) -> None:
    """Refuse an option that the factory does not have, lacks, or has with other bounds or another type.

    :param who: the technique as errors should name it, e.g. ``drafter 'prompt_lookup' (accelplug 0.1)``.
    :raises OptionError: naming the option, the technique and what it accepts instead.
    """
    known, open_ended = fields_of(factory), takes_any(factory)
    for name, value in options.items():
        if name in known:
            check_value(who, name, value, known[name].annotation, _metadata(factory, name))
        elif name == "context" or not open_ended:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise OptionError(f"{who} has no option {name!r}; {hint}its options: {', '.join(known) or 'none'}")
    missing = [name for name, parameter in known.items() if parameter.default is parameter.empty and name not in options]
    if missing:
        raise OptionError(f"{who} needs {', '.join(missing)}; write {missing[0]}=... in its parentheses")


def check_value(who: str, name: str, value: Any, annotation: object, metadata: Mapping[str, Any]) -> None:
    """Refuse a value of the wrong scalar type or outside the declared bounds.

    :param annotation: the option's type, as an object or as text; other types than scalars, unions of them, and
        ``Literal`` admit anything.
    :raises OptionError: naming the option, the value and what is allowed.
    """
    if (words := words_of(annotation)) and value not in words:
        raise OptionError(f"{who}: {name}={value!r} is none of its values, it takes {' or '.join(map(repr, words))}")
    admitted = _admitted(annotation)
    if admitted and type(value) not in admitted and not (type(value) is int and float in admitted):
        wanted = " or ".join("None" if scalar is NoneType else scalar.__name__ for scalar in admitted)
        raise OptionError(f"{who}: {name}={value!r} is a {type(value).__name__}, it takes {wanted}")
    low, high = metadata.get("ge"), metadata.get("le")
    if (low is None and high is None) or (value is None and NoneType in admitted):
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise OptionError(f"{who}: {name}={value!r} is a {type(value).__name__}, it takes a number")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        bounds = f"at least {low}" if high is None else f"at most {high}" if low is None else f"between {low} and {high}"
        raise OptionError(f"{who}: {name}={value!r} is out of range, it takes {bounds}")


def words_of(annotation: object) -> tuple[object, ...]:
    """Return the values that a ``Literal`` lists; none for other annotations."""
    if isinstance(annotation, str):
        listed = re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", annotation.strip(), re.DOTALL)
        try:
            return tuple(ast.literal_eval(f"({listed[1]},)")) if listed else ()
        except (ValueError, SyntaxError):  # of names, which only the module knows
            return ()
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _admitted(annotation: object) -> tuple[type, ...]:
    """Return the scalar types that an annotation admits; none where it admits anything else too."""
    if isinstance(annotation, str):  # of a module with ``from __future__ import annotations``
        text = re.sub(r"^(?:typing\.)?Optional\[(.*)\]$", r"\1 | None", annotation.strip())
        names = [part.strip() for part in text.split("|")]
    else:
        parts = get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)
        names = [getattr(part, "__name__", "") for part in parts]
    return tuple(_SCALARS[name] for name in names) if all(name in _SCALARS for name in names) else ()
