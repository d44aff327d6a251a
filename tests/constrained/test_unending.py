"""Lark grammars whose terminals take what should follow them: llguidance, which forces what has one way on, would force for ever."""

from __future__ import annotations

import pytest

from accelplug import ConstraintError
from accelplug.hooks import CompileLimits, GrammarSpec

pytest.importorskip("llguidance")

from accelplug.constrained.auto import Alone
from accelplug.constrained.engines.unending import may_go_on
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.walking import legal_by_mask

REPEAT_ONE_TEXT = [
    "start: A B\nA: /a+/\nB: /a/\n",
    "A: /(ab)*/",
    "A: /[a]+/",
    "A: /a{2,}/",
    "A: /a+/i",
    'A: "a"+',
    'A: ("a" "b"){2,}',
    'B: "a"\nA: B+',
    'start: /x(?:ab){3,}/ "a"',
    'A: "x" /b+/ | "c"',
    "A: /[ab]+/ & /[ac]+/",
    "A: /[ab]+/ & ~/b/",
    "A: /(a|a)+/",
    "A: /(a?a)+/",
    "A: /[aa]+/",
    "A: /[a-a]+/",
    r"A: /[\x61a]+/",
    r"A: /[\x{61}a]+/",
    r"A: /[^\x00-\x60\x62-\u{10FFFF}]+/",
    "A: /[ab&&a]+/",
    "A: /[ab--b]+/",
    "A: /[a[a]]+/",
    "A: /[b-a]+/",
    "A: /(a[bc]{0})+/",
    "A: /(a[bc]{0,0})+/",
    "A: /(?x)[a ]+/",
    "A: /[a ]+/x",
    'A: /[a ]+/ix "b"',
    r"A: /\p{Zl}+/",
    "%import common.LF\nA: LF+",
    "%import common.CR -> B\nA: B+",
    'A: ("a" | "a")+',
]
VARY = [
    "start: A B\nA: /[a-z]+/\nB: /a/\n",
    'start: "a"* "b"',
    'start: ("a" y)+\ny: /a/',
    "start: <[3]>* N\nN: D+\nD: /[0-9]/",
    "%import common.DIGIT\nN: DIGIT+",
    'E: "\\"" (/[^"\\\\]/ | /\\\\./)* "\\""',
    r"A: /(?:\\.|[^\"\\])*/",
    r"A: /\d+(\.\d+)?/",
    "A: /a{2,5}/",
    'A: "a&b+" "c*"',
    "// a+ /b+/\nA: /[a-z_]\\w*/",
    '%ignore /[ \\t]+/\nstart: "a"',
    "A: /.*&~x/",
    r"A: /[^\"\\\x00-\x1F\x7F]*/",
    "A: /[a&-~^]+/",
    "A: /x[0-9a-f]+/ | (/x./)",
    r"A: /[a\]]*/",
]


@pytest.mark.parametrize("lark", REPEAT_ONE_TEXT)
def test_a_terminal_that_repeats_one_text_may_go_on(lark):
    assert may_go_on(lark)


@pytest.mark.parametrize("lark", VARY)
def test_others_do_not_and_lose_nothing(lark):
    assert not may_go_on(lark)


def compiled(kind, text):
    return Alone("llguidance").compile(GrammarSpec(kind, text), bytes_only(), CompileLimits())


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("lark", 'start: "x" A "a"\nA: /(ab)+/'),
        ("lark", "start: A B\nA: C+\nB: C\nC: /a/"),
        ("lark", "start: A B\nA: /(a|a)+/\nB: /a/"),
        ("lark", "start: A B\nA: /(a?a)+/\nB: /a/"),
        ("lark", "start: A B\nA: /[aa]+/\nB: /a/"),
        ("ebnf", 'root ::= x "a"\nx ::= [a]+\n'),
    ],
)
def test_what_begins_so_is_refused(kind, text):
    with pytest.raises(ConstraintError, match="begins in one way only"):
        compiled(kind, text)


def test_what_comes_to_it_later_goes_on_under_its_mask_and_comes_back():
    grammar = compiled("lark", 'start: "x" | "y" A B | "z" A "b"\nA: /a+/\nB: /a/')
    assert legal_by_mask(grammar.matcher(), "x", bytes_only())
    assert legal_by_mask(grammar.matcher(), "zaaab", bytes_only())
    matcher = grammar.matcher()
    assert matcher.accept(list(b"yaaaa")) == 5
    assert matcher.forced() == []
    assert not legal_by_mask(grammar.matcher(), "yaaa", bytes_only())


def test_what_may_not_go_on_is_forced_as_before():
    assert compiled("lark", 'start: "abc" A\nA: /[a-z]+/').matcher().forced() == list(b"abc")
