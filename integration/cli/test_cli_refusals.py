"""Everything a user can get wrong on the command line, or a plugin for them: one sentence, no traceback."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time

import installed
import pytest

DRAFTER = """
    import accelplug

    class {name}:
        {body}

    @accelplug.hookimpl
    def register_drafters(register):
        register("{name}", {name})
"""
SHORT = ("--prompt", "one two three one two", "--max-new-tokens", "8", "--rounds", "1")


def drafter(name, body):
    return DRAFTER.format(name=name, body=body)


def test_an_unknown_technique(refusal):
    said = refusal("run", "--drafter", "promt_lookup")
    assert said.startswith("no drafter named 'promt_lookup' is installed; did you mean 'prompt_lookup'? installed: ")


def test_a_misspelt_option(refusal):
    said = refusal("run", "--drafter", "prompt_lookup(num_token=3)")
    assert "has no option 'num_token'; did you mean 'num_tokens'? its options: num_tokens, max_ngram, min_ngram" in said


@pytest.mark.parametrize(("option", "reason"), [("num_tokens=0", "between 1 and 128"), ("num_tokens='3'", "it takes int")])
def test_a_wrong_value(refusal, option, reason):
    assert reason in refusal("run", "--drafter", f"prompt_lookup({option})")


def test_options_that_do_not_fit_each_other(refusal):
    said = refusal("run", "--drafter", "prompt_lookup(min_ngram=5)", *SHORT)
    assert "min_ngram=5 exceeds max_ngram=4" in said


def test_an_unreadable_technique(refusal):
    assert "cannot read the technique 'prompt_lookup('" in refusal("run", "--drafter", "prompt_lookup(")


@pytest.mark.parametrize("model", ["./nowhere", "/no/such/folder", "~/no-such-model", "a/b/c"])
def test_no_such_directory(refusal, model):
    assert f"no model directory at {model}; pass an existing folder" in refusal("run", "--model", model, *SHORT)


def test_a_directory_without_a_model(refusal, tmp_path):
    assert "holds no config.json, so it is no model directory" in refusal("run", "--model", str(tmp_path), *SHORT)


def test_a_directory_with_a_broken_model(refusal, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert f"cannot load the model in {tmp_path}: " in refusal("run", "--model", str(tmp_path), *SHORT)


def test_a_hub_id_that_is_not_in_the_cache(refusal):
    said = refusal("run", "--model", "accelplug-nobody/nothing", *SHORT)
    assert "cannot load 'accelplug-nobody/nothing'" in said
    assert "hf download accelplug-nobody/nothing" in said


def test_a_prompt_file_that_is_not_there(refusal):
    assert "cannot read the prompt file nowhere.txt (FileNotFoundError)" in refusal("run", "--prompt-file", "nowhere.txt")


def test_an_empty_prompt(refusal):
    assert "the prompt is empty" in refusal("run", "--prompt", "")


def test_a_grammar_that_is_none(refusal, site):
    pytest.importorskip("llguidance")
    (site / "broken.json").write_text("{")
    (site / "nothing.json").write_text('{"allOf": [{"type": "integer"}, {"type": "string"}]}')
    assert "cannot read the grammar file nowhere.json (FileNotFoundError)" in refusal("run", "--grammar", "nowhere.json", *SHORT)
    assert "the grammar file broken.json is no JSON (JSONDecodeError" in refusal("run", "--grammar", "broken.json", *SHORT)
    assert "no value" in refusal("run", "--grammar", "nothing.json", *SHORT)


def test_a_grammar_for_a_model_without_a_tokenizer(refusal, tiny_model, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(f"{tiny_model}/{name}")
    said = refusal("run", "--grammar", '{"regex": "a"}', "--model", str(tmp_path), *SHORT)
    assert f"cannot load the model in {tmp_path}: " in said
    assert "tokenizer included" in said


def test_more_tokens_than_the_model_takes(refusal):
    assert "exceed the model's" in refusal("run", "--prompt", "one", "--max-new-tokens", "1000000", "--rounds", "1")


def test_a_greedy_rule_asked_to_sample(refusal):
    said = refusal("run", "--verifier", "greedy", "--temperature", "0.5", *SHORT)
    assert "verifier 'greedy' (accelplug" in said
    assert "use verifier 'token_wise'" in said


LOSSY = """
    import accelplug
    from accelplug.hooks import VerifierTraits

    class Anything:
        traits = VerifierTraits(lossless=None)

        def accept(self, view):
            return view.target_at_tokens() * 0 + 1

    @accelplug.hookimpl
    def register_verifiers(register):
        register("anything", Anything)
