"""Which techniques to use, from a file: what ``accelplug tune`` writes, and ``attach(model, **load_config(file))`` takes."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from accelplug._errors import OptionError

TYPES: Final[Mapping[str, tuple[type, ...]]] = {"drafter": (str, dict), "verifier": (str, dict), "allow_lossy": (bool,)}


def load_config(path: str | Path) -> dict[str, Any]:
    """Return the techniques that a TOML file names, as keyword arguments of `attach` and `generate`.

    :param path: a file with ``drafter = "prompt_lookup(num_tokens=6)"``, and maybe ``verifier`` and ``allow_lossy``.
    :raises OptionError: the file cannot be read, is no TOML, or has a key or a value that is none of these.
    """
    file = Path(path).expanduser()
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as exc:
        raise OptionError(f"cannot read the configuration {path} ({type(exc).__name__}); 'accelplug tune' writes one") from exc
    except ValueError as exc:  # of TOML or of UTF-8
        raise OptionError(f'the configuration {path} is no TOML ({exc}); write drafter = "prompt_lookup" into it') from exc
    for key, value in found.items():
        _check(str(path), key, value)
    return found


def _check(path: str, key: str, value: object) -> None:
    if key not in TYPES:
        near = difflib.get_close_matches(key, TYPES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise OptionError(f"the configuration {path} has no setting {key!r}; {hint}its settings: {', '.join(TYPES)}")
    if not isinstance(value, TYPES[key]):
        wanted = "true or false" if key == "allow_lossy" else "text or a table"
        raise OptionError(f"the configuration {path}: {key}={value!r} is a {type(value).__name__}, it takes {wanted}")
