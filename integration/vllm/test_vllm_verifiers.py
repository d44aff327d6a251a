"""Rules of plugins in vLLM: greedy output stays plain vLLM's, seeds repeat, masks hold, log-probabilities are the model's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import torch
from batches import ALLOWED, GREEDY, PROMPTS, RULES, SETTINGS, WORDS
from jobs import RUNNERS, Plain, Run, engine, other, shared
from transformers import AutoTokenizer, LlamaForCausalLM

MIXED = ({"accelplug.num_tokens": 1}, {"accelplug": {"num_tokens": 0}}, {"somebody": "else's"})


@pytest.fixture(scope="module")
def oracle(plain: dict[str, list[dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A drafter that knows the greedy continuations, and drafts some of their tokens wrong."""
    sequences = tmp_path_factory.mktemp("oracle") / "sequences.json"
    sequences.write_text(json.dumps([[prompt, output["token_ids"]] for prompt, output in zip(PROMPTS, plain["greedy"], strict=True)]))
    return {"name": "oracle", "sequences": str(sequences)}


@pytest.mark.parametrize("runner", RUNNERS)
def test_rules(runner: str, run_shared: Run, model_dir: Path, plain: dict[str, list[dict[str, Any]]], oracle: dict[str, Any]) -> None:
    lossy: dict[str, Any] = {"drafter": oracle, "allow_lossy": True}
    greedy, seeded, masked, structured = RULES.values()
    unmasked = {**greedy, "params": {**GREEDY, "temperature": 1.2, "seed": 5}}
    asked: dict[str, tuple[Any, ...]] = {
        "halved": ({"drafter": oracle, "verifier": "halved"}, greedy, seeded, seeded),
        "block": ({"drafter": oracle, "verifier": "block"}, greedy, seeded, SETTINGS),
        "settings": ({"drafter": oracle}, SETTINGS),
        "typical": ({**lossy, "verifier": "typical"}, greedy, seeded),
        "everything": ({**lossy, "verifier": "everything"}, greedy, masked, structured),
        "silent": ({"drafter": oracle, "verifier": "halved(raise_at=3)"}, greedy),
        "unasked": ({"drafter": oracle, "verifier": "everything"},),
        "per request": ({**lossy, "verifier": "typical"}, of_requests(greedy, {"accelplug": {"num_tokens": 0}}), of_requests(greedy, *MIXED)),
        "generous": ({**lossy, "verifier": "typical"}, of_requests(unmasked, {"accelplug.epsilon": 0.0})),
        "serving anyway": ({"drafter": "hidden", "num_tokens": 4, "on_refused": "serve"}, greedy, seeded),
        "refused": ({**lossy, "verifier": "typical"}, of_requests(greedy, {"accelplug.epsilon": 1.5})),
        "greedy": ({"drafter": oracle, "verifier": "greedy"}, greedy),
        "sampled": ({"drafter": oracle, "verifier": "greedy"}, seeded),
        "likeliest": ({"drafter": oracle, "verifier": "likeliest"}, greedy),
        "likeliest, sampled": ({"drafter": oracle, "verifier": "likeliest"}, seeded),
        "sampled, allowed": ({**lossy, "verifier": "greedy"}, seeded),
    }
    done = run_shared(runner, *(shared(model_dir, name, *batches, accelplug=settings) for name, (settings, *batches) in asked.items()))
    for name in ("halved", "block", "typical", "silent", "serving anyway", "greedy", "likeliest"):
        assert "error" not in done[name], done[name]
        check_greedy(done[name]["outputs"][0], plain["greedy"])
    check_settings(done, plain)
    halved = done["halved"]
    assert halved["status"][0]["verifier"] == {"name": "halved", "spec": "halved", "distribution": "adversaries", "version": "1.5"}
    assert "rejection_sampler" in halved["status"][0]["seams"]
    assert 0 < halved["status"][0]["stats"]["accepted"] < halved["status"][0]["stats"]["drafted"]
    assert halved["outputs"][1] == halved["outputs"][2], "the same seeds, the same tokens"
    assert halved["status"][0]["stats"]["lossy_accepts"] == 0
    assert done["typical"]["status"][0]["stats"]["lossy_accepts"] > 0
    assert done["silent"]["status"][0]["verifier"]["switched_off"] == "raised RuntimeError: the rule has fallen silent"
    anyway = done["serving anyway"]["status"][0]
    assert "drafter 'hidden' (adversaries 1.5) needs 'hidden.last'" in anyway["refused"]
    assert (anyway["drafter"], anyway["verifier"]) == (None, None)
    assert anyway["refused"] in done["serving anyway"]["refused"], "on /metrics too"
    if runner == "v1":
        assert done["serving anyway"]["outputs"][1] == plain["seeded"], "as if nothing drafted, top-k too"
    assert done["unasked"]["error"] == "HostError"
    assert "may change the output; pass allow_lossy=True" in done["unasked"]["message"]
    for name, rule in (("sampled", "'greedy' (accelplug 0.1.0)"), ("likeliest, sampled", "'likeliest' (adversaries 1.5)")):
        assert done[name]["error"] == "VLLMValidationError"
        assert done[name]["message"].startswith(f"verifier {rule} is exact for greedy decoding only and the request samples at temperature 1.2; set")
    assert "error" not in done["sampled, allowed"], done["sampled, allowed"]
    check_everything(done["everything"], plain, model_dir)
    check_requests(done, plain)


