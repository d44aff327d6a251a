"""The grammar engines: ``auto`` routes each grammar to the engine that enforces most of it, the others are one engine as it is.

Paper      JSONSchemaBench (arXiv 2501.10868) for what engines are judged by
Output     only what the grammar allows; the statement says what is enforced by mask and what is checked at the end
Hosts      transformers, vllm
Needs      llguidance, xgrammar or outlines-core; jsonschema for schemas
Devices    masks are worked out on the CPU
Cost       compiling once a grammar, milliseconds to seconds; a mask a step
Good for   JSON that must follow a schema
Poor for   what is only wished for: say it in the prompt
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Final

from accelplug._errors import ConstraintError
from accelplug.constrained import expressions
from accelplug.constrained.engines.known import begin, installed, label
from accelplug.constrained.engines.matching import Compiled
from accelplug.constrained.finishing import check_ends, problem
from accelplug.constrained.forms import stated
from accelplug.constrained.intersecting import intersected
from accelplug.constrained.routing import Route, route_other, route_schema
from accelplug.constrained.schema.document import Document
from accelplug.constrained.tags.judged import with_final_check
from accelplug.constrained.time_limit import within
from accelplug.constrained.worker import tried
from accelplug.hooks import CompiledGrammar, CompileLimits, GrammarSpec, GrammarStatement, Vocabulary

MOST_KEPT: Final = 256


class Cached:
    """An engine that compiles each grammar once for each vocabulary, and keeps the last ones."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[GrammarSpec, str], CompiledGrammar] = OrderedDict()
        self._lock = Lock()

    def compile(self, spec: GrammarSpec, vocabulary: Vocabulary, limits: CompileLimits) -> CompiledGrammar:
        """Compile a grammar, or return what was compiled before.

        :raises ConstraintError: naming the keyword or the limit.
        """
        key = spec, vocabulary.digest
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        if spec.kind == "all_of":
            parts = spec.parts()
            found: CompiledGrammar = intersected(parts, [self.compile(part, vocabulary, limits) for part in parts], vocabulary)
        else:
            found = self._compile(spec, vocabulary, limits)
        if spec.kind == "structural_tag":
            found = with_final_check(found, spec, limits)
        with self._lock:
            self._kept[key] = found
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return found

    def _compile(self, spec: GrammarSpec, vocabulary: Vocabulary, limits: CompileLimits) -> CompiledGrammar:
        raise NotImplementedError


class Auto(Cached):
    """Routes each grammar to the engine that enforces most of it; schemas that none enforces whole are rewritten first."""

    def _compile(self, spec: GrammarSpec, vocabulary: Vocabulary, limits: CompileLimits) -> CompiledGrammar:
        if spec.kind != "json_schema":
            route = route_other(spec, vocabulary, limits)
            return Compiled(route.statement, route.begin, expressions.ending(spec, route.statement))
        document = Document(spec.value(), asserted=spec.format == "assert")
        if installed("llguidance"):  # the others try what they compile themselves
            tried("auto", spec, limits)
        with within(limits.seconds):
            route = route_schema(document, spec, vocabulary, limits)
            check_ends(document)  # last: what refuses keywords by their places says more
        return _checked(document, route)


class Alone(Cached):
    """One engine as it is; what it was not seen to enforce is checked at the end."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def _compile(self, spec: GrammarSpec, vocabulary: Vocabulary, limits: CompileLimits) -> CompiledGrammar:
        if spec.kind != "json_schema":
            statement = expressions.stated(self.name, spec)
            return Compiled(statement, begin(self.name, spec, vocabulary, limits), expressions.ending(spec, statement))
        document = Document(spec.value(), asserted=spec.format == "assert")
        if spec.order != "declared":
            raise ConstraintError(f"{self.name} alone writes properties as they are declared; use the engine auto for any order")
        enforced, checked = stated(self.name, document)
        if spec.strict and checked:
            statement = GrammarStatement(label(self.name), enforced, (), checked)
            raise ConstraintError(
                f"strict: {self.name} does not enforce {', '.join(checked[:5])}; use the engine auto, or drop strict", statement
            )
        route = Route(begin(self.name, spec, vocabulary, limits), GrammarStatement(label(self.name), enforced, checked))
        with within(limits.seconds):
            check_ends(document)
        return _checked(document, route)


def llguidance() -> Alone:
    """Make the engine ``llguidance``."""
    return Alone("llguidance")


def xgrammar() -> Alone:
    """Make the engine ``xgrammar``."""
    return Alone("xgrammar")


def outlines() -> Alone:
    """Make the engine ``outlines``."""
    return Alone("outlines")


def _checked(document: Document, route: Route) -> Compiled:
    return Compiled(route.statement, route.begin, lambda text: problem(document, text))
