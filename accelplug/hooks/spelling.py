"""How users name a technique and its settings. Two spellings in text, since the third is an object built by hand:
``"prompt_lookup(num_tokens=6)"`` and ``{"name": "prompt_lookup", "num_tokens": 6}``.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from accelplug._errors import OptionError

_READABLE = (str, int, float, list, tuple, dict, set, type(None))


@dataclass(frozen=True, slots=True)
class Spec:
    """A technique by name, as the user wrote it. `distribution` is set by ``"distribution:name"``."""

    name: str  # what it is registered under
    options: Mapping[str, Any] = field(default_factory=dict)  # as the factory takes them
    distribution: str | None = None  # whose it is to be; None: whoever offers it alone

    def __str__(self) -> str:
        prefix = f"{self.distribution}:" if self.distribution else ""
        options = ", ".join(f"{key}={_written(value)}" for key, value in self.options.items())
        return f"{prefix}{self.name}({options})" if options else f"{prefix}{self.name}"


def parse_spec(given: str | Mapping[str, Any] | Spec) -> Spec:
    """Read ``"name"``, ``"name(key=1)"``, ``"distribution:name(key=1)"`` or ``{"name": ..., "key": 1}``.

    :raises OptionError: the text or mapping is not one of these.
    """
    if isinstance(given, Spec):
        return given
    if isinstance(given, Mapping):
        return _from_mapping(given)
    if not isinstance(given, str):
        raise OptionError(f"a technique is written as text or a mapping, got {_short(given)}; write it like 'prompt_lookup(num_tokens=6)'")
    head, parenthesis, rest = given.strip().partition("(")
    distribution, _, name = head.strip().rpartition(":")
    if not name.isidentifier() or (parenthesis and not rest.endswith(")")):
        raise OptionError(f"cannot read the technique {_short(given)}; write it like 'prompt_lookup(num_tokens=6)'")
    return Spec(name, _keywords(given, rest) if parenthesis else {}, distribution or None)


def _from_mapping(given: Mapping[str, Any]) -> Spec:
    options = dict(given)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise OptionError(f"a technique given as a mapping needs a 'name', got {_short(dict(given))}")
    for key in options:
        if not isinstance(key, str):
            raise OptionError(f"options of a technique are named by text, got {_short(key)} in {_short(dict(given))}")
    named = parse_spec(name)
    if named.options:
        raise OptionError(f"the name {_short(name)} carries options; in a mapping they stand beside 'name'")
    return replace(named, options=options)


def _keywords(given: str, rest: str) -> dict[str, Any]:
    """Read the options in ``key=1, other=2)``, the text behind the opening parenthesis."""
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise OptionError(f"{_short(given)} is more than one technique; write one, like 'prompt_lookup(num_tokens=6)'")
        names = [keyword.arg for keyword in call.keywords]
        if call.args or None in names:
            raise OptionError(f"options of a technique are written key=value, got {_short(given)}")
        values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except OptionError:
        raise
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as exc:
        raise OptionError(f"cannot read the options in {_short(given)}; values are numbers, strings, True, False, None or lists") from exc
    if len(values) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise OptionError(f"option {twice!r} is given twice in {_short(given)}; give it once")
    return values


def _written(value: object) -> str:
    """Return what `parse_spec` reads as the value again; an object, which it cannot read, shortened."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_written(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        inside = ", ".join(map(_written, value)) + ("," if isinstance(value, tuple) and len(value) == 1 else "")
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    return repr(value) if isinstance(value, _READABLE) else _short(value)


def _short(given: object) -> str:
    """Return how it was written, shortened where it would fill the screen."""
    text = " ".join(repr(given).split())
    return text if len(text) <= 120 else f"{text[:80]}...{text[-20:]}"
