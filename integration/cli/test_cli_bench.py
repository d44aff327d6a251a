"""``accelplug bench`` from end to end on a tiny random model: what is counted is right, whatever was fast."""

from __future__ import annotations

import json

import pytest
import torch

from accelplug.cli.bench.tasks import EDITED
from accelplug.cli.entry import main

REPEATING = "".join(f"line {i % 3} of the same three lines\n" for i in range(6))
ROW = {
    "accepted", "acceptance", "batch_size", "best_of_own", "copy_ratio", "drafted", "family", "forwards", "ms_per_forward", "output", "prompts",
    "ratio", "seconds", "task", "technique", "tokens_per_forward", "tokens_per_s", "cpu_ratio", "cpu_seconds", "worst_cpu_ratio",
    "warm_up_seconds", "graphs_in_warm_up", "graphs_while_timed",
}  # fmt: skip
NEW = 24


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [{"prompt": REPEATING, "task": "lines"}, {"prompt": "def f(", "task": "lines"}, {"category": "asked", "turns": ["Which one?", "Why?"]}]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture
def bench(tiny_model, prompts, capfd):
    """Run a benchmark in this process; return its status and document."""

    def run(*arguments):
        asked = ("--model", tiny_model, "--prompts", prompts, "--dtype", "float32", "--threads", "1", "--limit", "2")
        status = main(["bench", *asked, "--rounds", "2", "--max-new-tokens", str(NEW), "--json", *arguments])
        return status, json.loads(capfd.readouterr().out)

    return run


def rows_of(document, **wanted):
    return [row for row in document["rows"] if all(row[key] == value for key, value in wanted.items())]


