"""``vllm serve`` with accelplug's settings on its command line, spoken to by the OpenAI client."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from batches import LAST, SERVED, TEXTS, TOKENS
from machine import Machine
from servers import Server, Serving, sample_of, total_of

CLIENTS = 32
RULE = 'kind="verifier"', 'technique="halved"'
SHOWN = {"v1": "V1 runner; vLLM shows it as method 'custom_class'", "v2-async": "V2 runner; vLLM shows it as method 'ngram_gpu'"}
WRAPPED = (
    "EngineArgs.create_engine_config", "InputProcessor._validate_params", "AsyncLLM.generate", "LLMEngine.add_request",
    "LLMEngine.abort_request", "LLMEngine.step", "RequestSpecDecodeMetrics.to_dict",
)  # fmt: skip
ALWAYS = [
    *(f"in effect in vLLM's front end: {method} is wrapped" for method in WRAPPED),
    "in effect in vLLM's configuration: worker_cls is accelplug.hosts.vllm.worker.{worker}",
]
TOLD = {
    "v1": [
        *ALWAYS, "in effect in vLLM's front end: AsyncLLM.add_request is wrapped",
        "in effect in vLLM's configuration: scheduler_cls is accelplug.hosts.vllm.scheduler.",
        "in effect in vLLM's configuration: speculative_config names custom_class, 4 tokens",
        "(adversaries 1.5) drafts in host memory beside the V1 runner: vLLM has no asynchronous scheduling with it there",
        "in effect in vLLM's model runner: custom_class proposer", "in effect in vLLM's model runner: rejection_sampler",
    ],
    "v2-async": [
        *ALWAYS, "in effect in vLLM's configuration: speculative_config names ngram_gpu, 4 tokens", "in effect in vLLM's model runner: speculator",
        "(adversaries 1.5) drafts in host memory: {host_wait}", "every step verifies 4 drafts of every request, drafted or padding",
    ],
}  # fmt: skip
*PROMPTS, _ = SERVED["prompts"]


@pytest.fixture
def outputs(plain: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What vLLM generates without a drafter and without a server."""
    return plain["served"]


def ask(server: Server, client: openai.OpenAI, number: int, outputs: list[dict[str, Any]]) -> str:
    """Stream one completion: every fourth is aborted, every third sampled, the others compared with plain vLLM's text; one breaks the rule, one the drafter."""
    if number == CLIENTS // 4:
        server.breaks_rule.touch()
    if number == CLIENTS // 2:
        server.when(lambda found: sample_of(found, "accelplug_switched_off", *RULE) == 1)  # without drafts nobody would ask it
        server.breaks.touch()
    which = number % len(PROMPTS)
    sampled = number % 3 == 2
    stream = client.completions.create(
        model="tiny", prompt=PROMPTS[which], max_tokens=TOKENS, temperature=0.9 if sampled else 0, seed=number, stream=True,
        extra_body={"ignore_eos": True, "vllm_xargs": {"accelplug.num_tokens": number % 4}},
    )  # fmt: skip
    text = ""
    for chunk in stream:
        text += chunk.choices[0].text
        if number % 4 == 3:
            stream.close()
            return "aborted"
    if not sampled:
        assert text == outputs[which]["text"]
    return "sampled" if sampled else "greedy"