"""


def test_a_lossy_rule_runs_only_when_allowed(refusal, command, install):
    install("lax", LOSSY)
    asked = ("run", "--verifier", "anything", *SHORT)
    assert "verifier 'anything' (lax 1.0) may change the output; pass allow_lossy=True" in refusal(*asked)
    done = command(*asked, "--allow-lossy")
    assert done.returncode == 0, done.stderr


def test_a_plugin_that_raises_at_import_stops_nobody_else(refusal, command, install):
    install("aa-broken", "raise RuntimeError('no such library')")
    install("accelplug-echo", installed.ECHO)
    listed = command("plugins")
    assert listed.returncode == 0
    assert "broken: plugin 'aa-broken' (aa-broken 1.0): RuntimeError: no such library" in listed.stdout
    assert "accelplug-echo" in listed.stdout
    said = refusal("run", "--drafter", "missing", *SHORT)
    assert "plugin 'aa-broken' (aa-broken 1.0) failed to load: no such library" in said
    done = command("run", "--drafter", "echo", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "accelplug: warning: plugin 'aa-broken' (aa-broken 1.0) failed to load: no such library" in done.stderr


def test_a_plugin_that_raises_at_build(refusal, install):
    install("fragile", drafter("Fragile", "def __init__(self): raise ZeroDivisionError('by zero')"))
    said = refusal("run", "--drafter", "Fragile", *SHORT)
    assert said == "drafter 'Fragile' (fragile 1.0) failed to build 'Fragile': ZeroDivisionError: by zero; report it to fragile"


def test_a_plugin_that_raises_in_the_middle(refusal, install):
    install("tired", drafter("Tired", "def propose_one(self, tokens, budget): return tokens[-1:] if len(tokens) < 9 else 1 / 0"))
    said = refusal("run", "--drafter", "Tired", *SHORT)
    assert said.startswith("ZeroDivisionError: division by zero; raised by drafter 'Tired' (tired 1.0), built from 'Tired'")


def test_a_plugin_that_returns_what_no_host_can_verify(refusal, install):
    install("wild", drafter("Wild", "def propose_one(self, tokens, budget): return [10**7]"))
    assert "drafter 'Wild' (wild 1.0) drafted token ids from 10000000 to 10000000, outside 0 .. " in refusal(
        "run", "--drafter", "Wild", *SHORT
    )


def test_a_plugin_without_a_way_to_propose(refusal, install):
    install("mute", drafter("Mute", "pass"))
    assert "drafter 'Mute' (mute 1.0) has no propose(view), propose_one" in refusal("run", "--drafter", "Mute", *SHORT)


def test_two_plugins_of_one_name(refusal, command, install):
    install("first-echo", installed.ECHO)
    install("second-echo", installed.ECHO, version="2.0")
    said = refusal("run", "--drafter", "echo", *SHORT)
    assert said.startswith("drafter 'echo' is offered by first-echo 1.0 and second-echo 2.0; write 'second-echo:echo' to choose")
    assert "conflict: drafter 'echo' is offered by first-echo 1.0 and second-echo 2.0" in command("plugins").stdout
    assert command("run", "--drafter", "second-echo:echo", *SHORT).returncode == 0


def test_a_plugin_left_out_by_the_allow_list(refusal, command, install):
    install("accelplug-echo", installed.ECHO)
    assert "no drafter named 'echo'" in refusal("run", "--drafter", "echo", *SHORT, ACCELPLUG_PLUGINS="other")
    listed = command("plugins", ACCELPLUG_PLUGINS="other")
    assert "left out by ACCELPLUG_PLUGINS: plugin 'accelplug-echo' (accelplug-echo 1.0)" in listed.stdout


def test_debugging_shows_where(command):
    done = command("run", "--drafter", "promt_lookup", ACCELPLUG_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "UnknownTechniqueError" in done.stderr


def test_an_interrupt_is_one_sentence(site, install):
    body = "def propose_one(self, tokens, budget): import time, pathlib; pathlib.Path('begun').touch(); time.sleep(60)"
    install("slow", drafter("Slow", body))
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, "ACCELPLUG_PLUGINS": installed.listed(site)}
    asked = [sys.executable, "-m", "accelplug", "run", "--drafter", "Slow", *SHORT]
    # A shell's background jobs ignore interrupts, and hand that down.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(asked, env=env, cwd=site, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)  # noqa: PLW1509  one thread here
    deadline = time.monotonic() + 400
    while not (site / "begun").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=200)
    assert (site / "begun").exists(), err
    assert (process.returncode, out) == (130, "")
    assert err.endswith("accelplug: interrupted before there was anything to show\n")
    assert "Traceback" not in err
