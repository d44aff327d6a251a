"""``accelplug run`` on Transformers with the small model: what it prints, in both forms."""

from __future__ import annotations

import json
import subprocess
import sys

import installed
import pytest

import accelplug

KEYS = {
    "accepted", "acceptance", "allow_lossy", "drafted", "drafter", "dtype", "first_difference", "grammar", "host", "identical", "lossy_accepts",
    "max_new_tokens", "method", "model", "near_tie_below", "near_ties", "plain_tokens_per_s", "prompt", "ratio", "rounds", "seconds",
    "seed", "techniques", "temperature", "text", "threads", "tokens", "tokens_per_forward", "tokens_per_s", "verifier", "versions",
}  # fmt: skip
REPEATING = "".join(f"line {i % 3} of the same three lines\n" for i in range(12))


def document(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_defaults_compare_on_a_held_out_edit(command):
    found = document(command("run", "--compare", "--rounds", "1", "--max-new-tokens", "96", "--json"))
    assert set(found) == KEYS
    assert found["identical"] is True
    assert found["first_difference"] is None
    assert found["dtype"] == "float32"
    assert found["accepted"] > 0, "an edit repeats its prompt: something must have been accepted"
    assert found["tokens_per_forward"] > 1
    assert found["ratio"] == pytest.approx(found["tokens_per_s"] / found["plain_tokens_per_s"], rel=0.01)
    assert [(row["kind"], row["name"], row["distribution"]) for row in found["techniques"]] == [
        ("drafter", "prompt_lookup", "accelplug"),
        ("verifier", "token_wise", "accelplug"),
    ]
    assert found["techniques"][0]["version"] == found["versions"]["accelplug"] == accelplug.__version__


def test_without_compare_nothing_is_claimed_about_plain_generation(command):
    found = document(command("run", "--prompt", REPEATING, "--max-new-tokens", "16", "--rounds", "1", "--json"))
    assert [found[key] for key in ("ratio", "identical", "plain_tokens_per_s", "near_ties")] == [None] * 4
    assert len(found["seconds"]["accelerated"]) == 1


def test_a_model_with_an_encoder_answers_its_prompt(command):
    testbed = pytest.importorskip("accelplug_testbed", reason="pip install ./integration/testbed")
    pair = next(pair for pair in testbed.corrections() if pair["rate"] == 0.05 and len(pair["clean"]) > 120)
    asked = ("--model", str(testbed.corrector()), "--prompt", pair["noisy"], "--drafter", "input_copy", "--dtype", "float32")
    found = document(command("run", *asked, "--compare", "--rounds", "1", "--max-new-tokens", "64", "--json"))
    assert found["identical"] is True
    assert found["text"][:20] == pair["clean"][:20], "the answer from its first letter on"
    assert found["tokens"] > 20
    assert found["tokens_per_forward"] > 2


RECORD = {
    "type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "size": {"type": "integer", "minimum": 0, "maximum": 999}},
    "required": ["name", "size"], "additionalProperties": False,
}  # fmt: skip


@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_an_answer_under_a_schema_is_compared_under_that_schema(command, site, temperature):
    pytest.importorskip("llguidance")
    (site / "record.json").write_text(json.dumps({"json_schema": RECORD, "whitespace": "spaced"}))
    prompt = "<|json|>\n1 records of name: string, size: integer\n"
    asked = ("--prompt", prompt, "--grammar", "record.json", "--temperature", temperature, "--max-new-tokens", "64", "--rounds", "1")
    found = document(command("run", *asked, "--compare", "--json"))
    assert found["identical"] is True
    assert set(json.loads(found["text"])) == {"name", "size"}
    assert found["grammar"]["asked"] == {"json_schema": RECORD, "whitespace": "spaced"}
    assert found["grammar"]["engine"].startswith("llguidance ")
    assert "#/additionalProperties" in found["grammar"]["enforced"]
    assert found["grammar"]["problem"] is None
    assert [row["kind"] for row in found["techniques"]] == ["drafter", "verifier", "grammar"]
    assert found["techniques"][2]["accepted"] > 0, "what the schema forces was drafted"


def test_near_ties_under_a_grammar_are_those_of_legal_tokens(command):
    pytest.importorskip("llguidance")
    asked = ("--prompt", "once", "--grammar", '{"choice": ["abcdefgh"]}', "--max-new-tokens", "16", "--rounds", "1", "--dtype", "bfloat16")
    found = document(command("run", *asked, "--compare", "--json"))
    assert (found["text"], found["identical"]) == ("abcdefgh", True)
    again = document(command("run", *asked[:2], "--grammar", '{"choice": ["a"]}', *asked[4:], "--compare", "--json"))
    assert again["near_ties"] == 0, "one token is legal in each row, however near the model's two best are"


def test_an_answer_that_is_cut_off_fails_its_check(command):
    pytest.importorskip("llguidance")
    done = command("run", "--prompt", "once", "--grammar", '{"regex": "[a-z]{40}"}', "--max-new-tokens", "4", "--rounds", "1")
    assert done.returncode == 1, done.stderr
    assert "final check: the answer was cut off after 4 tokens, before the grammar lets it end; raise max_new_tokens" in done.stdout


def test_sampling_with_one_seed_repeats_plain_generation(command):
    asked = ("--compare", "--rounds", "1", "--temperature", "0.7", "--seed", "3", "--max-new-tokens", "32", "--prompt", REPEATING)
    found = document(command("run", *asked, "--json"))
    assert found["identical"] is True, "point-mass drafts draw the very tokens that plain sampling draws"
    assert found["near_ties"] is None, "margins say nothing about sampled rows"


def test_bfloat16_says_how_near_its_ties_are(command):
    done = command("run", "--compare", "--rounds", "1", "--dtype", "bfloat16", "--max-new-tokens", "32", "--json")
    found = json.loads(done.stdout)
    assert found["near_tie_below"] > 0.01
    assert found["identical"] or found["first_difference"]["margin"] is not None
    assert done.returncode == int(not found["identical"] and not found["first_difference"]["near_tie"])


def test_people_get_the_text_and_the_verdict(command, site):
    (site / "prompt.txt").write_text(REPEATING)
    done = command("run", "--compare", "--rounds", "1", "--max-new-tokens", "16", "--prompt-file", "prompt.txt")
    assert done.returncode == 0, done.stderr
    for part in ("tokens/s", "drafted, accepted", "output: identical to plain generation, ", "by: drafter prompt_lookup by accelplug"):
        assert part in done.stdout


def test_a_strangers_drafter_is_named_and_counted(command, install):

    install("accelplug-echo", installed.ECHO, version="4.2")
    asked = ("--drafter", "echo", "--prompt", REPEATING, "--max-new-tokens", "24", "--compare", "--rounds", "1")
    found = document(command("run", *asked, "--json"))
    drafter = found["techniques"][0]
    assert (drafter["name"], drafter["distribution"], drafter["version"]) == ("echo", "accelplug-echo", "4.2")
    assert drafter["drafted"] == found["drafted"] > 0
    assert found["identical"] is True


def test_what_a_plugin_prints_stays_off_stdout(command, install):
    loud = """
        import os
        import accelplug

        class Loud:
            def propose_one(self, tokens, budget):
                print("from Python", flush=True)
                os.write(1, b"from below\\n")
                return ()

        @accelplug.hookimpl
        def register_drafters(register):
            print("while registering")
            register("loud", Loud)
    """
    install("loud", loud)
    done = command("run", "--drafter", "loud", "--prompt", "once", "--max-new-tokens", "4", "--rounds", "1", "--json")
    document(done)
    assert all(words in done.stderr for words in ("from Python", "from below", "while registering"))


def test_a_reader_that_leaves_early_is_no_error():
    shell = f"{sys.executable} -m accelplug plugins --json | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141)
    assert done.stderr == ""
