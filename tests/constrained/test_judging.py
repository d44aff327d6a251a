"""``accelplug schema``: one schema explained, a file of schemas judged by instances."""

from __future__ import annotations

import json
import random
import re

import pytest

from accelplug.cli import main
from accelplug.hooks import CompileLimits, GrammarSpec

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")

from accelplug.constrained.auto import Auto
from accelplug.constrained.judging import judged
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.walking import example, walk

ROWS = [
    ({"type": "integer", "not": {"const": 3}}, [(True, 4), (False, 3), (False, "x")], "right_by_mask"),
    ({"type": "array", "uniqueItems": True}, [(True, [1, 2]), (False, [1, 1])], "right_with_check"),
    ({"$ref": "https://example.com/nowhere"}, [(True, 1)], "refused"),
    ({"type": "integer"}, [(False, 1)], "wrong"),
    ({"type": "object", "properties": {"a": {}, "b": {}}}, [(True, {"b": 1, "a": 1})], "right_by_mask"),
]


def rows():
    for number, (schema, tests, _) in enumerate(ROWS):
        yield {"name": f"schema {number}", "schema": schema, "tests": [{"valid": valid, "data": data} for valid, data in tests]}


def test_outcomes_are_told_apart():
    found = [judged(Auto(), row, bytes_only(), CompileLimits()) for row in rows()]
    assert [line["outcome"] for line in found] == [outcome for _, _, outcome in ROWS]
    assert [line["order"] for line in found] == ["declared"] * 4 + ["any"]
    assert found[1]["checked"] == ["#/uniqueItems"]
    assert found[3]["accepted_invalid"] == 1


def test_a_file_is_one_line_a_schema_and_a_summary(tmp_path, capfd):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows())))
    assert main(["schema", str(path), "--tokenizer", "bytes", "--walks", "2", "--json"]) == 1
    *lines, last = map(json.loads, capfd.readouterr().out.splitlines())
    assert [line["name"] for line in lines] == [f"schema {number}" for number in range(5)]
    counts = {name: last["summary"][name] for name in ("schemas", "right_by_mask", "right_with_check", "refused", "wrong")}
    assert counts == {"schemas": 5, "right_by_mask": 2, "right_with_check": 1, "refused": 1, "wrong": 1}
    assert last["summary"]["walks"] > 0 == last["summary"]["walks_stuck"]
    assert main(["schema", str(path), "--tokenizer", "bytes"]) == 1
    assert "right_with_check 1" in capfd.readouterr().out


def test_the_share_of_forced_tokens_is_counted_for_both_ways_of_writing(tmp_path, capfd):
    schema = {"type": "object", "properties": {"ab": {"type": "boolean"}}, "required": ["ab"], "additionalProperties": False}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"name": "one", "schema": schema, "tests": [{"valid": True, "data": {"ab": True}}, {"valid": False, "data": 1}]}))
    assert main(["schema", str(path), "--tokenizer", "bytes", "--forced", "--json"]) == 0
    line, last = map(json.loads, capfd.readouterr().out.splitlines())
    # {"ab": true}$ and {"ab":true}$: all is forced but the t; the end where nothing can be said by bytes
    assert (line["spaced_tokens"], line["compact_tokens"]) == (13, 12)
    assert line["spaced_forced"] - line["compact_forced"] == 1
    assert 9 <= line["compact_forced"] <= 11
    assert last["summary"]["forced_share_compact"] == round(line["compact_forced"] / 12, 4)


