"""``accelplug tune`` from end to end on a tiny random model: what it writes is what the other commands take."""

from __future__ import annotations

import json

import pytest

from accelplug.cli.entry import main
from accelplug.cli.tune import command as tune

SPEC = "prompt_lookup(max_ngram=4, min_ngram=2)"


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"line {i} of the same lines\n" * 4}) + "\n" for i in range(5)))
    return path


@pytest.fixture
def tuned(tiny_model, prompts, capfd):
    """Tune on the tiny model; return the status and the document."""

    def run(*arguments):
        asked = ("--prompts", str(prompts), "--dtype", "float32", "--threads", "1", "--max-new-tokens", "12", "--rounds", "3")
        status = main(["tune", tiny_model, *asked, "--json", *arguments])
        return status, json.loads(capfd.readouterr().out)

    return run


def test_the_winner_is_judged_on_the_other_half(tuned, tmp_path):
    output = tmp_path / "accelplug.toml"
    status, found = tuned("--drafter", SPEC, "--output", str(output))
    assert len(found["tried"]) == 3
    assert found["prompts"] == {"search": 3, "judge": 2}
    assert found["rungs"] == [[3, 1], [2, 2]] or found["rungs"][-1] == [2, 3]
    assert found["default"] == SPEC
    assert {found["drafter"], found["winner"]} <= set(found["tried"])
    assert found["output_agreement"] == {"identical": 2, "near_tie": 0, "different": 0}
    assert (status == 0) == found["faster"] == output.exists()
    assert (found["x_plain"]["low"] > 1) == found["faster"]


def test_drafters_compete_before_the_fastest_ones_options_do(tuned, tmp_path):
    given = ("prompt_lookup(num_tokens=2, max_ngram=2, min_ngram=2)", "input_copy(num_tokens=8, max_ngram=3)")
    _, found = tuned(*(part for spec in given for part in ("--drafter", spec)), "--output", str(tmp_path / "one.toml"))
    assert found["drafters"] == list(given)
    assert found["default"] in given
    assert found["tried"] == [found["default"]], "all of its options are given"
    assert found["rungs"] == [[2, 3]]
    _, found = tuned("--output", str(tmp_path / "other.toml"))
    assert {"prompt_lookup", "suffix", "adaptive"} <= set(found["drafters"])
    assert "needs model" in found["left_out"]["draft_model"]
    assert found["rungs"][0][0] == len(found["drafters"])
    assert found["default"] == found["tried"][0]


def test_a_model_with_an_encoder_is_tuned_too(tmp_path, capfd):
    testbed = pytest.importorskip("accelplug_testbed", reason="pip install ./integration/testbed")
    texts, output = tmp_path / "texts.jsonl", tmp_path / "accelplug.toml"
    texts.write_text("".join(json.dumps({"prompt": pair["noisy"]}) + "\n" for pair in testbed.corrections()[:2]))
    asked = ("--prompts", str(texts), "--dtype", "float32", "--threads", "1", "--max-new-tokens", "24", "--rounds", "3")
    main(["tune", str(testbed.corrector()), *asked, "--drafter", "input_copy(num_tokens=16, max_ngram=3)", "--output", str(output), "--json"])
    found = json.loads(capfd.readouterr().out)
    assert found["output_agreement"] == {"identical": 1, "near_tie": 0, "different": 0}
    assert found["faster"] == output.exists()


def test_what_it_writes_other_commands_take(tiny_model, tmp_path, capfd):
    output = tmp_path / "accelplug.toml"
    document = {
        "model": "m", "x_plain": {"median": 2.0, "low": 1.5, "high": 2.5}, "prompts": {"judge": 3}, "dtype": "float32", "machine": "here",
        "drafter": "prompt_lookup(num_tokens=3)", "verifier": "greedy", "allow_lossy": False,
    }  # fmt: skip
    output.write_text(tune.toml(document))
    asked = ("--model", tiny_model, "--prompt", "a b a b a b", "--max-new-tokens", "8", "--rounds", "1", "--dtype", "float32")
    assert main(["run", *asked, "--config", str(output), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["drafter"], found["verifier"]) == ("prompt_lookup(num_tokens=3)", "greedy")
    assert [row["spec"] for row in found["techniques"]] == ["prompt_lookup(num_tokens=3)", "greedy"]


def test_what_cannot_be_tuned_is_refused(tiny_model, prompts, tmp_path, capfd):
    def refused(*arguments):
        assert main(["tune", tiny_model, *arguments]) == 2
        taken = capfd.readouterr()
        assert taken.out == ""
        return taken.err

    there = tmp_path / "there.toml"
    there.write_text("mine")
    single = tmp_path / "single.jsonl"
    single.write_text('{"prompt": "one"}\n')
    new = ("--output", str(tmp_path / "new.toml"))
    assert "no drafter named 'promt'" in refused("--prompts", str(prompts), "--drafter", "promt", *new)
    assert "there.toml is there already" in refused("--prompts", str(prompts), "--output", str(there))
    assert "cannot write" in refused("--prompts", str(prompts), "--output", str(tmp_path / "nowhere" / "a.toml"))
    assert "(FileNotFoundError)" in refused("--prompts", str(tmp_path / "nowhere.jsonl"), *new)
    assert "has 1 prompts that fit the model" in refused("--prompts", str(single), *new)
    assert "min_ngram=5 exceeds max_ngram=4" in refused("--prompts", str(prompts), "--drafter", "prompt_lookup(min_ngram=5)", *new)
    assert there.read_text() == "mine"
    assert not (tmp_path / "new.toml").exists()
