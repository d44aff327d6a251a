"""``vllm serve`` with accelplug's settings on its command line, spoken to by the OpenAI client."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from batches import LAST, SERVED, TOKENS
from jobs import LOGS, environment

CLIENTS = {"v1": 32, "v2-async": 8}  # V2 runs in Triton's interpreter
AUDITED = {"v1": 1.0, "v2-async": 0.2}
SHOWN = {"v1": "V1 runner; vLLM shows it as method 'custom_class'", "v2-async": "V2 runner; vLLM shows it as method 'ngram_gpu'"}
FRONT = "in vLLM's front end: EngineArgs.create_engine_config, InputProcessor._validate_params, AsyncLLM.generate, LLMEngine.add_request, LLMEngine.step"
TOLD = {
    "v1": [FRONT, "in effect in vLLM's model runner: custom_class proposer", "in effect in vLLM's model runner: rejection_sampler"],
    "v2-async": [
        FRONT, "in effect in vLLM's model runner: speculator", "(adversaries 1.5) drafts in host memory: no wait on a CPU",
        "every step verifies 4 drafts of every request, drafted or padding",
    ],
}  # fmt: skip
*PROMPTS, _ = SERVED["prompts"]


@pytest.fixture
def outputs(plain: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What vLLM generates without a drafter and without a server."""
    return plain["served"]


class Server:
    """A server in a process group of its own."""

    def __init__(self, model_dir: Path, site: Path, log: Path, *flags: str, runner: str = "v1") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log, self.runner = log, runner
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model_dir), "--served-model-name", "tiny", "--port", str(self.port)]
        sizes = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "96", "--max-num-seqs", "8", "--host", "127.0.0.1"]
        LOGS.append(log)
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*command, *sizes, *flags], env=environment(runner, site, serve=True), stdout=out, stderr=out, start_new_session=True
            )

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def when(self, happened: Callable[[str], bool], seconds: float = 100) -> str:
        """Return the metrics as soon as something happened."""
        end = time.monotonic() + seconds
        while not happened(metrics := self.get("/metrics")) and time.monotonic() < end:
            time.sleep(0.2)
        return metrics

    def wait(self, seconds: float = 400) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self.get("/health")
            except OSError:
                assert self.process.poll() is None, self.log.read_text()[-3000:]
                time.sleep(0.5)
            else:
                return
        raise AssertionError(self.log.read_text()[-3000:])

    def members(self) -> list[int]:
        """Return the processes of the server's group that still run; those that ended and wait to be reaped do not."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(group) == self.process.pid and state != "Z":
                found.append(int(stat.parent.name))
        return found

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)

    def left_over(self, seconds: float) -> list[str]:
        """Return the command lines of what still runs after so long: helpers such as a resource tracker end after their parent."""
        until = time.monotonic() + seconds
        while (members := self.members()) and time.monotonic() < until:
            time.sleep(0.2)
        return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in members]

    def kill(self) -> None:
        for pid in self.members():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(params=CLIENTS)
def server(request: pytest.FixtureRequest, model_dir: Path, site: Path, tmp_path: Path, outputs: list[dict[str, Any]]) -> Iterator[Server]:
    """A server whose drafter is right at first and raises in the middle, behind a verification rule that is not vLLM's."""
    sequences = tmp_path / "sequences.json"
    sequences.write_text(json.dumps([[prompt, output["token_ids"]] for prompt, output in zip([*PROMPTS, LAST], outputs, strict=True)]))
    dotted = [
        "--additional-config.accelplug.drafter.name", "oracle",
        "--additional-config.accelplug.drafter.sequences", str(sequences),
        "--additional-config.accelplug.drafter.pattern", "[[2, 1]]",
        "--additional-config.accelplug.drafter.raise_at", str(CLIENTS[request.param] + 8),
        "--additional-config.accelplug.verifier=halved",
        "--additional-config.accelplug.audit", str(AUDITED[request.param]),
        "--per-request-spec-decode-metrics", "summary",
    ]  # fmt: skip
    started = Server(model_dir, site, tmp_path / "server.log", *dotted, runner=request.param)
    yield started
    started.kill()


def ask(client: openai.OpenAI, number: int, outputs: list[dict[str, Any]]) -> str:
    """Stream one completion: every fourth is aborted, every third sampled, the others compared with plain vLLM's text."""
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


def sample_of(metrics: str, name: str, *labels: str) -> float:
    """Return a metric's value; the one line that has the name and the labels."""
    (line,) = (line for line in metrics.splitlines() if re.match(rf"{name}(?:{{|\s)", line) and all(label in line for label in labels))
    return float(line.rsplit(" ", 1)[1])