def of_requests(batch: dict[str, Any], *extra_args: dict[str, Any]) -> dict[str, Any]:
    """Give the requests of a batch options of their own, in turns."""
    params = batch["params"] if isinstance(batch["params"], list) else [batch["params"]] * len(batch["prompts"])
    return {**batch, "params": [{**one, "extra_args": extra_args[i % len(extra_args)]} for i, one in enumerate(params)]}


def check_requests(done: dict[str, Any], plain: dict[str, list[dict[str, Any]]]) -> None:
    own = done["per request"]
    assert "error" not in own, own
    for outputs in own["outputs"]:
        check_greedy(outputs, plain["greedy"])
    assert own["stats of batches"][0]["drafted"] == 0, "num_tokens=0 turns drafting off"
    assert 0 < own["stats of batches"][1]["drafted"] < done["block"]["stats of batches"][0]["drafted"] / 2
    generous = done["generous"]["status"][0]["stats"]
    assert generous["accepted"] == generous["drafted"] > 0, "no draft is untypical at a threshold of 0"
    assert done["refused"]["error"] == "VLLMValidationError"
    assert done["refused"]["message"] == "verifier 'typical' (accelplug 0.1.0): epsilon=1.5 is out of range, it takes between 0.0 and 1.0"


def check_settings(done: dict[str, Any], plain: dict[str, list[dict[str, Any]]]) -> None:
    for name, batch in (("block", 2), ("settings", 0)):
        assert done[name]["outputs"][batch] == plain["settings"], name
        stats = done[name]["stats of batches"][batch]
        assert 0 < stats["accepted"] < stats["drafted"], name


def check_greedy(outputs: list[dict[str, Any]], plain: list[dict[str, Any]]) -> None:
    for mine, theirs in zip(outputs, plain, strict=True):
        assert mine["token_ids"] == theirs["token_ids"]
        assert mine["logprobs"] == pytest.approx(theirs["logprobs"], abs=1e-3)


def check_everything(done: dict[str, Any], plain: dict[str, list[dict[str, Any]]], model_dir: Path) -> None:
    assert "error" not in done, done
    greedy, masked, structured = done["outputs"]
    model = LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    assert [output["token_ids"] for output in greedy] != [output["token_ids"] for output in plain["greedy"]], "wrong drafts stay"
    unlikely = 0
    for prompt, output in zip(PROMPTS, greedy, strict=True):
        tokens = output["token_ids"]
        with torch.no_grad():
            rows = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert output["logprobs"] == pytest.approx(rows.gather(1, torch.tensor([tokens]).T).squeeze(1).tolist(), abs=1e-3)
        unlikely += sum(token != best for token, best in zip(tokens, rows.argmax(-1).tolist(), strict=True))
    assert unlikely > 0
    assert done["status"][0]["stats"]["lossy_accepts"] >= unlikely
    assert {token for output in masked for token in output["token_ids"]} <= set(ALLOWED)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    for output in structured:
        ended = output["token_ids"][-1] == output["stop_reason"]  # by the token that ends the model's text, which is none of the grammar's
        text = tokenizer.decode(output["token_ids"][: -1 if ended else None], skip_special_tokens=True)
        assert re.fullmatch(f"(?:{WORDS})*", text), output
        assert output["finish_reason"] == "stop"


