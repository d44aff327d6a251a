"""Settings from a file: ``ACCELPLUG_CONFIG=accelplug.toml vllm serve MODEL``, for whoever cannot change the command line."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from accelplug._errors import HostError, OptionError
from accelplug.hosts.vllm.plugin import CONFIG_FILE, KEY


def settings_of(additional_config: object) -> Any:
    """Return the settings that apply, unchecked: those of additional_config, else those of the file, else None.

    :param additional_config: vLLM's setting of that name, as the user gave it.
    :raises OptionError: the file cannot be read or is no TOML.
    :raises HostError: both are there.
    """
    named = isinstance(additional_config, dict) and KEY in additional_config
    path = os.environ.get(CONFIG_FILE)
    if not path:
        return additional_config[KEY] if named else None  # type: ignore[index]
    if named:
        raise HostError(f"accelplug is configured twice, by additional_config and by {CONFIG_FILE}={path}; remove one of them")
    try:
        return tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as exc:
        raise OptionError(f"{CONFIG_FILE}={path} cannot be read ({type(exc).__name__}); name a file such as 'accelplug tune' writes") from exc
    except ValueError as exc:  # of TOML or of UTF-8
        said = " ".join(str(exc).split())
        raise OptionError(f'{CONFIG_FILE}={path} is no TOML ({said}); write drafter = "prompt_lookup" into it') from exc
