"""A mask's expression of a format lets nothing through that the format's own validator refuses."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelplug.constrained.probes import bytes_only
from accelplug.constrained.regex.derive import matches
from accelplug.constrained.regex.parse import parse
from accelplug.constrained.schema.document import Document
from accelplug.constrained.schema.formats import FORMATS
from accelplug.constrained.walking import legal_by_mask
from accelplug.hooks import CompileLimits, GrammarSpec

EXACT = sorted(name for name, known in FORMATS.items() if known.exact)
IDENTIFIERS = ("uri", "uri-reference", "iri", "iri-reference")
PARTS = st.sampled_from(
    ["http", "urn", ":", "://", "//", "/", "a", "b@", "@", "1.2.3.4", "[::1]", "[v1.a:b]", "[", "]", ":80", "?", "#", "%20", "%", "&", ";", " ", '"', "{",
     "|", "^", "\u00e4", "\ue000", "\ufdd0", "\U0001fffe", "\U000e1000", "\x7f"]
)  # fmt: skip


@pytest.mark.parametrize("name", IDENTIFIERS)
def test_identifiers_are_what_the_validator_says(name):
    """RFC 3986 and RFC 3987, in both directions."""
    jsonschema = pytest.importorskip("jsonschema")
    pytest.importorskip("rfc3987")
    checker, seen = jsonschema.Draft202012Validator.FORMAT_CHECKER, {True: 0, False: 0}

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.sampled_from(["", "x:", "http://", "http://a"]), st.lists(PARTS, max_size=4).map("".join))
    def the_same(beginning, rest):
        text = beginning + rest
        seen[checker.conforms(text, name)] += 1
        assert matches(parse(FORMATS[name].pattern), text) == checker.conforms(text, name), text

    the_same()
    assert min(seen.values()) > 20


@pytest.mark.parametrize("name", sorted({*EXACT} - {*IDENTIFIERS}))
def test_exact_formats_are_the_whole_truth(name):
    """What matches is valid: were it not, the statement would call a keyword enforced that is not."""
    jsonschema = pytest.importorskip("jsonschema")
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER

    @settings(max_examples=30, deadline=None)
    @given(st.from_regex(FORMATS[name].pattern, fullmatch=True, alphabet=st.characters(max_codepoint=127)))
    def every_match_is_valid(text):
        assert matches(parse(FORMATS[name].pattern), text)
        assert checker.conforms(text, name), text

    every_match_is_valid()


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date", ["2024-02-29", "2000-02-29", "1999-12-31"], ["2023-02-29", "1900-02-29", "2024-04-31", "0000-01-01", "2024-1-1"]),
        (
            "date-time",
            ["2024-02-29T23:59:59Z", "2024-01-01t00:00:00.123+01:30"],
            ["2024-01-01", "2024-01-01T24:00:00Z", "2024-01-01T00:00:00"],
        ),
        ("ipv4", ["0.0.0.0", "255.255.255.255"], ["256.0.0.0", "01.0.0.0", "1.1.1"]),
        ("ipv6", ["::", "::1", "1::", "1:2:3:4:5:6:7:8", "::ffff:1.2.3.4", "1:2::7:8"], ["1:2:3", ":::", "1::2::3", "g::"]),
        ("uuid", ["2eb8aa08-aa98-11ea-b4aa-73b441d16380"], ["2eb8aa08aa9811eab4aa73b441d16380", "x"]),
        ("email", ["a@b.c", "joe.bloggs@example.com", "te~st@example.com"], ["a", "a@", ".a@b", "a..b@c"]),
        ("uri", ["http://a/b?c=d#e", "urn:x:y", "mailto:a@b", "x://[::1]:8/"], ["a b", "//a", "\\\\a", "http://[a", "x://[]", "x:]", "x://[::1]a"]),
        ("uri-reference", ["", "a/b:c", "//h", "?#"], ["a:]", ":", "a b", "%2"]),
        ("iri", ["http://\u00e4/\u4e2d?\ue000"], ["\u00e4:a", "x:\ue000", "x:\ufdd0"]),
        ("json-pointer", ["", "/a~0b~1/c", "/"], ["a", "/a~2"]),
        ("duration", ["P1D", "PT1H30M", "P2W", "P1Y2M3DT4H"], ["P", "PT", "1D", "P1D2H", "P1DT"]),
    ],
)
def test_known_formats(name, good, bad):
    document = Document({"type": "string", "format": name}, asserted=True)
    for text in good:
        assert matches(parse(FORMATS[name].pattern), text), text
        assert document.validator.is_valid(text), text
    for text in bad:
        assert not document.validator.is_valid(text), text


def test_a_format_that_no_expression_of_an_engine_says_is_followed_by_the_mask():
    """The length of a host's name is said by looking ahead."""
    pytest.importorskip("llguidance")
    from accelplug.constrained.auto import Auto

    grammar = Auto().compile(GrammarSpec("json_schema", '{"type": "string", "format": "hostname"}'), bytes_only(), CompileLimits())
    assert legal_by_mask(grammar.matcher(), '"a-b.example"', bytes_only())
    for text in ("-a.b", "a b", "a..b", ".".join(["a" * 60] * 5)):
        assert not legal_by_mask(grammar.matcher(), json.dumps(text), bytes_only()), text