def test_every_task_is_measured_every_way(bench, tmp_path):
    picture = tmp_path / "picture.png"
    pytest.importorskip("matplotlib")
    status, found = bench("--drafter", "prompt_lookup", "--drafter", "prompt_lookup(num_tokens=2)", "--plot", str(picture))
    assert status == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    tasks = ["lines", "asked", "adversarial"]
    assert list(dict.fromkeys(row["task"] for row in found["rows"])) == [*tasks, "regimes", *EDITED]
    assert all(set(row) == ROW for row in found["rows"])
    for task in tasks:
        names = [row["technique"] for row in rows_of(found, task=task)]
        assert names[:3] == ["plain", "prompt_lookup", "prompt_lookup(num_tokens=2)"]
        assert len(names) == 9
        assert sum(row["best_of_own"] for row in rows_of(found, task=task)) == 1
    assert all(len(row["seconds"]) == 2 and row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"] for row in found["rows"])
    assert all(row["output"]["different"] == 0 for row in found["rows"])
    bins = [row for row in found["by_copy_ratio"] if row["family"] == "plain"]
    assert sum(row["prompts"] for row in bins) == 3 + 2 * len(EDITED), "the prompts of the file, and of the scripted ones the edits"
    assert all(low <= row["copy_ratio"] <= high for row in found["by_copy_ratio"] for low, high in [row["copied"]])
    assert {tuple(sorted(row)) for row in found["by_copy_ratio"]} == {tuple(sorted({*ROW, "copied"}))}
    assert all(row["tokens_per_forward"] == 1 for row in rows_of(found, family="plain")), "one forward per token is what plain means"
    assert any(row["tokens_per_forward"] > 2 for row in rows_of(found, technique="prompt_lookup")), "a random model repeats itself"
    assert [row["name"] for row in found["techniques"]] == ["prompt_lookup", "token_wise"]
    assert {"accelplug", "torch", "transformers"} <= set(found["versions"])
    assert {"argv", "commit", "machine", "python", "dtype", "model", "method"} <= set(found)
    assert [prompt["new_tokens"] for prompt in found["prompts"] if prompt["scripted"]] == [NEW] * 2 * (2 + len(EDITED))


def test_an_assistant_and_early_exits_are_transformers_own_too(bench):
    small = str(pytest.importorskip("accelplug_testbed").path())
    status, found = bench("--model", small, "--task", "lines", "--drafter", "prompt_lookup", "--assistant", small, "--early-exit", "1")
    assert status == 0
    own = {row["technique"]: row for row in rows_of(found, family="transformers")}
    assert {name for name in own if "/" not in name} == {f"transformers {what}, {tokens}" for what in ("assistant", "early exit 1") for tokens in (4, 8)}
    assert all(own[f"transformers assistant, {tokens}"]["tokens_per_forward"] > 3 for tokens in (4, 8)), "the model itself is always right"
    assert own["transformers assistant, 8"]["tokens_per_forward"] > own["transformers assistant, 4"]["tokens_per_forward"]
    early = own["transformers early exit 1, 4"]["tokens_per_forward"]
    assert 1 <= early < 5, "passes through one layer are drafts"


def test_on_the_adversarial_task_everybody_drafts_and_nobody_gains(bench):
    _, found = bench("--drafter", "prompt_lookup", "--task", "adversarial")
    assert {row["task"] for row in found["rows"]} == {"adversarial"}
    (ours,) = rows_of(found, family="accelplug")
    assert ours["drafted"] >= 8 * (NEW - 9) * 2, "a full draft at every step but the last, of both prompts"
    assert ours["accepted"] == 0
    assert len(rows_of(found, family="transformers")) == 6
    assert all(row["tokens_per_forward"] == 1 for row in found["rows"])
    assert all(row["copy_ratio"] == 0 for row in found["rows"])


def test_in_the_regimes_task_drafts_are_right_until_it_switches(bench):
    _, found = bench("--drafter", "prompt_lookup", "--task", "regimes", "--max-new-tokens", "100", "--limit", "1")
    (ours,) = rows_of(found, family="accelplug")
    assert ours["accepted"] > 40, "most of the 64 copied tokens"
    assert 0.5 < ours["copy_ratio"] < 0.7


def test_batches_run_through_techniques_alone(bench):
    _, found = bench("--drafter", "prompt_lookup", "--task", "lines", "--batch-size", "3", "--batch-size", "1")
    assert [(row["batch_size"], row["technique"]) for row in rows_of(found, family="transformers")] == [
        (1, f"transformers {tokens}/{ngram}") for tokens in (4, 8, 12) for ngram in (2, 3)
    ]
    (ours,) = rows_of(found, batch_size=3, family="accelplug")
    assert ours["prompts"] == 3, "two prompts fill three rows"
    assert ours["output"]["different"] == 0
    assert ours["accepted"] > 0
    assert "one prompt at a time" in found["left_out"]["Transformers' own methods in batches"]


def test_two_drafters_are_compared_and_everything_runs_compiled(bench):
    """Without a compiler, which takes minutes: what is tested is the caches, the widths and the rows."""
    with torch.compiler.set_stance("force_eager"):
        status, found = bench("--task", "lines", "--drafter", "prompt_lookup", "--pair", "suffix", "prompt_lookup", "--compiled", "--skip-own")
    assert status == 0
    names = ["plain", "prompt_lookup", "suffix", "plain, compiled", "prompt_lookup, compiled", "suffix, compiled"]
    assert [row["technique"] for row in found["rows"]] == names
    assert all(row["output"]["different"] == 0 for row in found["rows"])
    assert rows_of(found, technique="plain, compiled")[0]["tokens_per_forward"] == 1
    assert rows_of(found, technique="suffix, compiled")[0]["accepted"] > 0
    pairs = [("suffix", "prompt_lookup"), ("prompt_lookup, compiled", "plain, compiled"), ("suffix, compiled", "plain, compiled")]
    assert sorted((pair["technique"], pair["over"]) for pair in found["pairs"]) == sorted(pairs)
    assert all(pair["ratio"]["low"] <= pair["ratio"]["median"] <= pair["ratio"]["high"] for pair in found["pairs"])
    assert all(len(row["cpu_seconds"]) == 2 and len(row["cpu_seconds"][0]) == 2 for row in found["rows"]), "round by round, prompt by prompt"


def test_by_default_every_installed_drafter_that_runs_here_is_measured(command, install, tiny_model, prompts):
    needy = """
        import accelplug

        class Needy:
            def __init__(self, file: str): ...
            def propose_one(self, tokens, budget): return ()

        class Elsewhere(Needy):
            def __init__(self): raise accelplug.HostError("only on Tuesdays")

        class Copy:
            def propose_one(self, tokens, budget): return tokens[-1:]

        @accelplug.hookimpl
        def register_drafters(register):
            register("needy", Needy)
            register("elsewhere", Elsewhere)
            register("copy", Copy)
    """
    install("some-drafters", needy)
    asked = ("--model", tiny_model, "--prompts", prompts, "--task", "lines", "--limit", "1", "--rounds", "1", "--max-new-tokens", "8", "--skip-own")
    done = command("bench", *asked, "--json", ACCELPLUG_PLUGINS="some-drafters")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "copy" in {row["technique"] for row in found["rows"]}
    assert not {"needy", "elsewhere"} & {row["technique"] for row in found["rows"]}
    assert found["left_out"]["drafter needy"] == "needs file"
    assert found["left_out"]["drafter elsewhere"] == "only on Tuesdays"


INTERRUPTING = """
    import signal
    import accelplug

    class Interrupting:
        def __init__(self, upon: int):
            self.upon, self.begun = upon, 0

        def start(self, slots):
            self.begun += 1
            if self.begun == self.upon:
                signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs lack
                signal.raise_signal(signal.SIGINT)

        def propose_one(self, tokens, budget):
            return ()

    @accelplug.hookimpl
    def register_drafters(register):
        register("interrupting", Interrupting)
"""


def test_an_interrupted_task_keeps_its_whole_rounds(command, install, tiny_model, prompts):
    install("interrupters", INTERRUPTING)
    asked = ("--model", tiny_model, "--prompts", prompts, "--limit", "1", "--rounds", "3", "--max-new-tokens", "8", "--skip-own")
    tasks = ("--task", "lines", "--task", "asked")
    drafter = "interrupting(upon=9)"  # 1 to see whether it runs, 1 + 3 for the first task, 1 + 3 for the second
    done = command("bench", *asked, *tasks, "--drafter", drafter, "--json")
    assert done.returncode == 130, done.stderr
    found = json.loads(done.stdout)
    assert found["interrupted"] is True
    taken = {(row["task"], row["technique"], len(row["seconds"]), len(row["cpu_seconds"])) for row in found["rows"]}
    assert taken == {("lines", "plain", 3, 3), ("lines", drafter, 3, 3), ("asked", "plain", 2, 2), ("asked", drafter, 2, 2)}
    assert found["left_out"]["asked, batch 1"] == "interrupted after 2 of 3 rounds, which count by task and not by copy ratio"
    assert {row["prompts"] for row in found["by_copy_ratio"]} == {1}
    assert [prompt["task"] for prompt in found["prompts"]] == ["lines", "asked"]


def test_a_task_that_is_interrupted_in_its_first_round_is_left_out(command, install, tiny_model, prompts):
    install("interrupters", INTERRUPTING)
    asked = ("--model", tiny_model, "--prompts", prompts, "--limit", "1", "--rounds", "2", "--max-new-tokens", "8", "--skip-own")
    done = command("bench", *asked, "--task", "lines", "--task", "asked", "--drafter", "interrupting(upon=6)")
    assert done.returncode == 130, done.stderr
    assert "left out: asked, batch 1: interrupted\n" in done.stdout
    done = command("bench", *asked, "--task", "lines", "--drafter", "interrupting(upon=4)")
    assert done.returncode == 130, done.stderr
    assert "left out: lines, batch 1: interrupted after 1 of 2 rounds, which count by task and not by copy ratio\n" in done.stdout
    done = command("bench", *asked, "--task", "lines", "--drafter", "interrupting(upon=3)")
    assert (done.returncode, done.stdout) == (130, "")


def test_an_output_that_differs_is_bad_news(command, install, tiny_model, prompts):
    meddler = """
        import torch
        import accelplug

        class Meddler:  # a verifier keeps drafts honest, so only a plugin that reaches into the model changes the output
            def __init__(self, context):
                self.head = context.output_head()

            def start(self, slots):
                with torch.no_grad():
                    self.head.copy_(self.head.roll(1, 0))

            def finish(self, slots):
                with torch.no_grad():
                    self.head.copy_(self.head.roll(-1, 0))

            def propose_one(self, tokens, budget):
                return ()

        @accelplug.hookimpl
        def register_drafters(register):
            register("meddler", Meddler)
    """
    install("meddlers", meddler)
    asked = ("--model", tiny_model, "--prompts", prompts, "--task", "lines", "--limit", "1", "--rounds", "1", "--max-new-tokens", "8", "--skip-own")
    done = command("bench", *asked, "--drafter", "meddler")
    assert done.returncode == 1, done.stderr
    assert "1 of 1 DIFFERENT" in done.stdout


@pytest.fixture
def refused(tiny_model, capfd):
    def run(*arguments):
        assert main(["bench", "--model", tiny_model, *arguments]) == 2
        taken = capfd.readouterr()
        assert taken.out == ""
        (said,) = [line for line in taken.err.splitlines() if line.startswith("accelplug: error: ")]
        return said

    return run


@pytest.fixture(scope="module")
def corrector():
    return str(pytest.importorskip("accelplug_testbed", reason="pip install ./integration/testbed").corrector())


def test_a_model_with_an_encoder_corrects_texts(corrector, capfd):
    """Transformers' own lookup fails on this T5, whose cache has a layer for each of the encoder's: it says so, and the others go on."""
    tasks = ["correct 0 %", "correct 15 %", "adversarial"]
    asked = ("--model", corrector, "--dtype", "float32", "--threads", "1", "--rounds", "1", "--limit", "2", "--max-new-tokens", "48")
    chosen = [part for task in tasks for part in ("--task", task)]
    assert main(["bench", *asked, *chosen, "--drafter", "input_copy", "--batch-size", "1", "--batch-size", "2", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert list(dict.fromkeys(row["task"] for row in found["rows"])) == tasks
    for size in (1, 2):
        assert [row["technique"] for row in rows_of(found, batch_size=size)] == ["plain", "input_copy"] * len(tasks)
        copied = {row["task"]: row["tokens_per_forward"] for row in rows_of(found, batch_size=size, technique="input_copy")}
        assert copied["correct 0 %"] > copied["correct 15 %"] > 1
    assert all(row["tokens_per_forward"] == 1 for row in rows_of(found, batch_size=1, technique="plain")), "prompts are no output"
    assert all(row["output"]["different"] == 0 for row in found["rows"])
    assert {prompt["new_tokens"] for prompt in found["prompts"] if prompt["scripted"]} == {48}
    assert any(prompt["new_tokens"] < 48 for prompt in found["prompts"]), "an answer ends at its EOS"
    assert all(prompt["near_ties"] is not None for prompt in found["prompts"] if not prompt["scripted"])
    own = ", ".join(f"transformers {tokens}/{ngram}" for tokens in (4, 8, 12) for ngram in (2, 3))
    reasons = [found["left_out"][f"{own} on {task}"] for task in tasks]
    assert all(why.startswith("failed in Transformers with ") for why in reasons)


def test_the_margins_of_an_answer_are_the_decoders(corrector):
    """One forward pass over the whole answer chooses each of its tokens, with the margin that its own step had."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    from accelplug.cli.on_transformers import row_margins

    model = AutoModelForSeq2SeqLM.from_pretrained(corrector, dtype=torch.float32).eval()
    inputs = AutoTokenizer.from_pretrained(corrector)("Retruns the nubmer of items.", return_tensors="pt")
    found = model.generate(**inputs, do_sample=False, max_new_tokens=20, return_dict_in_generate=True, output_logits=True)
    best = torch.cat(found.logits).topk(2).values
    margins = row_margins(model, inputs["input_ids"], found.sequences[0, 1:].tolist())
    assert margins == pytest.approx((best[:, 0] - best[:, 1]).tolist(), abs=1e-3)


def test_what_an_encoder_rules_out_is_refused_in_one_sentence(refused, corrector):
    assert "--early-exit is for decoders, and T5ForConditionalGeneration has an encoder" in refused("--model", corrector, "--early-exit", "1")
    assert "--compiled is for decoders, and T5ForConditionalGeneration has an encoder" in refused(
        "--model", corrector, "--compiled", "--limit", "1"
    )
    assert "no task 'json'; there are correct 0 %, correct 5 %, correct 15 %, correct 30 %, adv" in refused(
        "--model", corrector, "--task", "json"
    )


def test_what_cannot_run_is_refused_in_one_sentence(refused, prompts, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "fine"}\n{"prompt": }\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "no drafter named 'promt_lookup' is installed" in refused("--drafter", "promt_lookup")
    assert "num_tokens=0 is out of range" in refused("--drafter", "prompt_lookup(num_tokens=0)")
    assert "(FileNotFoundError)" in refused("--prompts", str(tmp_path / "nowhere.jsonl"))
    assert "bad.jsonl, line 2: not JSON" in refused("--prompts", str(tmp_path / "bad.jsonl"))
    assert "holds no prompts" in refused("--prompts", str(tmp_path / "empty.jsonl"))
    assert "no task 'walk'; there are lines, asked, adversarial, regimes" in refused("--prompts", prompts, "--task", "walk")
    assert "cannot write" in refused("--prompts", prompts, "--plot", str(tmp_path / "nowhere" / "a.png"))
    assert "no prompt fits the model, which takes prompts of 0 tokens with --max-new-tokens 320" in refused(
        "--prompts", prompts, "--max-new-tokens", "320", "--drafter", "prompt_lookup"
    )
    assert "--early-exit takes fewer layers than the " in refused("--prompts", prompts, "--early-exit", "99")
    assert "which --skip-own leaves out; drop one or the other" in refused("--prompts", prompts, "--skip-own", "--early-exit", "1")
    assert "no model directory at ./nowhere" in refused("--prompts", prompts, "--assistant", "./nowhere")
    assert "min_ngram=5 exceeds max_ngram=4" in refused("--prompts", prompts, "--drafter", "prompt_lookup(min_ngram=5)")


def test_people_get_a_table(tiny_model, prompts, capfd):
    asked = ("--model", tiny_model, "--prompts", prompts, "--task", "lines", "--limit", "1", "--rounds", "1", "--max-new-tokens", "8")
    assert main(["bench", *asked, "--drafter", "prompt_lookup"]) == 0
    printed = capfd.readouterr().out
    for part in ("x plain", "tokens/forward", "ms/forward", "identical", "prompt_lookup", "transformers ", "method: medians of 1 rounds"):
        assert part in printed
