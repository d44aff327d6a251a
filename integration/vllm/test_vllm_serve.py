"""``vllm serve`` with accelplug's settings on its command line, spoken to by the OpenAI client."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from jobs import Run, engine, environment

PROMPTS = [[5, 6, 7, 8, 5, 6, 7], [20, 21, 22], [9, 9, 9, 9, 10, 11]]
TOKENS = 16


@pytest.fixture(scope="module")
def outputs(run: Run, model_dir: Path) -> list[dict[str, Any]]:
    """What vLLM generates without a drafter and without a server."""
    batch = {"prompts": PROMPTS, "params": {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}}
    found: list[dict[str, Any]] = run("v1", engine(model_dir, "plain", batch))["plain"]["outputs"][0]
    return found


class Server:
    """A server in a process group of its own."""

    def __init__(self, model_dir: Path, site: Path, log: Path, *flags: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = log
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model_dir), "--served-model-name", "tiny", "--port", str(self.port)]
        sizes = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "96", "--max-num-seqs", "4", "--host", "127.0.0.1"]
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*command, *sizes, *flags], env=environment("v1", site, serve=True), stdout=out, stderr=out, start_new_session=True
            )

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def wait(self, seconds: float = 180) -> None:
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


@pytest.fixture
def server(model_dir: Path, site: Path, tmp_path: Path, outputs: list[dict[str, Any]]) -> Iterator[Server]:
    """A server whose drafter is right at first and raises in its tenth step."""
    sequences = tmp_path / "sequences.json"
    sequences.write_text(json.dumps([[prompt, output["token_ids"]] for prompt, output in zip(PROMPTS, outputs, strict=True)]))
    dotted = [
        "--additional-config.accelplug.drafter.name", "oracle",
        "--additional-config.accelplug.drafter.sequences", str(sequences),
        "--additional-config.accelplug.drafter.pattern", "[[2, 1]]",
        "--additional-config.accelplug.drafter.raise_at", "10",
    ]  # fmt: skip
    started = Server(model_dir, site, tmp_path / "server.log", *dotted)
    yield started
    started.kill()


def test_serves_right_and_survives_its_drafter(server: Server, outputs: list[dict[str, Any]]) -> None:
    server.wait()
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none")
    for _ in range(3):
        for prompt, expected in zip(PROMPTS, outputs, strict=True):
            answer = client.completions.create(
                model="tiny", prompt=prompt, max_tokens=TOKENS, temperature=0, extra_body={"ignore_eos": True, "return_token_ids": True}
            )
            assert answer.choices[0].token_ids == expected["token_ids"]  # type: ignore[attr-defined]
            assert answer.choices[0].text == expected["text"]
    counters = dict(line.rsplit(" ", 1) for line in server.get("/metrics").splitlines() if line.startswith("vllm:spec_decode_num_"))
    accepted = next(float(value) for name, value in counters.items() if name.startswith("vllm:spec_decode_num_accepted_tokens_total"))
    assert accepted > 0
    log = server.log.read_text()
    assert "drafter 'oracle' (adversaries 1.5) drafts in vLLM's V1 runner; vLLM shows it as method 'custom_class'" in log
    assert log.count("propose raised RuntimeError: the oracle has fallen silent; it is switched off") == 1
    server.stop()
    assert server.process.returncode == 0
    assert server.left_over(30) == []


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
