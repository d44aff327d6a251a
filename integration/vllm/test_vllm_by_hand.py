"""What takes long and rarely tells anything new: ``pytest integration/vllm -m by_hand``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import tiny_model
from batches import GREEDY, LAST, MAX_LENGTH, PROMPTS, RULES, SERVED, TOKENS
from jobs import Run, engine, other
from servers import Server, sample_of
from transformers import AutoTokenizer

pytestmark = pytest.mark.by_hand


@pytest.fixture
def sequences(model_dir: Path, tmp_path: Path) -> Path:
    file = tmp_path / "sequences.json"
    known = tiny_model.continue_greedily(model_dir, PROMPTS, MAX_LENGTH)
    file.write_text(json.dumps(list(zip(PROMPTS, known, strict=True))))
    return file


@pytest.mark.parametrize("verifier", ["token_wise", "halved", "block"])
@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_tensor_parallel_ranks_agree(runner: str, verifier: str, run: Run, model_dir: Path, sequences: Path) -> None:
    """Each rank drafts and judges for itself; that the output is right says that they agree, and so do their counters."""
    settings = {"drafter": {"name": "oracle", "sequences": str(sequences)}, "verifier": verifier}
    batch, seeded = {"prompts": PROMPTS, "params": GREEDY}, RULES["seeded"]
    # Two ranks on one NUMA node; and the stand-in for a Triton driver, which V2 needs, is none that torch.compile could ask.
    more = {"TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    done = run(runner, engine(model_dir, "two", batch, seeded, seeded, accelplug=settings, tensor_parallel_size=2), **more)["two"]
    assert "error" not in done, done
    known = [tokens for _, tokens in json.loads(sequences.read_text())]
    assert [output["token_ids"] for output in done["outputs"][0]] == [tokens[: GREEDY["max_tokens"]] for tokens in known]
    assert done["outputs"][1] == done["outputs"][2], "the same seeds, the same tokens"
    first, second = done["status"]
    for status in (first, second):
        assert "switched_off" not in {**status["drafter"], **status["verifier"]}
        del status["stats"]["propose_seconds"]
    assert first == second
    assert 0 < first["stats"]["accepted"] < first["stats"]["drafted"]


@pytest.mark.parametrize("verifier", ["token_wise", "block"])
def test_thinking_ends_where_the_request_says(verifier: str, run: Run, model_dir: Path) -> None:
    """On V1, whose processors follow what was committed by themselves; drafts of what the model thought before go on beyond the budget.

    One request at a time: of several vLLM's own sampler ends some a token late as soon as anything drafts.
    """
    begin = AutoTokenizer.from_pretrained(model_dir).convert_tokens_to_ids("<think>")
    budgets = [{}, {}, *({"thinking_token_budget": budget} for budget in (3, 6, 7, 9, 10))]
    batches = [{"prompts": [[*prompt, begin]], "params": {**GREEDY, **budget}} for prompt in PROMPTS[:2] for budget in budgets]
    settings = {"drafter": "suffix(num_tokens=4, scope='process')", "verifier": verifier}
    thinks = {"reasoning_config": {"reasoning_start_str": "<think>", "reasoning_end_str": tiny_model.THOUGHT}, "enable_prefix_caching": False}
    plain = run("v1", engine(model_dir, "plain", *batches, **thinks))["plain"]["outputs"]
    done = run("v1", engine(model_dir, "drafted", *batches, accelplug=settings, **thinks))["drafted"]
    assert [[one["token_ids"] for one in outputs] for outputs in done["outputs"]] == [[one["token_ids"] for one in outputs] for outputs in plain]
    assert plain[2] != plain[1], "the budget ends nothing"
    stats = done["status"][0]["stats"]
    assert 0 < stats["accepted"] < stats["drafted"]


def test_several_api_servers_show_one_count(model_dir: Path, site: Path, tmp_path: Path, plain: dict[str, list[dict[str, Any]]]) -> None:
    """Requests go to either server; the worker's counters and what both front ends count are on either's ``/metrics``."""
    flags = ["--additional-config.accelplug.drafter=prompt_lookup(num_tokens=4, min_ngram=1)", "--additional-config.accelplug.audit=1.0"]
    server = Server(model_dir, site, tmp_path / "server.log", *flags, "--api-server-count", "2")
    try:
        server.wait()
        url, asked = f"http://127.0.0.1:{server.port}/v1", {"model": "tiny", "max_tokens": TOKENS, "temperature": 0}
        for number, prompt in enumerate([*SERVED["prompts"], LAST] * 2):
            client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=900)  # a connection of its own
            answer = client.completions.create(prompt=prompt, **asked, extra_body={"ignore_eos": True})
            assert answer.choices[0].text == [*plain["served"], plain["served"][-1]][number % (len(SERVED["prompts"]) + 1)]["text"]
            with pytest.raises(openai.BadRequestError):
                client.completions.create(prompt=LAST, model="tiny", extra_body={"vllm_xargs": {"accelplug.num_tokens": 9}})
        all_of_them = 2 * (len(SERVED["prompts"]) + 1)
        metrics = server.when(lambda found: sample_of(found, "accelplug_audited_requests_total") >= all_of_them)
        assert sample_of(metrics, "accelplug_audited_requests_total") == all_of_them
        assert sample_of(metrics, "accelplug_audit_mismatches_total") == 0
        assert sample_of(metrics, "accelplug_refused_requests_total", 'technique="prompt_lookup"') == all_of_them
        drafter = ('kind="drafter"', 'technique="prompt_lookup"', 'engine="0"')
        assert 0 < sample_of(metrics, "accelplug_accepted_tokens_total", *drafter) <= sample_of(metrics, "accelplug_drafted_tokens_total", *drafter)
        processes = set(re.findall(r"\(ApiServer_(\d) pid=\d+\)", server.log.read_text()))
        assert processes == {"0", "1"}
        server.stop()
        assert server.left_over(60) == []
    finally:
        server.kill()


@pytest.mark.parametrize("runner", ["v1", "v2-async"])
def test_data_parallel_engines_draft_and_count_each_for_itself(
    runner: str, model_dir: Path, site: Path, tmp_path: Path, plain: dict[str, list[dict[str, Any]]]
) -> None:
    flags = ["--additional-config.accelplug.drafter=prompt_lookup(num_tokens=4, min_ngram=1)", "--additional-config.accelplug.audit=1.0"]
    server = Server(model_dir, site, tmp_path / "server.log", *flags, "--data-parallel-size", "2", "--api-server-count", "1", runner=runner)
    try:
        server.wait()
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, timeout=900)
        texts, expected = [*SERVED["prompts"], LAST] * 4, [one["text"] for one in [*plain["served"], plain["served"][-1]]] * 4

        def ask(prompt: str) -> str:
            asked = {"model": "tiny", "max_tokens": TOKENS, "temperature": 0, "extra_body": {"ignore_eos": True}}
            return client.completions.create(prompt=prompt, **asked).choices[0].text

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, texts)) == expected
        metrics = server.when(lambda found: sample_of(found, "accelplug_audited_requests_total") >= len(texts))
        assert sample_of(metrics, "accelplug_audit_mismatches_total") == 0
        for number in "01":
            drafter = ('kind="drafter"', 'technique="prompt_lookup"', f'engine="{number}"')
            accepted, drafted = (sample_of(metrics, f"accelplug_{what}_tokens_total", *drafter) for what in ("accepted", "drafted"))
            assert 0 < accepted <= drafted, "either engine has requests"
        server.stop()
        assert server.left_over(60) == []
    finally:
        server.kill()


def test_an_adapter_and_the_model_itself(run: Run, model_dir: Path, tmp_path: Path) -> None:
    """The drafter sees tokens, whoever made them. Not both in one batch, where vLLM's CPU build gives the adapter to everybody."""
    pytest.importorskip("peft", reason="writes the adapter")
    adapted = tiny_model.adapter(model_dir, tmp_path / "adapter", PROMPTS, MAX_LENGTH)
    own = tiny_model.continue_greedily(model_dir, PROMPTS, MAX_LENGTH)
    assert all(a != b for a, b in zip(adapted, own, strict=True)), "the adapter changes every answer"
    sequences = tmp_path / "sequences.json"
    sequences.write_text(json.dumps(list(zip(PROMPTS, adapted, strict=True))))
    batch = {"prompts": PROMPTS, "params": GREEDY}
    settings = {"drafter": {"name": "oracle", "sequences": str(sequences)}, "verifier": "block"}
    with_adapter = {**batch, "adapters": [str(tmp_path / "adapter")] * len(PROMPTS)}
    done = run("v1", engine(model_dir, "adapted", with_adapter, batch, accelplug=settings, enable_lora=True, max_lora_rank=8))["adapted"]
    assert "error" not in done, done
    for outputs, expected in zip(done["outputs"], (adapted, own), strict=True):
        assert [output["token_ids"] for output in outputs] == [tokens[: GREEDY["max_tokens"]] for tokens in expected]
    (of_adapter, _), stats = done["stats of batches"], done["status"][0]["stats"]
    assert 0 < of_adapter["accepted"] < of_adapter["drafted"] < stats["drafted"]


