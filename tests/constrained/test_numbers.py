"""Bounds, multiples and their negations against exact fractions, in every spelling of a number.

The judge is Python's `fractions`: jsonschema divides floats, by which 0.3 is no multiple of 0.1.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from packaging.version import Version

from accelplug import ConstraintError
from accelplug.constrained.regex.decimals import multiples, up_to
from accelplug.constrained.regex.derive import matches
from accelplug.constrained.schema.atoms import Bound, Integer
from accelplug.constrained.schema.document import Document
from accelplug.constrained.schema.numbers import Numbers
from accelplug.hooks import CompileLimits, GrammarSpec

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")

from accelplug.constrained.auto import Auto
from accelplug.constrained.engines.known import label, nests_behind_blanks
from accelplug.constrained.lark.compile import to_lark
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.walking import legal_by_mask

ENGINE = Auto()
SEEN: Counter[str] = Counter()
PLAIN = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

DECIMALS = st.builds(lambda digits, places: Decimal(digits).scaleb(-places), st.integers(0, 2500), st.sampled_from([0, 0, 1, 2, 3]))
SIGNED = st.builds(lambda value, sign: value * sign, DECIMALS, st.sampled_from([1, 1, -1]))
STEPS = st.sampled_from(["1", "2", "3", "7", "10", "15", "100", "0.5", "0.1", "0.01", "0.25", "0.3", "1.5", "2.5", "0.75", "1e-3", "0.7", "12"])


def number(value):
    """Return a decimal as the JSON number that a schema's author would write."""
    return json.loads(format(value, "f"))


@st.composite
def schemas(draw):
    """Draw a schema of one number, and what exactly satisfies it."""
    schema, holds = {"type": draw(st.sampled_from(["number", "number", "integer"]))}, []
    if schema["type"] == "integer":
        holds.append(lambda value: value.denominator == 1)
    for keyword, test in _BOUNDS.items():
        if draw(st.booleans()):
            bound = draw(SIGNED)
            schema[keyword] = number(bound)
            holds.append(lambda value, test=test, bound=Fraction(bound): test(value, bound))
    if draw(st.booleans()):
        step = draw(STEPS)
        schema["multipleOf"] = json.loads(step)
        holds.append(lambda value, step=Fraction(step): value % step == 0)
    if draw(st.integers(0, 3)) == 0:
        schema["not"] = {"type": "integer"}
        holds.append(lambda value: value.denominator != 1)
    return schema, lambda value: all(test(value) for test in holds)


_BOUNDS = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
}


def spellings(value):
    """Return a number's spellings: the first as `json.dumps` writes it, or nearly."""
    plain = format(value.normalize(), "f")
    mantissa = f"{value.normalize():E}"
    found = [plain, plain + ("0" if "." in plain else ".0"), mantissa.lower(), mantissa.replace("+", "")]
    return list(dict.fromkeys(found)) if value else ["-0", "-0.0"] if value.is_signed() else ["0", "0.0"]


def near(schema, chance):
    """Return numbers about where a schema's bounds and multiples change their mind."""
    marks = [Fraction(str(value)) for key, value in schema.items() if key not in {"type", "not"}]
    step = marks[-1] if "multipleOf" in schema else Fraction(1)
    found = [mark + one for mark in marks for one in (0, step, -step, Fraction(1, 1000), Fraction(-1, 10))]
    return [Decimal(one.numerator) / Decimal(one.denominator) for one in found if 10**9 % one.denominator == 0] + chance


@PLAIN
@example(({"type": "number", "minimum": 0}, lambda value: value >= 0), [Decimal("-0.0"), Decimal("1e300"), Decimal("1e-300")])
@given(schemas(), st.lists(SIGNED, max_size=4))
def test_a_number_is_legal_where_it_satisfies_the_schema(drawn, values):
    schema, holds = drawn
    try:
        grammar = ENGINE.compile(GrammarSpec("json_schema", json.dumps(schema)), bytes_only(), CompileLimits())
    except ConstraintError as exc:
        if "no value satisfies" not in str(exc):
            raise
        assert not any(holds(Fraction(value)) for value in near(schema, values))
        SEEN["contradictions"] += 1
        return
    for value in near(schema, values):
        valid = holds(Fraction(value))
        for place, text in enumerate(spellings(value)):
            by_mask = legal_by_mask(grammar.matcher(), text, bytes_only())
            assert valid or not by_mask or grammar.statement.checked, f"{schema} accepts {text}"
            needed = place < (2 if schema["type"] == "number" and "rewritten" in grammar.statement.engine else 1)
            assert by_mask or not valid or not needed or text.startswith("-0"), f"{schema} refuses {text}"
            if not grammar.statement.checked:
                SEEN[f"{'valid' if valid else 'invalid'} spelling {min(place, 2)}, {'legal' if by_mask else 'illegal'}"] += 1


@PLAIN
@given(DECIMALS, DECIMALS, st.booleans())
def test_a_bound_tells_numbers_apart_in_every_spelling(bound, value, exclusive):
    wanted = value < bound or (value == bound and not exclusive)
    found = {text: matches(up_to(number(bound), exclusive=exclusive), text) for text in spellings(value)}
    assert found == dict.fromkeys(found, wanted)


@PLAIN
@given(st.none() | st.integers(-2000, 2000), st.none() | st.integers(-2000, 2000), st.integers(-3000, 3000))
def test_an_interval_of_integers_holds_those_between_its_ends(low, high, value):
    bounds = {"minimum": low, "maximum": high}
    if low is not None and high is not None and low > high:
        return
    numbers = Numbers.of((Integer(), *[Bound(bound, lower=name == "minimum", exclusive=False) for name, bound in bounds.items() if bound is not None]))
    sides = (numbers.magnitudes, value) if value >= 0 else (numbers.mirrored().magnitudes, -value)
    assert matches(sides[0], str(sides[1])) == ((low is None or low <= value) and (high is None or value <= high))
    assert not matches(sides[0], f"0{abs(value)}")


def test_long_multiples_are_checked_where_the_engine_takes_no_schema_within_a_grammar():
    """llguidance 1.8 and 1.9 take none behind blanks."""
    document = Document({"type": "array", "items": {"type": "integer", "multipleOf": 7}, "uniqueItems": False}, asserted=True)
    nested, checked = (to_lark(document, "any", time.monotonic() + 60, CompileLimits(), may_nest=may_nest) for may_nest in (True, False))
    assert ("%json" in nested.text, "%json" in checked.text) == (True, False)
    assert checked.inexact == ("#/items/multipleOf",)
    assert nests_behind_blanks() is (Version(label("llguidance").partition(" ")[2]) < Version("1.8"))


@PLAIN
@given(STEPS, st.integers(0, 5000), DECIMALS)
def test_multiples_are_told_apart_in_every_plain_spelling(step, count, other):
    regex = multiples(Fraction(step))
    if regex is None:
        return
    for value in (Decimal(step) * count, other):
        wanted = Fraction(value) % Fraction(step) == 0
        assert [matches(regex, text) for text in spellings(value)[:2]] == [wanted, wanted]


def test_everything_has_occurred():
    """Runs behind the ones above: without these events they would have proved nothing."""
    assert SEEN["contradictions"]
    for spelling in range(3):
        assert SEEN[f"valid spelling {spelling}, legal"] > 20
        assert SEEN[f"invalid spelling {spelling}, illegal"] > 20
