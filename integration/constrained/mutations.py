"""Valid instances by hypothesis-jsonschema and mutations of one place in them, through the masks, judged by `jsonschema` with format validators.

``python integration/constrained/mutations.py suite|random|FILE.jsonl [--instances N] [--every N]`` prints every instance that is judged wrong
although its schema was compiled, and a summary line last. FILE has a schema a line, ``{"name": ..., "schema": ...}``, with ``tests`` or without.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jsonschema
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.internal.conjecture.utils import many

from accelplug import ConstraintError
from accelplug.constrained.auto import Auto
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.schema.validation import validator_class
from accelplug.constrained.walking import legal_by_mask
from accelplug.hooks import CompileLimits, GrammarSpec

ROOT = Path(__file__).absolute().parents[2]
SUITE = ROOT.parent / "shared" / "data" / "json_schema_test_suite"
DRAFTS = {"draft2020-12": "https://json-schema.org/draft/2020-12/schema", "draft7": "http://json-schema.org/draft-07/schema#"}
QUIET = settings(
    max_examples=20, database=None, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


class Wrong(NamedTuple):
    """An instance that was judged wrong: ``accepts``, ``refuses``, ``claims`` (the statement does), ``contradicts`` or ``gave up``."""

    schema: str
    how: str
    why: str
    text: str


def oracle(schema):
    """Return `jsonschema`'s own validator, formats asserted, but for keywords that it reads in a way of its own.

    It divides floats for ``multipleOf``, takes every letter there is for ``\\w``, and passes over ``dependencies`` where a schema names no draft.
    """
    base = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    ours = validator_class(2020, declared=False).over({}, asserted=False).VALIDATORS
    names = ["multipleOf", "pattern", "patternProperties", "additionalProperties", *([] if "$schema" in schema else ["dependencies"])]
    extra = {name: ours[name] for name in names}
    return jsonschema.validators.extend(base, extra)(schema, format_checker=base.FORMAT_CHECKER)


@contextmanager
def within(seconds):
    """Raise TimeoutError after so many seconds."""

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)  # again and again: a first one may be lost in a callback
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Many(many):
    """Hypothesis has made a loop of the method by which hypothesis-jsonschema 0.23 draws properties."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._loop = iter(self.__enter__())

    def more(self):
        """Return whether there is one more."""
        if next(self._loop, self) is None:
            return True
        self.__exit__(None)
        return False


def instances_of(schema, count, seconds=10):
    """Return valid instances as far as hypothesis-jsonschema finds some."""
    from hypothesis_jsonschema import _from_schema

    if not hasattr(many, "more"):
        _from_schema.cu = SimpleNamespace(many=_Many)
    found = []
    try:
        with within(seconds):

            @settings(QUIET, max_examples=count)
            @given(_from_schema.from_schema(schema))
            def collect(value):
                found.append(plain(value))

            collect()
    except Exception:
        return found  # it raises what it likes about schemas that it does not support
    return found