def test_behind_layers_of_the_models_own(run: Run, tmp_path: Path) -> None:
    """Multi-token prediction: the checkpoint brings the layer that drafts, and accelplug's rules judge it."""
    path = tiny_model.make(tmp_path / "model", architecture="qwen2")
    known = tiny_model.continue_greedily(path, PROMPTS, MAX_LENGTH)
    speculative, batch, seeded = tiny_model.mtp(path), {"prompts": PROMPTS, "params": GREEDY}, RULES["seeded"]
    others = [other("block", {"verifier": "block"}, batch, seeded, seeded), other("vllm's", {"verifier": "token_wise"}, batch)]
    done = run("v1", engine(path, "halved", batch, seeded, seeded, accelplug={"verifier": "halved"}, others=others, speculative_config=speculative))
    for name in ("halved", "block", "vllm's"):
        assert "error" not in done[name], done[name]
        assert [output["token_ids"] for output in done[name]["outputs"][0]] == [tokens[: GREEDY["max_tokens"]] for tokens in known]
        assert done[name]["status"][0]["drafter"]["name"] == "mtp"
    for name in ("halved", "block"):
        assert done[name]["outputs"][1] == done[name]["outputs"][2], "the same seeds, the same tokens"
        stats = done[name]["status"][0]["stats"]
        assert 0 < stats["accepted"] < stats["drafted"]
    assert done["vllm's"]["status"][0]["stats"] is None


