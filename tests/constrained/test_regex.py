"""Expressions as sets of strings: against Python's `re`, and by the laws of sets."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelplug.constrained.regex.derive import is_empty, is_empty_if_decided, is_tangled, matches, shortest
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
LOOKS = st.recursive(
    st.sampled_from(["a", "-", ".", r"\w", r"\W", "[^a]", "a*", "-?", ".*", ".{1,2}", "^", "$", r"\b", r"\B"]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.builds("({}{}|{})".format, st.sampled_from(["?=", "?!", "?<=", "?<!", "?:"]), inner, inner),
        st.builds("{}|{}".format, inner, inner),
    ),
    max_leaves=8,
)
SHORT = ["".join(signs) for size in range(5) for signs in product("ab-", repeat=size)]


@settings(max_examples=40, deadline=None)
@given(PATTERNS, TEXTS)
def test_search_is_what_python_finds(pattern, text):
    python = re.compile(pattern.replace("$", r"\Z"))  # "$" of ECMA 262 is the very end
    assert matches(parse(pattern), text) == (python.search(text) is not None)


def test_what_looks_around_is_what_the_package_regex_finds():
    """Look-ahead, look-behind, word boundaries and anchors anywhere, in every short text."""
    regex, read = pytest.importorskip("regex"), Counter()

    @settings(max_examples=400, deadline=None, derandomize=True)
    @given(LOOKS)
    def the_same(pattern):
        try:
            found = parse(pattern)
        except UnsupportedPatternError:
            return
        searching = regex.compile(pattern, regex.VERSION0 | regex.ASCII)
        for text in SHORT:
            assert matches(found, text) == (searching.search(text) is not None), (pattern, text)
        read.update(sign for sign in ("(?=", "(?!", "(?<=", "(?<!", r"\b", r"\B", "^", "$") if sign in pattern)

    the_same()
    assert len(read) == 8
    assert min(read.values()) > 5, read


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
        (r"^(?!^foo$)(?!^bar$).*$", "fool", "bar"),
        (r".*(?<!\\)\$\{(.*?)\}", "${a}", r"\${a}"),
        (r"\bfoo\b", "a foo-b", "food"),
        (r"^[\u0020-\uD7FF\uD800\uDBFF-\uDC00\uDFFF]*$", "a\ud7ff", "\n"),
        (r"^\p{ASCII}+$", "a~", "\u00e4"),
    ],
)
def test_ecma_is_read(pattern, good, bad):
    assert matches(parse(pattern), good)
    assert not matches(parse(pattern), bad)


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"(a)\1", r"(\bfoo)", r"(?=a)\ba", "((?<=a)b)", "(?=a)(?<=b)", "(?<=a$)", "(?=a", r"\ba.*" * 30),
        *("(", "a)", "[a", "*", "(^a)*", "a{3,2}"),
    ],
)
def test_what_is_not_regular_is_refused(pattern):
    with pytest.raises(UnsupportedPatternError):
        parse(pattern)


def test_a_search_that_would_not_end_is_given_up():
    hard = both(parse("^[ab]*a[ab]{20}$"), parse("^[ab]*b[ab]{20}$"))  # nothing matches, as half a million derivatives would show
    assert is_empty_if_decided(hard) is None
    assert not is_empty(hard)


def test_a_search_goes_to_where_the_least_is_left():
    """A thousand characters that anything may be do not hide the few that must come."""
    assert is_empty_if_decided(both(length(20, 2048), parse(r"arn:aws[a-z\-]*:iam::\d{12}:role/?[a-z]+"))) is False
    assert is_empty_if_decided(both(length(1, 1024), parse(r"(?=.{1,1024}$)(https)://([^/]+)/(.+)"))) is False


def test_expressions_that_look_around_beside_each_other_are_too_much_for_an_engine():
    one, other = parse(r"\ba"), parse("(?!b).a")
    assert is_tangled(both(one, without(other)))
    assert not any(map(is_tangled, [one, other, both(one, length(1, 9)), both(parse("a.*b"), without(parse("c.")))]))


def test_lengths_and_edges():
    assert is_empty(both(length(3, None), length(0, 2)))
    assert not is_empty(length(2000, 3000))
    assert both(EVERY, literal("a")) == literal("a")
    assert is_empty(NOTHING)