def test_bench_serve(serving: Serving, tmp_path: Path) -> None:
    server, prompts = serving("v1"), tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    levels = ["--concurrency", "1", "--concurrency", "8", "--rounds", "2", "--max-new-tokens", str(TOKENS)]
    url = f"http://127.0.0.1:{server.port}"
    command = [sys.executable, "-m", "accelplug", "bench", "serve", url, "--prompts", str(prompts), *levels, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    alone, together = json.loads(done.stdout)["rows"]
    for row, level, requests in ((alone, 1, len(TEXTS)), (together, 8, 8)):
        assert (row["url"], row["model"], row["concurrency"], row["requests"], row["same text"]) == (url, "tiny", level, requests, requests)
        assert len(set(row["tokens"])) == 1, "greedy answers are as long in every round"
        assert 0 < row["tokens"][0] <= requests * TOKENS
        for times in (row["ttft_ms"], row["itl_ms"]):
            assert 0 < times["p50"] <= times["p99"]
        assert 0 < row["drafts"]["accepted"] < row["drafts"]["drafted"], "what the drafter knows of these prompts"
    assert alone["drafts"]["drafted"] < together["drafts"]["drafted"]


@pytest.mark.parametrize("runner", TOLD)
def test_serves_right_and_survives_its_drafter_and_its_rule(runner: str, serving: Serving, machine: Machine, outputs: list[dict[str, Any]]) -> None:
    server = serving(runner)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, timeout=900)
    earlier = server.idle()  # after what other tests asked
    with pytest.raises(openai.BadRequestError, match="a request's draft length: num_tokens=9 is out of range, it takes between 0 and 4"):
        client.completions.create(model="tiny", prompt=LAST, extra_body={"vllm_xargs": {"accelplug.num_tokens": 9}})
    check_own_metrics(client, outputs)
    with ThreadPoolExecutor(CLIENTS) as clients:
        ended = Counter(clients.map(lambda number: ask(server, client, number, outputs), range(CLIENTS)))
    assert min(ended[how] for how in ("aborted", "sampled", "greedy")) > 0
    last = client.completions.create(
        model="tiny", prompt=LAST, max_tokens=TOKENS, temperature=0, extra_body={"ignore_eos": True, "return_token_ids": True}
    )
    assert last.choices[0].token_ids == outputs[-1]["token_ids"]  # type: ignore[attr-defined]
    greedy = [number for number in range(CLIENTS) if number % 3 != 2]
    drafted, aborted = (sum(number % 4 in which for number in greedy) for which in ((1, 2), (3,)))
    least = drafted + 2 if runner == "v1" else 0  # the request before the clients and the one behind them, too
    audited = sample_of(earlier, "accelplug_audited_requests_total")
    server.when(lambda found: sample_of(found, "accelplug_audited_requests_total") >= audited + least)
    metrics = server.idle()
    check_metrics(metrics)
    refused = "accelplug_refused_requests_total", 'kind="drafter"', 'technique="oracle"', 'reason="option"'
    assert total_of(metrics, *refused) == total_of(earlier, *refused) + 1
    audited = sample_of(metrics, "accelplug_audited_requests_total") - audited
    assert least <= audited <= drafted + 2 + aborted, "what ended before its client left may be among them"
    log = server.log.read_text()
    assert f"drafter 'oracle' (adversaries 1.5) drafts in vLLM's {SHOWN[runner]}" in log
    assert "verifier 'halved' (adversaries 1.5) verifies in place of vLLM's rejection sampler" in log
    for line in TOLD[runner]:
        assert log.count(line.format(worker=machine.worker, host_wait=machine.host_wait)) == 1, line
    assert log.count("propose raised RuntimeError: the oracle has fallen silent; it is switched off") == 1
    assert log.count("(adversaries 1.5) raised RuntimeError: the rule has fallen silent; it is switched off") == 1
    server.stop()
    assert server.process.returncode == 0
    assert server.left_over(60) == []


def check_own_metrics(client: openai.OpenAI, outputs: list[dict[str, Any]]) -> None:
    """vLLM says in an answer what became of its drafts, ours too, and we say whose they were."""
    answer = client.completions.create(model="tiny", prompt=PROMPTS[0], max_tokens=TOKENS, temperature=0, extra_body={"ignore_eos": True})
    assert answer.choices[0].text == outputs[0]["text"]
    own = answer.metrics["speculative_decoding"]  # type: ignore[attr-defined]
    assert 0 < own["num_accepted_draft_tokens"] < own["num_draft_tokens"]
    assert (own["drafter"], own["verifier"]) == ("oracle (adversaries 1.5)", "halved (adversaries 1.5)")


def check_metrics(metrics: str) -> None:
    drafter, rule = ('kind="drafter"', 'technique="oracle"', 'distribution="adversaries"', 'version="1.5"'), RULE
    drafted, accepted = sample_of(metrics, "accelplug_drafted_tokens_total", *drafter), sample_of(metrics, "accelplug_accepted_tokens_total", *drafter)
    assert 0 < accepted < drafted
    drafts, judged = (sample_of(metrics, "accelplug_drafts_total", *who) for who in (drafter, rule))
    assert 0 < accepted / drafts <= 4, "1 more than this is the mean length of a step with a draft"
    assert judged == drafts
    assert sample_of(metrics, "accelplug_accepted_tokens_total", *rule) == accepted, "forced tokens are the grammars'"
    assert sample_of(metrics, "accelplug_plugin_seconds_total", *drafter) > 0
    assert sample_of(metrics, "accelplug_plugin_seconds_total", *rule) > 0
    assert sample_of(metrics, "accelplug_lossy_accepts_total", *rule) == 0
    assert (sample_of(metrics, "accelplug_switched_off", *drafter), sample_of(metrics, "accelplug_switched_off", *rule)) == (1, 1)
    assert sample_of(metrics, "accelplug_audit_mismatches_total") == 0
    assert sample_of(metrics, "vllm:spec_decode_num_accepted_tokens_total") > 0
    assert (sample_of(metrics, "vllm:kv_cache_usage_perc"), sample_of(metrics, "vllm:num_requests_running")) == (0, 0)


def test_refusal_stops_the_server_before_weights_load(model_dir: Path, site: Path, tmp_path: Path) -> None:
    started = Server(model_dir, site, tmp_path / "refused.log", "--additional-config", '{"accelplug": {"drafter": "prompt_lookup(num_tokns=4)"}}')
    try:
        assert started.process.wait(600) != 0
    finally:
        started.kill()
    log = started.log.read_text()
    assert "OptionError: drafter 'prompt_lookup'" in log
    assert "did you mean 'num_tokens'?" in log
    assert "Starting to load model" not in log
