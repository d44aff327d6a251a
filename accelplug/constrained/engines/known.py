"""The engines by name, imported when they are asked for, and what each was seen to enforce."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Final

from accelplug._errors import ConstraintError
from accelplug.constrained.engines.recorded import RECORDED
from accelplug.constrained.probes import FORMS, PROBES, bytes_only, seen
from accelplug.constrained.worker import compiled_apart, compiled_beside, tried
from accelplug.hooks import CompileLimits, GrammarSpec, Matcher, Vocabulary

PACKAGES: Final = {"llguidance": "llguidance", "xgrammar": "xgrammar", "outlines": "outlines_core"}
_NESTED: Final = 'start: "[" %json {"type": "integer"} "]"\n%ignore /[ \\t\\r\\n]+/\n'  # blanks as in grammars of our own
_MATCHERS: Final = {"llguidance": "LlguidanceMatcher", "xgrammar": "XgrammarMatcher", "outlines": "OutlinesMatcher"}


def installed(name: str) -> bool:
    """Whether an engine's package can be imported."""
    return find_spec(PACKAGES[name]) is not None


def module_of(name: str) -> ModuleType:
    """Return the module of an engine.

    :raises ConstraintError: its package is not installed.
    """
    if not installed(name):
        raise ConstraintError(f"{PACKAGES[name]} is not installed; install accelplug[grammar], or name another engine")
    return import_module(f"accelplug.constrained.engines.on_{name}")


def begin(name: str, spec: GrammarSpec, vocabulary: Vocabulary, limits: CompileLimits | None = None) -> Callable[[], Matcher]:
    """Compile with one engine, as it is; return what makes matchers.

    :param limits: outlines works in a process of its own under them, the others try there what may take them long, and xgrammar is waited for no
        longer. None: neither.
    :raises ConstraintError: the engine refuses the grammar, would exceed a limit, or is not installed.
    """
    module = module_of(name)
    if limits is not None:
        tried(name, spec, limits)
    if name == "llguidance":
        found = module.template(module.source_of(spec), vocabulary)
    elif name == "outlines" and limits is not None:
        found = compiled_apart(name, spec, vocabulary, limits)
    elif limits is not None:
        module.compiler(vocabulary)  # making it counts against no limit
        found = compiled_beside(spec, lambda: module.compiled(spec, vocabulary), limits)
    else:
        found = module.compiled(spec, vocabulary)
    matcher = getattr(module, _MATCHERS[name])
    return lambda: matcher(found, vocabulary)


def begin_written(text: str, vocabulary: Vocabulary) -> Callable[[], Matcher]:
    """Compile a Lark grammar of our own, whose terminals end before what follows them; return what makes matchers.

    :raises ConstraintError: llguidance refuses it, or is not installed.
    """
    module = module_of("llguidance")
    found = module.template(module.lark_source(text), vocabulary)
    return lambda: module.LlguidanceMatcher(found, vocabulary)


@cache
def label(name: str) -> str:
    """Return an engine's name with its release."""
    return f"{name} {module_of(name).release()}"


@cache
def nests_behind_blanks() -> bool:
    """Whether the installed release of llguidance takes a schema within a grammar behind blanks; 1.8 to 1.9 refuse it, or give the text up."""
    if label("llguidance") in RECORDED:
        return True
    try:
        matcher = begin_written(_NESTED, bytes_only())()
        return matcher.accept(list(b"[ 1]")) == len(b"[ 1]")
    except ConstraintError:
        return False


@cache
def enforces(name: str, feature: str) -> bool:
    """Whether the installed release of an engine enforces a feature or a form: as recorded for that release, else probed once per process."""
    probes = FORMS.get(feature) or [PROBES[feature]] if feature in PROBES or feature in FORMS else []
    recorded = RECORDED.get(label(name))
    if recorded is not None:
        return bool(probes) and feature not in recorded
    return bool(probes) and all(seen(probe, lambda spec, vocabulary: begin(name, spec, vocabulary)) for probe in probes)
