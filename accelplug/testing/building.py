"""Build the technique that a contract class names, as often as a check needs a fresh one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn
from unittest import SkipTest

from accelplug.hooks.discovery import load_registry
from accelplug.hooks.registry import Registry, Technique, registry
from accelplug.hooks.spelling import Spec, parse_spec


class Conformance:
    """What the contract classes share.

    :cvar technique: a name with options, ``"echo(times=2)"``, a mapping, or an object, of which every check gets a copy.
    :cvar plugins: plugins that are not installed, as `load_registry` takes them.
    """

    kind: ClassVar[str]
    technique: ClassVar[Any]
    plugins: ClassVar[Sequence[Any]] = ()

    def registry(self) -> Registry:
        """Return where the name is looked up."""
        return load_registry(self.plugins) if self.plugins else registry()

    def given(self) -> Any:
        """Return what a user would pass as ``drafter=`` or ``verifier=``; an object is copied, so that none is used twice."""
        named = isinstance(self.technique, str | Mapping | Spec)
        return self.technique if named else copy.deepcopy(self.technique)

    def build(self, options: Mapping[str, Any] | None = None) -> Technique:
        """Build the technique anew, for the kit's own small model.

        :param options: to be other than the class says; an object is made anew with them, which takes a dataclass.
        :raises AccelplugError: it does not take them, and so TypeError or ValueError for an object.
        """
        from accelplug.testing.models import build_context

        given = self.given()
        if options and isinstance(given, str | Mapping | Spec):
            spec = parse_spec(given)
            given = dataclasses.replace(spec, options={**spec.options, **options})
        elif options:
            given = dataclasses.replace(given, **options)
        return self.registry().build(self.kind, given, build_context())


def require(held: object, sentence: str) -> None:
    """Fail the check with a sentence that says what broke, for whom, and what to do."""
    if not held:
        raise AssertionError(sentence)


def skip(sentence: str) -> NoReturn:
    """Leave a check out, saying why; every runner of tests knows this exception."""
    raise SkipTest(sentence)