def test_unknown_formats_describe():
    assert Document({"format": "textarea"}, asserted=True).validator.is_valid("anything")
    assert not Document({"format": "date"}, asserted=True).validator.is_valid("anything")
    assert Document({"format": "date"}, asserted=False).validator.is_valid("anything")


@pytest.mark.parametrize(
    ("name", "bad"),
    [("date", "2023-02-29"), ("date", "0000-01-01"), ("date-time", "2023-02-29T12:00:00Z"), ("time", "12:00:60Z"), ("ipv4", "01.0.0.0"), ("ipv6", "1::2::3")],
)
def test_what_the_statement_calls_enforced_is_no_engines_notion_of_a_format(name, bad):
    """llguidance's, xgrammar's and outlines' own dates know no calendar."""
    pytest.importorskip("llguidance")
    from accelplug.constrained.auto import Auto

    grammar = Auto().compile(GrammarSpec("json_schema", json.dumps({"type": "string", "format": name})), bytes_only(), CompileLimits())
    assert legal_by_mask(grammar.matcher(), json.dumps(bad), bytes_only()) is False or "#/format" in grammar.statement.checked
    assert grammar.check(json.dumps(bad)) is not None
    assert ("#/format" in grammar.statement.enforced) is FORMATS[name].exact


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("ipv6", ["::1", "::ffff:1.2.3.4", "1:2:3:4:5:6:1.2.3.4", "1::1.2.3.4"]),
        ("email", ["a@b.c", '"a b"@c.d', '""@a.b', "a@[IPv6:::1]", "a@[1.2.3.4]"]),
        ("uri", ["http://a/b", "http://[::1]/", "http://[::ffff:1.2.3.4]/"]),
    ],
)
def test_what_is_valid_is_not_refused_by_an_engines_narrower_notion(name, good):
    pytest.importorskip("llguidance")
    from accelplug.constrained.auto import Auto
    from accelplug.constrained.engines.known import label

    if label("llguidance") == "llguidance 1.7.0":  # which writes no quotes that an expression of a schema asks for
        good = [text for text in good if '"' not in text]
    grammar = Auto().compile(GrammarSpec("json_schema", json.dumps({"type": "string", "format": name}), strict=True), bytes_only(), CompileLimits())
    assert [text for text in good if not legal_by_mask(grammar.matcher(), json.dumps(text), bytes_only()) or grammar.check(json.dumps(text))] == []


@pytest.mark.parametrize("name", EXACT)
def test_what_is_the_whole_truth_passes_strict_mode(name):
    pytest.importorskip("llguidance")
    from accelplug.constrained.auto import Auto

    for schema in ({"format": name}, {"not": {"format": name}, "type": "string"}):
        grammar = Auto().compile(GrammarSpec("json_schema", json.dumps(schema), strict=True), bytes_only(), CompileLimits())
        assert grammar.statement.checked == ()
