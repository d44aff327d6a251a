"""``accelplug run --grammar``: what it takes, what it says, and what its exit status means."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
from rich.console import Console

from accelplug import ConstraintError, OptionError
from accelplug.cli import report, run
from accelplug.cli.job import Measurement, Output
from accelplug.cli.workload import grammar_of
from accelplug.hooks import GrammarSpec

SCHEMA = {"type": "object", "properties": {"size": {"type": "integer"}}}


@pytest.fixture
def file(tmp_path):
    """Write a file; return its path as it is given on the command line."""

    def write(text):
        (tmp_path / "given.json").write_text(text)
        return str(tmp_path / "given.json")

    return write


@pytest.mark.parametrize("schema", [SCHEMA, {}, True, {"enum": ["json_schema"]}])
def test_a_file_is_a_schema(file, schema):
    assert grammar_of(file(json.dumps(schema))) == {"json_schema": schema}


def test_a_mark_that_an_editor_put_first_is_no_part_of_a_grammar(tmp_path):
    (tmp_path / "marked.json").write_text('{"regex": "[a-z]+"}', encoding="utf-8-sig")
    assert grammar_of(str(tmp_path / "marked.json")) == {"regex": "[a-z]+"}


def test_a_file_may_say_more_than_a_schema(file):
    given = {"json_schema": SCHEMA, "whitespace": "spaced"}
    assert grammar_of(file(json.dumps(given))) == given


@pytest.mark.parametrize("given", [{"regex": "[a-z]+"}, {"choice": ["yes", "no"]}, {"json_schema": SCHEMA, "strict": True}])
def test_what_attach_takes_may_be_written_out(given):
    assert grammar_of(" " + json.dumps(given)) == given


def test_a_grammar_that_cannot_be_read_is_refused(file):
    with pytest.raises(OptionError, match=r"^cannot read the grammar file nowhere.json \(FileNotFoundError\); pass a JSON Schema's file, or {\"regex\""):
        grammar_of("nowhere.json")
    with pytest.raises(OptionError, match=r"^the grammar file .*given.json is no JSON \(JSONDecodeError: .*\); pass a JSON Schema's file, or "):
        grammar_of(file("{'type': 'object'}"))
    with pytest.raises(OptionError, match=r"^what --grammar says is no JSON \(JSONDecodeError"):
        grammar_of("{'regex': 'a'}")
    with pytest.raises(OptionError, match=r"^a grammar is written as {'json_schema': {...}} with one of json_schema, regex, .*, got {'type': 'object'}"):
        grammar_of('{"type": "object"}')
    with pytest.raises(OptionError, match=r"a grammar takes the options format, strict, whitespace and order, got spacing"):
        grammar_of('{"regex": "a", "spacing": "any"}')
    with pytest.raises(ConstraintError, match="NaN is no JSON number"):
        grammar_of(file('{"const": NaN}'))


@pytest.fixture
def described(job):
    """Describe a run under a schema whose check found `problem`."""

    def describe(problem):
        side = Output([5, 6], "{}", [1.0])
        stats = {"drafted": 4, "accepted": 3, "acceptance": 0.75, "tokens_per_forward": 2.0, "lossy_accepts": 0, "techniques": []}
        said = {"engine": "one 1.0", "enforced": ["#/type", "#/required"], "checked": [], "problem": problem}
        measured = Measurement(side, side, [1.0, 1.0], stats, "float32", "method", {}, said)
        return report.document(dataclasses.replace(job, grammar={"json_schema": SCHEMA}), measured)

    return describe


def shown(document):
    console = Console(file=io.StringIO(), width=160)
    run.show(document, console)
    return console.file.getvalue()


def test_the_statement_and_the_final_check_are_said(described):
    found = described(None)
    assert found["grammar"]["asked"] == {"json_schema": SCHEMA}
    assert report.status(found) == 0
    said = shown(found)
    assert "grammar: by one 1.0; the mask enforces #/type, #/required; the finished text is checked for nothing\nfinal check: passed\n" in said


def test_an_answer_that_fails_its_check_is_bad_news(described):
    found = described("the answer was cut off")
    assert report.status(found) == 1
    assert "final check: the answer was cut off\n" in shown(found)


def test_vllm_is_asked_in_its_own_words():
    pytest.importorskip("vllm")
    from accelplug.cli.vllm_worker import structured

    asked = structured({"json_schema": SCHEMA, "whitespace": "spaced"})
    assert json.loads(asked["structured_outputs"].json) == SCHEMA
    assert asked["extra_args"] == {"accelplug": {"whitespace": "spaced"}}
    assert structured({"choice": '["yes", "no"]'})["structured_outputs"].choice == ["yes", "no"]
    first, second, third = {"regex": "a+", "strict": True}, {"json_schema": SCHEMA}, {"all_of": [{"choice": ["a"]}]}
    several = structured({"all_of": [first, second, third]})
    assert several["structured_outputs"].regex == "a+"
    (of_first,) = (several["extra_args"]["accelplug"],)
    assert of_first.pop("strict") is True
    assert GrammarSpec.of(of_first) == GrammarSpec.of({"all_of": [second, third]})
    nested = structured({"all_of": [{"all_of": [first, second]}, third]})
    assert GrammarSpec.of({"all_of": nested["extra_args"]["accelplug"]["all_of"]}) == GrammarSpec.of({"all_of": [second, third]})
    assert structured({"all_of": [{"regex": "a"}]})["extra_args"] == {"accelplug": {}}
