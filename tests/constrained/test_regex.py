"""Expressions as sets of strings: against Python's `re`, and by the laws of sets."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelplug.constrained.regex.derive import is_empty, is_empty_if_decided, matches, shortest
from accelplug.constrained.regex.parse import UnsupportedPatternError, parse
from accelplug.constrained.regex.quoted import quoted
from accelplug.constrained.regex.tree import EVERY, NOTHING, alt, both, length, literal, without

ATOMS = st.sampled_from(["a", "b", "[ab]", "[^a]", ".", "\\d", "^a", "b$", "(?:a|b)", "(ab)"])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        inner.filter(lambda one: "^" not in one and "$" not in one).flatmap(
            lambda one: st.sampled_from([f"(?:{one})*", f"(?:{one}){{1,2}}"])
        ),
    ),
    max_leaves=6,
)
TEXTS = st.text("ab1\n", max_size=6)


@settings(max_examples=40, deadline=None)
@given(PATTERNS, TEXTS)
def test_search_is_what_python_finds(pattern, text):
    python = re.compile(pattern.replace("$", r"\Z"))  # "$" of ECMA 262 is the very end
    assert matches(parse(pattern), text) == (python.search(text) is not None)


@settings(max_examples=40, deadline=None)
@given(PATTERNS, PATTERNS, TEXTS)
def test_sets_are_sets(one, other, text):
    one, other = parse(one), parse(other)
    assert matches(both(one, other), text) == (matches(one, text) and matches(other, text))
    assert matches(alt(one, other), text) == (matches(one, text) or matches(other, text))
    assert matches(without(one), text) != matches(one, text)
    assert is_empty(both(one, without(one)))


@settings(max_examples=40, deadline=None)
@given(PATTERNS, PATTERNS)
def test_a_witness_is_in_the_set(one, other):
    regex = both(parse(one), without(parse(other)))
    found = shortest(regex)
    assert (found is None) == is_empty(regex)
    assert found is None or matches(regex, found)


@settings(max_examples=40, deadline=None)
@given(PATTERNS, st.text('ab1"\\\n\t\x01\u00e4', max_size=5))
def test_quoting_keeps_the_set(pattern, text):
    regex = both(parse(pattern), without(literal("b")))
    assert matches(quoted(regex), json.dumps(text, ensure_ascii=False)) == matches(regex, text)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"^(?=.*[A-Z])(?=.*\d).{4,}$", "aA1b", "aa1b"),
        (r"^(?!foo)[a-z]+$", "fobar", "foobar"),
        (r"^\p{Lu}\p{L}*$", "\u00c4rger", "\u00e4rger"),
        (r"^\u0061\x62\cJ$", "ab\n", "abJ"),
        (r"^[^\]]+$", "[", "]"),
        (r"^a|b$", "ax", "xa"),
        (r"^\d$", "1", "\u0663"),
    ],
)
def test_ecma_is_read(pattern, good, bad):
    assert matches(parse(pattern), good)
    assert not matches(parse(pattern), bad)


@pytest.mark.parametrize("pattern", [r"(a)\1", r"\bfoo", "(?<=a)b", "(", "a)", "[a", "*", "(^a)*", "a{3,2}"])
def test_what_is_not_regular_is_refused(pattern):
    with pytest.raises(UnsupportedPatternError):
        parse(pattern)


def test_a_search_that_would_not_end_is_given_up():
    hard = both(*(parse(f"(a.{{{n}}}b|c.{{{n + 3}}}d)") for n in range(20)), without(parse("x.{40}y")))
    assert is_empty_if_decided(hard) is None
    assert not is_empty(hard)


def test_lengths_and_edges():
    assert is_empty(both(length(3, None), length(0, 2)))
    assert not is_empty(length(2000, 3000))
    assert both(EVERY, literal("a")) == literal("a")
    assert is_empty(NOTHING)
