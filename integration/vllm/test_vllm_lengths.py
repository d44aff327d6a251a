"""Lengths of vLLM's own drafts: greedy output stays plain vLLM's, a pause leaves no hole in a drafter's cache, and what does not pay is not drafted.

How long drafts are depends on what steps take, so that bounds are wide; `tests/hosts/vllm/test_lengths.py` has steps whose cost is given.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from batches import GREEDY, PROMPTS
from jobs import Plain, Run, engine

pytestmark = pytest.mark.by_hand
LONG = 400
SIZED = {"max_model_len": 512}
STAGGERED = {"prompts": PROMPTS, "params": [{**GREEDY, "max_tokens": tokens} for tokens in (40, 60, 40, 50, 70)]}
"""They end one by one: in a batch of another size plain steps are measured first, so that requests pause in the middle of their text."""
ONE = {"prompts": PROMPTS[:1], "params": {**GREEDY, "max_tokens": LONG}}
LOOP = {"prompts": PROMPTS[:1], "params": {**GREEDY, "max_tokens": LONG, "allowed_token_ids": [200]}}
RANDOM = {"prompts": PROMPTS[:1], "params": {**GREEDY, "max_tokens": LONG, "temperature": 1.0, "seed": 3, "allowed_token_ids": list(range(200, 300))}}
NGRAM = {"num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
DRAFTED, ACCEPTED = (f"vllm:spec_decode_num_{what}_tokens" for what in ("draft", "accepted"))


def drafts(done: dict[str, Any]) -> list[tuple[float, float, float]]:
    """Return of each batch how many tokens were drafted and accepted, and drafted for each token of the target model's own."""
    assert "error" not in done, done
    found, before = [], (0.0, 0.0)
    for outputs, metrics in zip(done["outputs"], done["metrics of batches"], strict=True):
        counts = metrics[DRAFTED], metrics[ACCEPTED]
        drafted, accepted = counts[0] - before[0], counts[1] - before[1]
        found.append((drafted, accepted, drafted / (sum(len(output["token_ids"]) for output in outputs) - accepted)))
        before = counts
    return found


def adaptive(model_dir: Path, speculative: dict[str, Any], *batches: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return engine(model_dir, "adaptive", *batches, accelplug={"length": "adaptive", **settings}, speculative_config=speculative, **SIZED)


def texts(outputs: list[dict[str, Any]]) -> list[list[int]]:
    return [output["token_ids"] for output in outputs]


def test_a_draft_model(run: Run, model_dir: Path, ask_plain: Plain) -> None:
    """It is the target itself, which drafts nothing wrong as long as its cache has no hole."""
    speculative = {"method": "draft_model", "model": str(model_dir), "num_speculative_tokens": 3}
    done = run("v1", adaptive(model_dir, speculative, STAGGERED, ONE, RANDOM, RANDOM, ONE))["adaptive"]
    (expected,) = ask_plain(STAGGERED)
    staggered, right, _, wrong, back = found = drafts(done)
    print(found)
    assert texts(done["outputs"][0]) == texts(expected)
    assert done["outputs"][1] == done["outputs"][4]
    for drafted, accepted, _ in (staggered, right, back):
        assert accepted == drafted > 0
    assert right[2] > 1
    assert wrong[2] < 0.4, "nothing of it is right, and it is seldom tried"
    assert back[2] > 0.1, "it waits for at most 256 steps"


def test_ngram(run: Run, model_dir: Path, ask_plain: Plain) -> None:
    """Of a text of one token all that is found is right, of a random one nothing."""
    done = run("v1", adaptive(model_dir, {"method": "ngram", **NGRAM}, STAGGERED, LOOP, RANDOM, RANDOM, LOOP))["adaptive"]
    (expected,) = ask_plain(STAGGERED)
    _, right, _, wrong, back = drafts(done)
    assert texts(done["outputs"][0]) == texts(expected)
    assert right[2] > 1
    assert back[2] > 0.1, "it waits for at most 256 steps"
    assert wrong[2] < 0.4


def test_eagle3(run: Run, model_dir: Path, ask_plain: Plain, tmp_path: Path) -> None:
    done = run("v1", adaptive(model_dir, tiny_model.eagle3(model_dir, tmp_path / "head"), STAGGERED, RANDOM, RANDOM, verifier="block"))["adaptive"]
    (expected,) = ask_plain(STAGGERED)
    assert texts(done["outputs"][0]) == texts(expected)
    assert drafts(done)[-1][2] < 0.4


@pytest.mark.parametrize("runner", ["v2", "v2-async"])
def test_ngram_on_v2(runner: str, run: Run, model_dir: Path, ask_plain: Plain) -> None:
    batches = [{**batch, "params": {**batch["params"], "max_tokens": 120}} for batch in (LOOP, RANDOM, RANDOM)]
    done = run(runner, adaptive(model_dir, {"method": "ngram_gpu", **NGRAM}, STAGGERED, *batches))["adaptive"]
    (expected,) = ask_plain(STAGGERED)
    _, right, _, wrong = drafts(done)
    assert (done["v2"], done["async"]) == (True, runner == "v2-async")
    assert texts(done["outputs"][0]) == texts(expected)
    assert right[2] > 1
    assert wrong[2] < 1, "of four; the text is short, and a twentieth of it and more are tries"


def test_a_draft_model_on_v2(run: Run, model_dir: Path, ask_plain: Plain) -> None:
    """It drafts all tokens in every step, so that nothing is saved by asking for fewer but what verifying them costs."""
    done = run("v2", adaptive(model_dir, {"method": "draft_model", "model": str(model_dir), "num_speculative_tokens": 3}, STAGGERED))["adaptive"]
    (expected,) = ask_plain(STAGGERED)
    ((drafted, accepted, _),) = drafts(done)
    assert done["v2"]
    assert texts(done["outputs"][0]) == texts(expected)
    assert accepted == drafted > 0


@pytest.mark.parametrize("runner", ["v1", "v2-async"])
def test_beside_a_grammar(runner: str, run: Run, model_dir: Path, ask_plain: Plain) -> None:
    """Both schedulers of accelplug's, one on top of the other."""
    structured = {"prompts": PROMPTS[:2], "params": {"temperature": 0, "max_tokens": 60, "structured_outputs": {"regex": "(one|two|red){6}"}}}
    speculative = {"method": "ngram" if runner == "v1" else "ngram_gpu", **NGRAM}
    done = run(runner, adaptive(model_dir, speculative, structured, STAGGERED, structured, grammar="auto"))["adaptive"]
    (expected,) = ask_plain(STAGGERED)
    assert drafts(done)[1][0] > 0
    assert texts(done["outputs"][1]) == texts(expected)
    assert done["outputs"][0] == done["outputs"][2]
    for output in done["outputs"][0]:
        assert re.fullmatch("(one|two|red){6}", output["text"])
