"""The settings under ``additional_config["accelplug"]``, checked before weights load and without building anything."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from accelplug._errors import OptionError
from accelplug.hooks.options import check_options
from accelplug.hooks.registry import Entry, registry
from accelplug.hooks.spelling import Spec

Runner = Literal["auto", "v1", "v2"]
OnRefused = Literal["stop", "serve"]
Length = Literal["fixed", "adaptive"]

DEFAULT_NUM_TOKENS: Final = 4
KEYS: Final = ("drafter", "verifier", "grammar", "num_tokens", "allow_lossy", "runner", "on_refused", "audit", "length")
VLLMS: Final = "vllm"
"""The grammar engine that is none: vLLM's own backend."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asked for.

    :param drafter: None where vLLM's own `speculative_config` drafts.
    :param num_tokens: the most tokens drafted for a request in one step; 0 where accelplug drafts nothing.
    :param allow_lossy: output may differ from the target model's.
    :param runner: the model runner to use; ``"auto"`` leaves the choice to vLLM.
    :param on_refused: what becomes of the engine where accelplug cannot run in it: ``"stop"``, or ``"serve"`` without it.
    :param audit: the share of greedy requests that is run again without drafts and compared.
    :param grammar: the engine for structured outputs; None where vLLM has them to itself.
    :param length: how many tokens vLLM's own drafter drafts: ``"fixed"``, what vLLM was told, or ``"adaptive"``, at most as many.
    """

    drafter: Spec | None
    verifier: Spec
    num_tokens: int
    allow_lossy: bool = False
    runner: Runner = "auto"
    on_refused: OnRefused = "stop"
    audit: float = 0.0
    grammar: Spec | None = None
    length: Length = "fixed"

    @property
    def drafts(self) -> bool:
        """Whether accelplug drafts: a drafter does, or the grammar alone."""
        return self.num_tokens > 0


def read_settings(given: object) -> Settings:
    """Check the settings and return them.

    :param given: ``{"drafter": "prompt_lookup(num_tokens=6)", "verifier": "token_wise", ...}``.
    :raises OptionError: an unknown key, a value of the wrong type, or a misspelt or misplaced option of a technique.
    :raises UnknownTechniqueError: nobody offers the drafter or verifier.
    """
    if not isinstance(given, Mapping):
        raise OptionError(f"accelplug's settings are a mapping such as {{'drafter': 'prompt_lookup'}}, got {given!r}")
    _check_keys(given)
    _, rule = _find("verifier", given.get("verifier", "token_wise"))
    spec, num_tokens = None, 0
    if "drafter" in given:
        drafter, spec = _find("drafter", given["drafter"])
        num_tokens = _num_tokens(drafter, spec, given)
    elif "num_tokens" in given:
        num_tokens = _positive(given["num_tokens"], "accelplug")
    words = _boolean(given, "allow_lossy"), _word(given, "runner", Runner), _word(given, "on_refused", OnRefused)
    return Settings(spec, rule, num_tokens, *words, _share(given, "audit"), _grammar(given), _word(given, "length", Length))


def _check_keys(given: Mapping[str, Any]) -> None:
    for key in given:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise OptionError(f"accelplug has no setting {key!r}; {hint}its settings: {', '.join(KEYS)}")
    if not {"drafter", "verifier", "grammar", "length"} & set(given):
        raise OptionError("accelplug is configured without a drafter; add {'drafter': 'prompt_lookup'} or remove the settings")
    if "drafter" not in given and "audit" in given:
        raise OptionError("accelplug: audit runs requests again without drafts, and those of vLLM's own drafters cannot be turned off; name a drafter")
    drafts = "drafter" in given or {"grammar", "num_tokens"} <= set(given)
    if drafts and "length" in given:
        raise OptionError("accelplug: length belongs to vLLM's own drafters, and accelplug drafts here; remove it, or write drafter 'adaptive(source=...)'")
    if not drafts and (useless := {"num_tokens", "runner"} & set(given)):
        raise OptionError(f"accelplug: {useless.pop()} belongs to a drafter, and vLLM's own drafts here; write it into speculative_config")


def _find(kind: str, given: object) -> tuple[Entry, Spec]:
    if not isinstance(given, str | Mapping):
        raise OptionError(f"{kind} {given!r} is no text or mapping; in vLLM a technique is written like 'prompt_lookup(num_tokens=6)'")
    entry, spec = registry().find(kind, given)
    check_options(str(entry), entry.resolve(), spec.options)
    return entry, spec


def _grammar(given: Mapping[str, Any]) -> Spec | None:
    if "grammar" not in given:
        return None
    return Spec(VLLMS) if given["grammar"] == VLLMS else _find("grammar", given["grammar"])[1]


def _num_tokens(drafter: Entry, spec: Spec, given: Mapping[str, Any]) -> int:
    """Return the draft length: the drafter's own option if it has one, else the setting of that name."""
    declared = inspect.signature(drafter.resolve()).parameters.get("num_tokens")
    if declared is None:
        return _positive(given.get("num_tokens", DEFAULT_NUM_TOKENS), "accelplug")
    if "num_tokens" in given:
        raise OptionError(f"{drafter} has its own num_tokens; write drafter '{spec.name}(num_tokens={given['num_tokens']})' instead of the setting")
    return _positive(spec.options.get("num_tokens", declared.default), str(drafter))


def _positive(value: object, who: str) -> int:
    if type(value) is not int or value < 1:
        raise OptionError(f"{who}: num_tokens={value!r} is no draft length; it takes a whole number of at least 1")
    return value


def _boolean(given: Mapping[str, Any], key: str) -> bool:
    value = given.get(key, False)
    if not isinstance(value, bool):
        raise OptionError(f"accelplug: {key}={value!r} is a {type(value).__name__}; it takes true or false")
    return value


def _share(given: Mapping[str, Any], key: str) -> float:
    value = given.get(key, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise OptionError(f"accelplug: {key}={value!r} is no share of the requests; it takes a number from 0 to 1")
    return float(value)


def _word(given: Mapping[str, Any], key: str, words: Any) -> Any:
    """Return the setting, or the first of its words where it is not given."""
    value = given.get(key, get_args(words)[0])
    if value not in get_args(words):
        raise OptionError(f"accelplug has no {key} {value!r}; it takes {', '.join(get_args(words))}")
    return value


def serves_anyway(given: object) -> bool:
    """Whether unchecked settings ask to serve where accelplug refuses."""
    return isinstance(given, Mapping) and given.get("on_refused") == "serve"