def test_one_schema_is_explained(tmp_path, capfd):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"]}))
    assert main(["schema", str(path), "--tokenizer", "bytes", "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert "#/properties/a/minimum" in said["enforced"]
    assert (said["checked"], said["refused"]) == (["#/properties"], [])  # a name written with escapes
    assert json.loads(said["example"])["a"] >= 3
    path.write_text('{"uniqueItems": true}')
    assert main(["schema", str(path), "--tokenizer", "bytes", "--strict", "--json"]) == 1
    assert json.loads(capfd.readouterr().out)["refused"] == ["#/uniqueItems"]
    assert main(["schema", str(tmp_path / "none.json"), "--tokenizer", "bytes"]) == 2
    assert "cannot read" in capfd.readouterr().err


def test_what_is_asked_of_one_schema_is_asked_of_each_in_a_file(tmp_path, capfd):
    """Also where a line holds U+2028, which is no end of it, and where lines are empty."""
    row = {"name": "a\u2028b", "schema": {"type": "array", "uniqueItems": True}, "tests": [{"valid": True, "data": [1]}]}
    dated = {"name": "date", "schema": {"format": "date", "type": "string"}, "tests": [{"valid": True, "data": "soon"}]}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n".join(json.dumps(one, ensure_ascii=False) for one in (row, dated)) + "\n", encoding="utf-8")

    def found(*asked):
        main(["schema", str(path), "--tokenizer", "bytes", "--json", *asked])
        *lines, _ = map(json.loads, capfd.readouterr().out.strip().split("\n"))
        return [(line["outcome"], line["order"]) for line in lines]

    assert found() == [("right_by_mask", "declared"), ("wrong", "declared")]
    assert found("--strict", "--format", "annotate") == [("refused", "declared"), ("right_by_mask", "declared")]
    assert found("--order", "any", "--format", "annotate", "--walks", "1") == [("right_by_mask", "any"), ("right_by_mask", "any")]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (["--walks", "2"], "--walks and --forced are for a file of schemas with instances"),
        (["--engine", "auto(speed=1)"], "grammar 'auto' (accelplug .*) has no option 'speed'; its options: none"),
        (["--engine", "lguidance"], "no grammar named 'lguidance' is installed; did you mean 'llguidance'?"),
        (["--tokenizer", "./nowhere"], "cannot load the tokenizer './nowhere'"),
    ],
)
def test_what_would_not_be_heeded_is_refused(tmp_path, capfd, asked, reason):
    path = tmp_path / "schema.json"
    path.write_text("{}")
    assert main(["schema", str(path), "--tokenizer", "bytes", *asked]) == 2
    assert re.search(re.escape(reason).replace(re.escape(".*"), ".*"), capfd.readouterr().err)


@pytest.mark.parametrize("asked", [["--walks", "-1"], ["--seconds", "0"], ["--seconds", "nan"]], ids=" ".join)
def test_numbers_without_a_meaning_are_usage_errors(tmp_path, asked, capsys):
    with pytest.raises(SystemExit):
        main(["schema", str(tmp_path / "any.json"), *asked])
    assert "is too small" in capsys.readouterr().err


@pytest.mark.parametrize(
    "schema",
    [
        {
            "type": "object",
            "properties": {"d": {"format": "date", "type": "string"}, "n": {"multipleOf": 3, "type": "integer"}},
            "required": ["d", "n"],
            "additionalProperties": False,
        },
        {"oneOf": [{"type": "integer", "minimum": 10}, {"type": "string", "pattern": "^[a-c]{2,4}$"}], "not": {"const": "ab"}},
        {"type": "array", "contains": {"const": 1}, "items": {"enum": [1, 2, 3]}, "maxItems": 4},
    ],
)
def test_what_is_walked_under_the_mask_passes_the_check(schema):
    grammar = Auto().compile(GrammarSpec("json_schema", json.dumps(schema)), bytes_only(), CompileLimits())
    chance = random.Random(1)
    walks = [walk(grammar, bytes_only(), chance) for _ in range(15)]
    texts = [text for text, came in walks if came == "ended"]
    assert all(came != "stuck" for _, came in walks)
    assert len(set(texts)) > 3
    assert [grammar.check(text) for text in texts] == [None] * len(texts)
    assert grammar.statement.checked == ()
    assert example(grammar, bytes_only()) is not None


@pytest.mark.parametrize("tests", ['[{"data": "\\ud800", "valid": false}]', '[{"data": 1}]', "[3]"])
def test_a_line_whose_instances_are_none_is_named_by_its_number(tmp_path, capfd, tests):
    """Half of a pair of surrogates is JSON, and no text that a model could write."""
    path = tmp_path / "schemas.jsonl"
    path.write_text('\n{"name": "one", "schema": true, "tests": ' + tests + "}\n")
    assert main(["schema", str(path), "--tokenizer", "bytes"]) == 2
    assert "line 2 is none to judge; write" in capfd.readouterr().err


def test_a_file_without_schemas_is_one_sentence(tmp_path, capfd):
    file = tmp_path / "schemas.jsonl"
    file.write_text("\n")
    assert main(["schema", str(file), "--tokenizer", "bytes"]) == 2
    assert "holds no schemas; write lines such as" in capfd.readouterr().err


def test_a_name_may_be_a_number(tmp_path):
    path = tmp_path / "schemas.jsonl"
    path.write_text('{"name": 1, "schema": false, "tests": []}\n')
    assert main(["schema", str(path), "--tokenizer", "bytes"]) == 0