def check_behind_vllms_own(done: dict[str, Any], method: str, plain: dict[str, list[dict[str, Any]]]) -> None:
    for name in BEHIND:
        assert "error" not in done[name], done[name]
        check_greedy(done[name]["outputs"][0], plain["greedy"])
        assert done[name]["status"][0]["drafter"]["name"] == method
    for name in ("halved", "typical"):
        stats = done[name]["status"][0]["stats"]
        assert 0 < stats["accepted"] < stats["drafted"]
    assert done["vllm's"]["status"][0]["stats"] is None


BEHIND: dict[str, dict[str, Any]] = {
    "halved": {"verifier": "halved"}, "typical": {"verifier": "typical", "allow_lossy": True}, "vllm's": {"verifier": "token_wise"}
}  # fmt: skip
"""What judges drafts of vLLM's own."""


def test_behind_vllms_ngram_on_v2(run_shared: Run, model_dir: Path, plain: dict[str, list[dict[str, Any]]]) -> None:
    """That is the drafter whose place accelplug's takes on V2, so the shared engine has one. On V1, see `test_vllm_sampling`."""
    done = run_shared("v2", *(shared(model_dir, name, RULES["greedy"], RULES["seeded"], accelplug=given) for name, given in BEHIND.items()))
    check_behind_vllms_own(done, "ngram_gpu", plain)


@pytest.mark.by_hand
@pytest.mark.parametrize("method", ["ngram", "eagle3"])
def test_behind_vllms_other_drafters(method: str, run: Run, model_dir: Path, plain: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    speculative = ngram if method == "ngram" else tiny_model.eagle3(model_dir, tmp_path / "head")
    first, *others = (other(name, given, RULES["greedy"], RULES["seeded"]) for name, given in BEHIND.items())
    done = run("v1", engine(model_dir, first["name"], *first["batches"], accelplug=first["accelplug"], others=others, speculative_config=speculative))
    check_behind_vllms_own(done, method, plain)


DRAFTERS: dict[str, Any] = {
    "oracle": None,  # the fixture's
    "device_oracle": None,
    "prompt_lookup": "prompt_lookup(num_tokens=4, min_ngram=1)",
    "suffix": "suffix(num_tokens=4, min_match=1)",
    "input_copy": "input_copy(num_tokens=4)",
}
VERIFIERS = ("token_wise", "greedy", "halved", "block", "traversal", "k_seq")
CELLS = [(drafter, verifier, RUNNERS[(i + j) % 3]) for i, drafter in enumerate(DRAFTERS) for j, verifier in enumerate(VERIFIERS)]
"""Every pair of a drafter and a verifier; every drafter and every verifier on every runner."""


@pytest.mark.parametrize("runner", RUNNERS)
def test_pairs_of_drafters_and_verifiers(runner: str, run_shared: Run, model_dir: Path, ask_plain: Plain, oracle: dict[str, Any]) -> None:
    batch = {"prompts": PROMPTS[:3], "params": {**GREEDY, "max_tokens": 12}}
    (expected,) = ask_plain(batch)
    drafters = {**DRAFTERS, "oracle": oracle, "device_oracle": {"name": "device_oracle", "sequences": oracle["sequences"]}}
    cells = {(drafter, verifier): drafters[drafter] for drafter, verifier, on in CELLS if on == runner}
    jobs = [shared(model_dir, f"{name}, {verifier}", batch, accelplug={"drafter": spec, "verifier": verifier}) for (name, verifier), spec in cells.items()]
    done = run_shared(runner, *jobs)
    accepted = dict.fromkeys(DRAFTERS, 0)
    for name, verifier in cells:
        cell = done[f"{name}, {verifier}"]
        if (name, runner) == ("device_oracle", "v1"):
            assert "drafts on the device only" in cell["message"]
            continue
        assert "error" not in cell, (name, verifier, cell)
        assert cell["outputs"] == [expected], (name, verifier)
        status = cell["status"][0]
        assert "switched_off" not in {**status["drafter"], **status["verifier"]}, status
        accepted[name] += status["stats"]["accepted"]
    print(runner, accepted)
    assert accepted["oracle"] > 0
    assert runner == "v1" or accepted["device_oracle"] > 0
