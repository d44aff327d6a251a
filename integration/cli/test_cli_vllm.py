"""``accelplug run --host vllm``: engines in processes of their own, and what becomes of one that cannot go on."""

from __future__ import annotations

import json

import accelplug_testbed
import pytest

from accelplug.testing.vllm_processes import vllm_environment

REPEATING = "".join(f"line {i % 3} of the same three lines\n" for i in range(12))
LOOKUP = """
    import accelplug
    from accelplug.spec.prompt_lookup import PromptLookup

    @accelplug.hookimpl
    def register_drafters(register):
        register("lookup", PromptLookup)
"""
TIRED = """
    import accelplug

    class Tired:
        calls = 0

        def propose_one(self, tokens, budget):
            self.calls += 1
            return tokens[-1:] if self.calls < 3 else 1 / 0

    @accelplug.hookimpl
    def register_drafters(register):
        register("tired", Tired)
"""


@pytest.fixture
def vllm(command):
    """Run ``accelplug run --host vllm`` on the small model, without compilation."""
    environment = {name: value for name, value in vllm_environment(runner="v1").items() if name.startswith("VLLM_")}

    def run(*arguments, **more):
        return command("run", "--host", "vllm", "--rounds", "1", *arguments, **{**environment, **more})

    return run


def test_two_engines_one_after_the_other_agree(vllm, command, install):
    """On an edit that the trained model never saw, with a third party's drafter; and Transformers writes the same text."""
    install("accelplug-lookup", LOOKUP, version="4.2")
    done = vllm("--drafter", "lookup(num_tokens=8)", "--compare", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["host"], found["identical"], found["dtype"]) == ("vllm", True, "float32")
    assert found["tokens_per_forward"] > 1.5
    assert 0 < found["accepted"] < found["drafted"]
    assert found["ratio"] > 0
    assert found["near_ties"] is not None, "margins come from the plain engine's log-probabilities"
    drafter = found["techniques"][0]
    assert (drafter["name"], drafter["distribution"], drafter["version"]) == ("lookup", "accelplug-lookup", "4.2")
    assert "vllm" in found["versions"]
    assert "one engine after the other; V1 runner" in found["method"]
    other = command("run", "--rounds", "1", "--drafter", "lookup(num_tokens=8)", "--json")
    assert found["text"] == json.loads(other.stdout)["text"] or found["near_ties"], "the hosts part at near-ties only"


@pytest.mark.by_hand
def test_an_answer_under_a_grammar_is_compared_under_that_grammar(vllm):
    schema = {"type": "object", "properties": {"size": {"type": "integer", "maximum": 999}}, "required": ["size"], "additionalProperties": False}
    given = json.dumps({"json_schema": schema, "whitespace": "spaced"})
    done = vllm("--prompt", "<|json|>\n1 records of size: integer\n", "--grammar", given, "--max-new-tokens", "32", "--compare", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["identical"], found["grammar"]["problem"]) == (True, None)
    assert set(json.loads(found["text"])) == {"size"}
    assert "#/additionalProperties" in found["grammar"]["enforced"]
    assert found["tokens_per_forward"] > 1, "what the schema forces was drafted"


def test_a_plugin_that_raises_in_the_middle_is_named(vllm, install):
    install("tired", TIRED)
    done = vllm("--drafter", "tired", "--prompt", REPEATING, "--max-new-tokens", "24")
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("accelplug: error: ")]
    assert "drafter 'tired' (tired 1.0) was switched off: propose raised ZeroDivisionError: division by zero; report it to tired" in said


def test_a_model_that_is_not_there_is_one_sentence(vllm):
    done = vllm("--model", "accelplug-nobody/nothing")
    assert done.returncode == 2
    assert "cannot load 'accelplug-nobody/nothing'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.by_hand
def test_what_vllm_refuses_is_one_sentence(vllm, tmp_path):
    for file in accelplug_testbed.path().iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    config = json.loads((accelplug_testbed.path() / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 24}))
    done = vllm("--model", str(tmp_path))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("accelplug: error: ")]
