"""``accelplug bench serve`` against a server of this file's own: what is asked, what is counted, and what is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from accelplug.cli import main
from accelplug.cli.bench.client import Answer, accepted

pytest.importorskip("openai")
CHUNKS = [("one", 1), (" two three", 3), (" four", 4)]  # text, and how many tokens there are by then


class Handler(BaseHTTPRequestHandler):
    """Streams the same answer to everybody, and notes what it was asked."""

    server: Any

    def log_message(self, *given: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            models = [{"id": name, "object": "model", "created": 0, "owned_by": "x"} for name in self.server.models]
            self._send("application/json", json.dumps({"object": "list", "data": models}))
        elif self.path == "/metrics" and self.server.drafts:
            drafted = 10 * len(self.server.asked)
            self._send("text/plain", self.server.drafts.format(drafted=drafted, accepted=drafted // 4))
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, body))
            self.server.running += 1
            self.server.most = max(self.server.most, self.server.running)
        try:
            self._answer(body)
        finally:
            with self.server.lock:
                self.server.running -= 1

    def _answer(self, body: dict[str, Any]) -> None:
        if self.server.together:
            self.server.together.wait(30)  # until as many requests are here as are to be at once
        if self.server.refuses:
            self.send_response(400)
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "the prompt is too long"}}')
            return
        is_chat = "messages" in body
        lines = []
        for text, tokens in self.server.chunks:
            choice = {"index": 0, "finish_reason": None, **({"delta": {"content": text}} if is_chat else {"text": text})}
            usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1} if self.server.tells else None
            lines.append({"id": "x", "object": "x", "created": 0, "model": "m", "choices": [choice], "usage": usage})
        last = self.server.chunks[-1][1] if self.server.chunks else 0
        lines.append({**BLANK, "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": last, "total_tokens": last + 1}})
        self._send("text/event-stream", "".join(f"data: {json.dumps(line)}\n\n" for line in lines) + "data: [DONE]\n\n")

    def _send(self, kind: str, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())


BLANK = {"id": "x", "object": "x", "created": 0, "model": "m"}
VLLMS = "vllm:spec_decode_num_draft_tokens_total{{e=\"0\"}} {drafted}.0\nvllm:spec_decode_num_accepted_tokens_total{{e=\"0\"}} {accepted}.0\n"


@pytest.fixture
def serve() -> Iterator[Any]:
    running = []

    def start(*, chunks=CHUNKS, models=("m",), drafts="", tells=True, refuses=False, together=0) -> Any:
        server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.chunks, server.models, server.drafts, server.tells, server.refuses = chunks, models, drafts, tells, refuses
        server.together = threading.Barrier(together) if together else None
        server.lock, server.asked, server.running, server.most = threading.Lock(), [], 0, 0
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def prompts(tmp_path) -> str:
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "def f("}, {"prompt": "def g(", "task": "code"}, {"turns": ["Why?"], "category": "talk"}]
    file.write_text("\n".join(map(json.dumps, lines)))
    return str(file)


def measured(capsys, *arguments: str) -> dict[str, Any]:
    assert main(["bench", "serve", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_prompt_is_asked_in_every_round_and_counted(serve, prompts, capsys):
    server = serve(drafts=VLLMS)
    document = measured(capsys, f"{server.url}/v1/", "--prompts", prompts, "--rounds", "2", "--concurrency", "1", "--max-new-tokens", "9")
    (row,) = document["rows"]
    assert [path for path, _ in server.asked] == 3 * ["/v1/completions", "/v1/completions", "/v1/chat/completions"]
    assert all(body["temperature"] == 0 and body["max_tokens"] == 9 and body["stream"] and body["model"] == "m" for _, body in server.asked)
    assert (row["requests"], row["tokens"], row["same text"], row["concurrency"]) == (3, [12, 12], 3, 1)
    assert row["drafts"] == {"drafted": 60, "accepted": 15}, "of the two rounds, the warm-up left out"
    assert row["x first"]["median"] == 1
    assert 0 < row["ttft_ms"]["p50"] <= row["ttft_ms"]["p99"]
    assert row["tokens_per_s"] > 0
    assert document["argv"]
    assert document["versions"]["openai"]


def test_as_many_requests_run_at_once_as_were_asked_for(serve, prompts, capsys):
    server = serve(together=3)  # which answers none before three are there
    document = measured(capsys, server.url, "--prompts", prompts, "--rounds", "1", "--concurrency", "3")
    assert (server.most, document["rows"][0]["requests"]) == (3, 3)
    server = serve()
    document = measured(capsys, server.url, "--prompts", prompts, "--rounds", "1", "--concurrency", "2", "--concurrency", "7")
    assert server.most <= 7
    assert [row["requests"] for row in document["rows"]] == [3, 7], "prompts are repeated until there are enough"


def test_servers_take_turns_and_are_compared_with_the_first(serve, prompts, capsys):
    first, second = serve(), serve(chunks=[("one", 1), (" other", 2)])
    document = measured(capsys, first.url, second.url, "--prompts", prompts, "--task", "code", "--concurrency", "1", "--rounds", "1")
    own, other = document["rows"]
    assert (own["url"], other["url"]) == (first.url, second.url)
    assert (own["same text"], other["same text"]) == (1, 0)
    assert (own["tokens"], other["tokens"]) == ([4], [2])
    assert main(["bench", "serve", first.url, "--prompts", prompts, "--concurrency", "1", "--rounds", "1"]) == 0
    assert first.url in capsys.readouterr().out


def test_without_usage_in_its_chunks_a_chunk_is_a_token_until_the_last_says_better(serve, prompts, capsys):
    (row,) = measured(capsys, serve(tells=False).url, "--prompts", prompts, "--concurrency", "1", "--rounds", "1")["rows"]
    assert (row["tokens"], row["drafts"]) == ([12], None)


def test_tokens_of_one_chunk_share_its_gap():
    answer = Answer()
    for text, tokens, waited in (("", 0, 0.5), ("a", 1, 2.0), ("bcd", 4, 3.0), ("", 4, 9.0), ("e", None, 1.0)):
        answer.add(text, tokens, waited)
    assert (answer.first, answer.gaps, answer.tokens, answer.text) == (2.0, [1.0, 1.0, 1.0, 1.0], 5, "abcde")


def test_accelplugs_counters_are_preferred_and_verifiers_not_counted_twice():
    after = {'accelplug_drafted_tokens_total{kind="drafter"}': 9.0, 'accelplug_accepted_tokens_total{kind="drafter"}': 6.0,
             'accelplug_drafted_tokens_total{kind="verifier"}': 9.0, "vllm:spec_decode_num_draft_tokens_total": 99.0}  # fmt: skip
    assert accepted({'accelplug_drafted_tokens_total{kind="drafter"}': 1.0}, after) == {"drafted": 8.0, "accepted": 6.0}
    assert accepted(after, after) is None


@pytest.mark.parametrize(
    ("settings", "arguments", "sentence"),
    [
        ({"refuses": True}, [], "did not answer a request (BadRequestError: Error code: 400"),
        ({"models": ()}, [], "serves no model; start it with one"),
        ({"chunks": []}, [], "answered a request with no tokens"),
        ({}, ["--task", "adversarial"], "no task 'adversarial'; there are prompts, code, talk"),
        ({}, ["--prompts", "/nowhere"], "cannot read the prompts"),
    ],
)
def test_refusals(serve, prompts, capsys, settings, arguments, sentence):
    assert main(["bench", "serve", serve(**settings).url, "--prompts", prompts, *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_server_that_is_not_there(serve, prompts, capsys):
    server = serve()
    server.shutdown()
    server.server_close()
    assert main(["bench", "serve", server.url, "--prompts", prompts]) == 2
    assert f"no OpenAI-compatible server answers at {server.url} (APIConnectionError" in capsys.readouterr().err
    assert main(["bench", "serve", "nonsense", "--prompts", prompts]) == 2
    assert "no OpenAI-compatible server answers at nonsense" in capsys.readouterr().err


def test_without_the_clients_package(monkeypatch, prompts, capsys):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    assert main(["bench", "serve", "http://127.0.0.1:1", "--prompts", prompts]) == 2
    assert "measuring a server needs the package openai; pip install 'accelplug[serve]'" in capsys.readouterr().err
