"""Schemas judged by instances: what a mask lets through token by token, and what the final check says then."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from accelplug._errors import ConstraintError
from accelplug.constrained.walking import legal_by_mask
from accelplug.hooks import CompiledGrammar, CompileLimits, GrammarEngine, GrammarSpec, GrammarStatement, Vocabulary

OUTCOMES: Final = ("right_by_mask", "right_with_check", "refused", "wrong")


class Verdict(NamedTuple):
    """One instance: what it should be, whether the mask let it through, and whether the final check did as well."""

    valid: bool
    by_mask: bool
    in_the_end: bool


def judged(
    engine: GrammarEngine, row: Mapping[str, Any], vocabulary: Vocabulary, limits: CompileLimits, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Judge one schema by its instances.

    Where the mask refuses a valid instance because of its order alone, the schema is judged again with properties in any order, and says so.

    :param row: ``name``, ``schema`` and ``tests``, a list of ``{"valid": ..., "data": ...}``.
    :param options: of GrammarSpec.
    """
    spec = GrammarSpec("json_schema", json.dumps(row["schema"], ensure_ascii=False), **(options or {}))
    found = _with(engine, spec, row, vocabulary, limits)
    if found["outcome"] == "wrong" and found["refused_valid"]:
        free = _with(engine, replace(spec, order="any"), row, vocabulary, limits)
        if free["outcome"].startswith("right"):
            return free
    return found


def _with(
    engine: GrammarEngine, spec: GrammarSpec, row: Mapping[str, Any], vocabulary: Vocabulary, limits: CompileLimits
) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        compiled = engine.compile(spec, vocabulary, limits)
    except ConstraintError as exc:
        stated = exc.statement if isinstance(exc.statement, GrammarStatement) else GrammarStatement("")
        return _line(row["name"], spec, stated, "refused", time.perf_counter() - began) | {"reason": str(exc), "refused_valid": 0}
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    try:
        verdicts = [_verdict(compiled, test, vocabulary) for test in row["tests"]]
    except ConstraintError as exc:
        return _line(row["name"], spec, compiled.statement, "refused", seconds) | {"reason": str(exc), "refused_valid": 0}
    line = _line(row["name"], spec, compiled.statement, _outcome(verdicts), seconds)
    return line | {
        "instances": len(verdicts),
        "refused_valid": sum(one.valid and not one.in_the_end for one in verdicts),
        "accepted_invalid": sum(not one.valid and one.in_the_end for one in verdicts),
        "judge_ms": round((time.perf_counter() - began) * 1e3, 2),
    }


def _verdict(compiled: CompiledGrammar, test: Mapping[str, Any], vocabulary: Vocabulary) -> Verdict:
    text = json.dumps(test["data"], ensure_ascii=False)
    by_mask = legal_by_mask(compiled.matcher(), text, vocabulary)
    return Verdict(bool(test["valid"]), by_mask, by_mask and compiled.check(text) is None)


def _outcome(verdicts: Sequence[Verdict]) -> str:
    if all(one.by_mask == one.valid for one in verdicts):
        return "right_by_mask"
    return "right_with_check" if all(one.in_the_end == one.valid for one in verdicts) else "wrong"


def _line(name: str, spec: GrammarSpec, statement: GrammarStatement, outcome: str, seconds: float) -> dict[str, Any]:
    said = {"enforced": list(statement.enforced), "checked": list(statement.checked), "refused": list(statement.refused)}
    return {
        "name": name,
        "engine": statement.engine,
        "order": spec.order,
        "outcome": outcome,
        **said,
        "compile_ms": round(seconds * 1e3, 2),
    }


def summary(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Count outcomes."""
    rows = list(lines)
    counts = {outcome: sum(row["outcome"] == outcome for row in rows) for outcome in OUTCOMES}
    times = sorted(row["compile_ms"] for row in rows)
    return {
        "schemas": len(rows),
        **counts,
        "right": counts["right_by_mask"] + counts["right_with_check"],
        "in_any_order": sum(row["order"] == "any" for row in rows),
        "compile_ms_median": times[len(times) // 2] if times else None,
        "compile_ms_max": times[-1] if times else None,
    }


def read_rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Read rows of a file to judge; empty lines are none.

    :raises ConstraintError: a line is no row.
    """
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
            tests = [{"valid": bool(test["valid"]), "data": test["data"]} for test in row["tests"]]
            json.dumps(tests, ensure_ascii=False).encode()  # half of a pair of surrogates is no text that a model could write
            yield {"name": str(row["name"]), "schema": row["schema"], "tests": tests}
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise ConstraintError(
                f'line {number} is none to judge; write {{"name": ..., "schema": ..., "tests": [{{"valid": ..., "data": ...}}]}}'
            ) from exc