def plain(value):
    """Return a value with integers written as such: 6 and 6.0 are one number, and masks write the first."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def mutated(value, chance):
    """Return a value that differs in one place."""
    whole = [copy.deepcopy(value)]
    path = (0, *chance.choice(_places(value)))
    at = whole
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = _other(at[path[-1]], chance)
    return whole[0]


def _places(value, path=()):
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in _places(child, (*path, key)))]


def _other(value, chance):
    if chance.random() < 0.2:
        return chance.choice([None, True, False, 0, 1, -1, 1.5, "", "a", [], {}, [0], {"a": 0}])
    if isinstance(value, bool) or value is None:
        return chance.choice([None, True, False, 0, ""])
    if isinstance(value, int | float):
        return chance.choice([value + 1, value - 1, -value, value + 0.5, value * 10, str(value)])
    if isinstance(value, str):
        at = chance.randrange(len(value) + 1)
        inserted = value[:at] + chance.choice('aZ0 .-\u00e4\n"') + value[at:]
        return chance.choice([value[:at] + value[at + 1 :], inserted, value * 2, value[:at]])
    if isinstance(value, list):
        at = chance.randrange(len(value) + 1)
        inserted = [*value[:at], chance.choice([None, 1, "a"]), *value[at:]]
        return chance.choice([value[:at] + value[at + 1 :], inserted, value + value[-1:], value[::-1]])
    left = dict(value)
    if left and chance.random() < 0.6:
        left.pop(chance.choice(list(left)))
        return left
    return left | {chance.choice(["a", "b", "x-new", "1", ""]): chance.choice([None, 1, "a", {}])}


class Judge:
    """Counts what becomes of instances, and keeps those that are judged wrong."""

    def __init__(self, engine=None, **options):
        self.engine, self.options = engine or Auto(), options
        self.counts: Counter[str] = Counter()
        self.wrong: list[Wrong] = []

    def schema(self, name, schema, values) -> list[Wrong]:
        """Judge a schema by values, and return what was wrong; where their order alone is refused, properties may come in any."""
        self.counts["schemas"] += 1
        for order in ("declared", "any"):
            counts, wrong = self._judged(name, schema, values, order)
            if not any(one.how == "refuses" for one in wrong):
                break
        self.counts += counts
        self.wrong += wrong
        return wrong

    def _judged(self, name, schema, values, order):
        counts, wrong, truth = Counter(), [], oracle(schema)
        spec = GrammarSpec("json_schema", json.dumps(schema, ensure_ascii=False), order=order, **self.options)
        try:
            grammar = self.engine.compile(spec, bytes_only(), CompileLimits())
        except ConstraintError as exc:
            counts["refused schemas"] += 1
            if "no value satisfies" in str(exc) and any(truth.is_valid(value) for value in values):
                wrong.append(Wrong(name, "contradicts", str(exc), json.dumps(values)[:200]))
            return counts, wrong
        for value in values:
            text = json.dumps(value, ensure_ascii=False)
            try:
                valid = truth.is_valid(value)
            except Exception:  # references to elsewhere, loops: the judge cannot say
                counts["unjudged"] += 1
                continue
            try:
                spelt = dict.fromkeys((text, text.replace("\x7f", "\\u007f")))  # engines want DEL escaped, rewritten grammars do not
                by_mask = any(legal_by_mask(grammar.matcher(), one, bytes_only()) for one in spelt)
            except ConstraintError as exc:
                wrong.append(Wrong(name, "gave up", str(exc)[:100], text))
                continue
            if valid and not by_mask and "breaks format" in (grammar.check(text) or ""):
                counts["formats read more strictly than by jsonschema"] += 1
                continue
            in_the_end = by_mask and grammar.check(text) is None
            counts.update({"instances": 1, "valid": valid, "right by mask": by_mask == valid, "right": in_the_end == valid})
            if in_the_end != valid:
                wrong.append(Wrong(name, "refuses" if valid else "accepts", "" if by_mask else "by mask", text))
            elif by_mask and not valid and not grammar.statement.checked:
                wrong.append(Wrong(name, "claims", "the mask accepts, nothing is left to the check", text))
        return counts, wrong

    def summary(self) -> dict[str, object]:
        """Return the counts, and the share of instances judged right."""
        most = max(1, self.counts["instances"])
        shares = {kind: round(self.counts[kind] / most, 5) for kind in ("right by mask", "right")}
        return {**self.counts, "shares": shares, "wrong": dict(Counter(one.how for one in self.wrong))}


def values_of(schema, count, seed):
    """Return valid instances, and two mutations of each."""
    chance = random.Random(seed)
    return [value for one in instances_of(schema, count) for value in (one, mutated(one, chance), mutated(one, chance))]


def of_suite() -> Iterator[tuple[str, object, list[object]]]:
    """Return the official suite's schemas with its own instances."""
    for draft, declared in DRAFTS.items():
        for path in sorted((SUITE / draft).glob("*.json")):
            for group in json.loads(path.read_text()):
                if isinstance(schema := group["schema"], dict):
                    values = [test["data"] for test in group["tests"]]
                    yield f"{draft}/{path.stem}: {group['description']}", {"$schema": declared, **schema}, values


def of_file(path) -> Iterator[tuple[str, object, list[object]]]:
    """Return a file's schemas with its own instances."""
    for line in Path(path).read_text().splitlines():
        row = json.loads(line)
        yield row["name"], row["schema"], [test["data"] for test in row.get("tests", ())]


def of_chance(count=300) -> Iterator[tuple[str, object, list[object]]]:
    """Return schemas drawn as the property test of masks draws them."""
    sys.path.insert(0, str(ROOT))
    from tests.constrained.test_random_schemas import SCHEMAS

    found = []

    @settings(QUIET, max_examples=count)
    @given(SCHEMAS)
    def collect(schema):
        found.append(schema)

    collect()
    return ((f"random {number}: {json.dumps(schema)}", schema, []) for number, schema in enumerate(found) if isinstance(schema, dict))


def run(rows, instances, *, every=1) -> Judge:
    """Judge every n-th schema by its own instances with three mutations each, and by generated ones with two."""
    judge = Judge()
    for number, (name, schema, own) in enumerate(rows):
        if number % every:
            continue
        chance = random.Random(number)
        values = [plain(value) for value in own]
        values += [mutated(value, chance) for value in values for _ in range(3)]
        for one in judge.schema(name, schema, values + values_of(schema, instances, number)):
            print("WRONG", *(part[:300] for part in one), flush=True)
    return judge


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--instances", type=int, default=10)
    parser.add_argument("--every", type=int, default=1)
    asked = parser.parse_args()
    sources = {"suite": of_suite, "random": of_chance}
    rows = sources[asked.source]() if asked.source in sources else of_file(asked.source)
    print(json.dumps({"summary": run(rows, asked.instances, every=asked.every).summary()}))
