"""Options: how users name a technique and its settings, and how those are checked before anything is built.

The same technique in three spellings: ``"prompt_lookup(num_tokens=6)"``, ``{"name": "prompt_lookup", "num_tokens": 6}``,
or an object built by hand.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from accelplug._errors import OptionError

_SCALARS: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}


@dataclass(frozen=True, slots=True)
class Spec:
    """A technique by name, as the user wrote it. `distribution` is set by ``"distribution:name"``."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    distribution: str | None = None

    def __str__(self) -> str:
        prefix = f"{self.distribution}:" if self.distribution else ""
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"{prefix}{self.name}({options})" if options else f"{prefix}{self.name}"


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
    return field(default=default, metadata={"accelplug": metadata})


def parse_spec(given: str | Mapping[str, Any] | Spec) -> Spec:
    """Read ``"name"``, ``"name(key=1)"``, ``"distribution:name(key=1)"`` or ``{"name": ..., "key": 1}``.

    :raises OptionError: the text or mapping is not one of these.
    """
    if isinstance(given, Spec):
        return given
    if isinstance(given, Mapping):
        options = dict(given)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise OptionError(f"a technique given as a mapping needs a 'name', got {dict(given)!r}")
        return dataclasses.replace(parse_spec(name), options=options)
    head, parenthesis, rest = given.strip().partition("(")
    distribution, _, name = head.strip().rpartition(":")
    if not name.isidentifier() or (parenthesis and not rest.endswith(")")):
        raise OptionError(f"cannot read the technique {given!r}; write it like 'prompt_lookup(num_tokens=6)'")
    return Spec(name, _keywords(given, rest[:-1]) if parenthesis else {}, distribution or None)


def _keywords(given: str, text: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise OptionError(f"options of a technique are written key=value, got {given!r}")
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as exc:
        if isinstance(exc, OptionError):
            raise
        raise OptionError(f"cannot read the options in {given!r}; values are numbers, strings, True, False, None or lists") from exc


def fields_of(factory: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """Return the options a factory takes: its parameters, less ``context``."""
    parameters = inspect.signature(factory).parameters
    return {name: parameter for name, parameter in parameters.items() if name != "context"}


def _metadata(factory: Callable[..., object], name: str) -> Mapping[str, Any]:
    if dataclasses.is_dataclass(factory):
        for declared in dataclasses.fields(factory):
            if declared.name == name:
                found: Mapping[str, Any] = declared.metadata.get("accelplug", {})
                return found
    return {}


def per_request_options(factory: Callable[..., object]) -> dict[str, Mapping[str, Any]]:
    """Return the options that a request may set for itself, with their bounds."""
    return {name: meta for name in fields_of(factory) if (meta := _metadata(factory, name)).get("per_request")}


def check_options(who: str, factory: Callable[..., object], options: Mapping[str, Any]) -> None:
    """Refuse an option that the factory does not have, lacks, or has with other bounds or another type.

    :param who: the technique as errors should name it, e.g. ``drafter 'prompt_lookup' (accelplug 0.1)``.
    :raises OptionError: naming the option, the technique and what it accepts instead.
    """
    known = fields_of(factory)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise OptionError(f"{who} has no option {name!r}; {hint}its options: {', '.join(known) or 'none'}")
        check_value(who, name, value, known[name].annotation, _metadata(factory, name))
    missing = [name for name, p in known.items() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL and name not in options]
    if missing:
        raise OptionError(f"{who} needs {', '.join(missing)}; write {missing[0]}=... in its parentheses")


def check_value(who: str, name: str, value: Any, annotation: object, metadata: Mapping[str, Any]) -> None:
    """Refuse a value of the wrong scalar type or outside the declared bounds.

    :raises OptionError: naming the option, the value and what is allowed.
    """
    expected = _SCALARS.get(annotation if isinstance(annotation, str) else getattr(annotation, "__name__", ""))
    if expected is float and type(value) is int:
        value = float(value)
    if expected is not None and type(value) is not expected:
        raise OptionError(f"{who}: {name}={value!r} is a {type(value).__name__}, it takes {expected.__name__}")
    low, high = metadata.get("ge"), metadata.get("le")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        bounds = f"at least {low}" if high is None else f"at most {high}" if low is None else f"between {low} and {high}"
        raise OptionError(f"{who}: {name}={value!r} is out of range, it takes {bounds}")