def test_bench_serve_compares_two_servers(site: Path, tmp_path: Path) -> None:
    """The trained model, plainly and with a drafter, on two of the built-in prompts."""
    testbed = pytest.importorskip("accelplug_testbed", reason="pip install ./integration/testbed")
    drafter = "--additional-config.accelplug.drafter=prompt_lookup(num_tokens=8)"
    flags = {"plain": (), "drafter": (drafter,)}
    servers = [Server(testbed.path(), site, tmp_path / f"{name}.log", "--max-model-len", "2048", *more) for name, more in flags.items()]
    try:
        for server in servers:
            server.wait()
        urls = [f"http://127.0.0.1:{server.port}" for server in servers]
        few = ["--task", "edits 5 %", "--task", "json", "--limit", "1", "--max-new-tokens", "32", "--rounds", "2", "--concurrency", "1", "--concurrency", "4"]
        command = [sys.executable, "-m", "accelplug", "bench", "serve", *urls, *few]
        told, written = (subprocess.run([*command, *more], capture_output=True, text=True, check=True, timeout=900).stdout for more in ((), ("--json",)))
    finally:
        for server in servers:
            server.kill()
    print(told)
    assert all(url in told for url in urls)
    found = json.loads(written)
    assert [(row["url"], row["concurrency"]) for row in found["rows"]] == [(url, level) for level in (1, 4) for url in urls]
    for plain, drafting in (found["rows"][:2], found["rows"][2:]):
        assert plain["drafts"] is None
        assert 0 < drafting["drafts"]["accepted"] < drafting["drafts"]["drafted"]
        assert plain["x first"] == {"median": 1.0, "low": 1.0, "high": 1.0}
        assert drafting["same text"] >= plain["same text"] - 1, "near-ties aside"
        for row in (plain, drafting):
            assert all(0 < row[times]["p50"] <= row[times]["p99"] for times in ("ttft_ms", "itl_ms"))
