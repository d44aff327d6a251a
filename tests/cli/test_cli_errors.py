"""Which exceptions become one sentence, and which are bugs that want a traceback."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from argparse import Namespace

import pytest

from accelplug import HostError
from accelplug.cli import entry, on_vllm
from accelplug.cli.command import Command, no_arguments
from accelplug.cli.entry import main
from accelplug.cli.errors import sentence
from accelplug.cli.workload import check_length, missing_weights, prompt_of


def chained(outer, cause):
    outer.__cause__ = cause
    return outer


def test_an_error_of_accelplug_says_what_it_says_on_one_line():
    assert sentence(HostError("two\n  lines")) == "two lines"


def test_a_foreign_exception_in_a_plugin_names_both():
    exc = KeyError("slot")
    exc.add_note("accelplug: raised by drafter 'echo' (accelplug-echo 1.0), built from 'echo'")
    exc.add_note("somebody else's note")
    said = "KeyError: 'slot'; raised by drafter 'echo' (accelplug-echo 1.0), built from 'echo' (ACCELPLUG_DEBUG=1 shows where)"
    assert sentence(exc) == said
    assert sentence(chained(RuntimeError("engine stopped"), exc)) == said


def test_an_engines_wrapping_does_not_hide_the_cause():
    assert sentence(chained(RuntimeError("engine core failed"), HostError("no such seam"))) == "no such seam"


def test_a_bug_keeps_its_traceback():
    assert sentence(ZeroDivisionError()) is None


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["nothing"], ["run", "--rounds", "0"], ["run", "--temperature", "-1"], ["run", "--temperature", "inf"],
        ["run", "--temperature", "1e-300"], ["run", "--threads", "100000000000"],
        ["run", "--seed", str(2**63)], ["run", "--max-new", "3"],
    ],
)
def test_wrong_arguments_are_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: accelplug" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--draftr", "x"], "accelplug run: error: unrecognized arguments: --draftr x; did you mean --drafter?"),
        (["bench", "serve", "URL", "--concurency=3"], "accelplug bench serve: error: unrecognized arguments: --concurency=3; did you mean --concurrency?"),
        (["check", "it"], "accelplug check: error: unrecognized arguments: it\n"),
    ],
)
def test_an_unknown_option_is_complained_of_with_the_commands_own_usage(arguments, said, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith(f"usage: accelplug {arguments[0]}")


@pytest.mark.parametrize(
    ("prompt", "new", "reason"), [(10, 91, "at most 90 fit"), (100, 1, "shorten the prompt"), (120, 1, "shorten the prompt")]
)
def test_a_run_that_does_not_fit_is_refused_with_what_fits(prompt, new, reason):
    with pytest.raises(ValueError, match=reason):
        check_length(prompt, new, 100)


@pytest.mark.parametrize(("prompt", "new", "limit"), [(10, 90, 100), (1000, 1000, None)])
def test_a_run_that_fits_is_let_through(prompt, new, limit):
    assert check_length(prompt, new, limit) is None


def test_a_model_that_is_there_and_cannot_be_loaded_says_why(tmp_path):
    assert "within reach" in str(missing_weights("org/name", OSError("offline")))
    assert "cannot load the model in org/name: no such type" in str(missing_weights("org/name", ValueError("no such type")))
    assert f"cannot load the model in {tmp_path}: no weights" in str(missing_weights(str(tmp_path), OSError("no weights")))


def test_an_engine_that_dies_is_one_sentence(job, monkeypatch):
    monkeypatch.setattr(on_vllm, "WORKER", "accelplug_no_such_worker")
    with pytest.raises(HostError, match=r"vLLM's process ended with status 1 and no answer; its last words: .*accelplug_no_such_worker"):
        on_vllm.measure(job)


def test_the_last_words_of_a_silent_engine(tmp_path):
    (tmp_path / "log").write_text("first\n\n  last  \n\n")
    assert on_vllm.last_words(tmp_path / "log") == "last"
    (tmp_path / "log").write_text("")
    assert on_vllm.last_words(tmp_path / "log").startswith("none")


@pytest.mark.parametrize("as_json", [True, False])
def test_a_terminal_that_lacks_a_letter_gets_it_escaped(monkeypatch, as_json):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    shown = Command("made", "", no_arguments, lambda _: {}, lambda document, console: console.print(document["text"]), lambda _: 0)
    entry._write(shown, {"text": "gr\u00fcn \U0001f642"}, as_json=as_json)
    sys.stdout.flush()
    text = written.getvalue().decode("ascii")
    assert (json.loads(text)["text"] == "gr\u00fcn \U0001f642") if as_json else (text == "gr\\xfcn \\U0001f642\n")


def test_a_prompt_that_is_no_utf_8_is_refused():
    with pytest.raises(ValueError, match="the prompt is no UTF-8"):
        prompt_of(Namespace(prompt="gr\udcfcn", prompt_file=None))


def test_a_mark_that_an_editor_put_first_is_no_part_of_the_prompt(tmp_path):
    (tmp_path / "marked.txt").write_text("def f", encoding="utf-8-sig")
    assert prompt_of(Namespace(prompt=None, prompt_file=tmp_path / "marked.txt")) == "def f"


def test_module_and_script_are_one_command():
    done = subprocess.run([sys.executable, "-m", "accelplug", "plugins", "--json"], capture_output=True, text=True, check=True)
    assert {row["name"] for row in json.loads(done.stdout)["plugins"]} >= {"prompt_lookup", "token_wise", "greedy"}