def test_serves_right_and_survives_its_drafter(server: Server, outputs: list[dict[str, Any]]) -> None:
    server.wait()
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, timeout=300)
    with pytest.raises(openai.BadRequestError, match="a request's draft length: num_tokens=9 is out of range, it takes between 0 and 4"):
        client.completions.create(model="tiny", prompt=LAST, extra_body={"vllm_xargs": {"accelplug.num_tokens": 9}})
    check_own_metrics(client, outputs)
    number_of_clients = CLIENTS[server.runner]
    with ThreadPoolExecutor(number_of_clients) as clients:
        ended = Counter(clients.map(lambda number: ask(client, number, outputs), range(number_of_clients)))
    assert min(ended[how] for how in ("aborted", "sampled", "greedy")) > 0
    last = client.completions.create(
        model="tiny", prompt=LAST, max_tokens=TOKENS, temperature=0, extra_body={"ignore_eos": True, "return_token_ids": True}
    )
    assert last.choices[0].token_ids == outputs[-1]["token_ids"]  # type: ignore[attr-defined]
    greedy = [number for number in range(number_of_clients) if number % 3 != 2]
    drafted, aborted = (sum(number % 4 in which for number in greedy) for which in ((1, 2), (3,)))
    least = drafted + 2 if server.runner == "v1" else 0  # the request before the clients and the one behind them, too
    metrics = server.when(
        lambda found: sample_of(found, "accelplug_audited_requests_total") >= least and sample_of(found, "vllm:num_requests_running") == 0
    )
    check_metrics(metrics)
    audited = sample_of(metrics, "accelplug_audited_requests_total")
    assert least <= audited <= drafted + 2 + aborted, "what ended before its client left may be among them"
    log = server.log.read_text()
    assert f"drafter 'oracle' (adversaries 1.5) drafts in vLLM's {SHOWN[server.runner]}" in log
    assert "verifier 'halved' (adversaries 1.5) verifies in place of vLLM's rejection sampler" in log
    for line in TOLD[server.runner]:
        assert log.count(line) == 1, line
    assert log.count("propose raised RuntimeError: the oracle has fallen silent; it is switched off") == 1
    server.stop()
    assert server.process.returncode == 0
    assert server.left_over(60) == []


def check_own_metrics(client: openai.OpenAI, outputs: list[dict[str, Any]]) -> None:
    """vLLM says in an answer what became of its drafts, ours too."""
    answer = client.completions.create(model="tiny", prompt=PROMPTS[0], max_tokens=TOKENS, temperature=0, extra_body={"ignore_eos": True})
    assert answer.choices[0].text == outputs[0]["text"]
    own = answer.metrics["speculative_decoding"]  # type: ignore[attr-defined]
    assert 0 < own["num_accepted_draft_tokens"] < own["num_draft_tokens"]


def check_metrics(metrics: str) -> None:
    drafter, rule = ('kind="drafter"', 'technique="oracle"', 'distribution="adversaries"', 'version="1.5"'), ('kind="verifier"', 'technique="halved"')
    drafted, accepted = sample_of(metrics, "accelplug_drafted_tokens_total", *drafter), sample_of(metrics, "accelplug_accepted_tokens_total", *drafter)
    assert 0 < accepted < drafted
    assert sample_of(metrics, "accelplug_accepted_tokens_total", *rule) == accepted
    assert sample_of(metrics, "accelplug_plugin_seconds_total", *drafter) > 0
    assert sample_of(metrics, "accelplug_plugin_seconds_total", *rule) > 0
    assert sample_of(metrics, "accelplug_lossy_accepts_total", *rule) == 0
    assert (sample_of(metrics, "accelplug_switched_off", *drafter), sample_of(metrics, "accelplug_switched_off", *rule)) == (1, 0)
    assert sample_of(metrics, "accelplug_refused_requests_total") == 1
    assert sample_of(metrics, "accelplug_audit_mismatches_total") == 0
    assert sample_of(metrics, "vllm:spec_decode_num_accepted_tokens_total") > 0
    assert (sample_of(metrics, "vllm:kv_cache_usage_perc"), sample_of(metrics, "vllm:num_requests_running")) == (0, 0)


def test_refusal_stops_the_server_before_weights_load(model_dir: Path, site: Path, tmp_path: Path) -> None:
    started = Server(model_dir, site, tmp_path / "refused.log", "--additional-config", '{"accelplug": {"drafter": "prompt_lookup(num_tokns=4)"}}')
    try:
        assert started.process.wait(120) != 0
    finally:
        started.kill()
    log = started.log.read_text()
    assert "OptionError: drafter 'prompt_lookup'" in log
    assert "did you mean 'num_tokens'?" in log
    assert "Starting to load model" not in log
