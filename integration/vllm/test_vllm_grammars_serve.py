"""``vllm serve`` with a grammar engine of accelplug's: the OpenAI API's structured outputs, what is refused with HTTP 400, and a server that goes on."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from jsonschema import Draft202012Validator
from servers import Server, Serving, sample_of, total_of
from test_vllm_grammars import RECORD, REGEX, UNIQUE

PROMPT = [5, 6, 7, 8, 5, 6, 7]
IMPOSSIBLE = {"allOf": [{"type": "string"}, {"type": "integer"}]}
ENDLESS = {"type": "string", "allOf": [{"pattern": "^a{60}!$"}, {"pattern": r"^(?:(a|aa)+)+\1$"}]}
"""The second expression cannot be a mask, and no search for it in the text that the first one allows would ever end."""


def nested(depth: int, inner: dict[str, Any]) -> dict[str, Any]:
    """Return a schema of arrays in arrays."""
    for _ in range(depth):
        inner = {"type": "array", "items": inner}
    return inner


def complete(client: openai.OpenAI, body: dict[str, Any], **xargs: Any) -> Any:
    """Return the one choice of a greedy completion."""
    given = {**body, "vllm_xargs": {f"accelplug.{name}": value for name, value in xargs.items()}}
    return client.completions.create(model="tiny", prompt=PROMPT, max_tokens=70, temperature=0, extra_body=given).choices[0]


def formatted(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


def test_openai_api(serving: Serving) -> None:
    server = serving("v1")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, timeout=900)
    refused = total_of(server.get("/metrics"), "accelplug_refused_requests_total")
    answer = complete(client, formatted(RECORD), whitespace="compact")
    assert answer.finish_reason == "stop"
    assert Draft202012Validator(RECORD).is_valid(json.loads(answer.text))
    check_several(client)
    check_refused(client)
    with ThreadPoolExecutor(8) as clients:  # several engines and a failing one at once
        names = ["auto", "xgrammar", "llguidance", "outlines", "vllm", "faulty"]
        answers = list(clients.map(lambda name: attempt(client, {"structured_outputs": {"regex": REGEX}}, name), names))
    assert len(set(answers[:-1])) == 1
    assert "InternalServerError" in answers[-1], answers[-1]
    check_tool_call(client)
    metrics = server.get("/metrics")
    forced = 'kind="grammar"', 'technique="auto"', 'distribution="accelplug"'
    assert sample_of(metrics, "accelplug_accepted_tokens_total", *forced) > 0
    check_counted(client, server)
    check_stated(client)
    assert total_of(metrics, "accelplug_refused_requests_total") == refused + len(REFUSED)
    assert total_of(metrics, "accelplug_refused_requests_total", 'kind="grammar"', 'technique="auto"', 'reason="grammar"') > 0
    endless = complete(client, formatted(ENDLESS))
    assert str(endless.stop_reason).startswith("accelplug: the final check was ended after 2 s, in the pattern "), endless
    again = complete(client, formatted(RECORD), whitespace="compact")
    assert again.text == answer.text
    assert "grammar 'auto' (accelplug 0.1.0) compiled a json_schema with llguidance" in server.log.read_text()


def check_several(client: openai.OpenAI) -> None:
    """Check that an answer follows its format, and the grammars that the request names beside."""
    record = complete(client, formatted(RECORD), whitespace="compact", all_of=json.dumps([{"regex": r'\{"subject":"two","count":[0-9]?7,.*'}]))
    assert record.finish_reason == "stop"
    assert Draft202012Validator(RECORD).is_valid(found := json.loads(record.text))
    assert (found["subject"], found["count"] % 10) == ("two", 7)


def check_stated(client: openai.OpenAI) -> None:
    """Check that an answer says, where its request asks, what the mask enforced and what was checked, and the last part of a streamed one alike."""
    whole = complete(client, formatted(RECORD), whitespace="compact", statement=1)
    said = json.loads(whole.stop_reason)["accelplug"]
    assert ("#/required" in said["enforced"], said["checked"], said["problem"]) == (True, [], None), said
    assert said["engine"].startswith("llguidance "), said
    assert said["forced_tokens"] >= said["accepted_tokens"] > 0, said
    given = {**formatted(UNIQUE), "vllm_xargs": {"accelplug.whitespace": "compact", "accelplug.statement": 1}}
    stream = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=70, temperature=0, extra_body=given, stream=True)
    *_, last = [part.choices[0] for part in stream if part.choices]
    said = json.loads(last.stop_reason)["accelplug"]
    assert (said["checked"], said["problem"][:28]) == (["#/uniqueItems"], "the value breaks uniqueItems"), said


def check_counted(client: openai.OpenAI, server: Server) -> None:
    """Check that an answer that ends, drafts that its grammar forbids, one that is wrong in the end, and a failing engine are counted, each once.

    The audit of an answer is counted like it, if it has ended by then.
    """
    of = {name: ('kind="grammar"', f'technique="{name}"') for name in ("auto", "faulty")}
    names = ("answers", "violations", "cut_drafts", "failed_requests")

    def counted(engine: str) -> list[float]:
        metrics = server.get("/metrics")
        return [sample_of(metrics, f"accelplug_{name}_total", *of[engine]) for name in names]

    assert counted("faulty")[0] == 0
    assert counted("faulty")[3] == 1  # of the clients' above
    server.idle()
    before = counted("auto")
    wrong = complete(client, formatted(UNIQUE), whitespace="compact", statement=1)
    said = json.loads(wrong.stop_reason)["accelplug"]
    assert said["problem"].startswith("the value breaks uniqueItems"), said
    answers, violations, _, failed = [after - count for after, count in zip(counted("auto"), before, strict=True)]
    assert answers == violations in {1, 2}
    assert failed == 0
    server.idle()
    assert counted("auto")[2] > 0, "prompt_lookup drafted nothing that a grammar forbids"
    assert counted("auto")[2] - before[2] == said["cut_drafts"], "what the answer says comes to what is counted; an audit drafts nothing"


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (formatted(IMPOSSIBLE), {}, "no value"),
    (formatted(nested(300, {"type": "integer"})), {}, "nested"),
    (formatted({"$ref": "https://example.org/schema"}), {}, "https://example.org/schema"),
    (formatted({"type": "array", "uniqueItems": True}), {"strict": 1}, "uniqueItems"),
    ({"structured_outputs": {"regex": "a("}}, {}, "a("),
    (formatted(RECORD), {"grammar": "nobodys"}, "no grammar named 'nobodys'"),
    (formatted(RECORD), {"whitespace": "none"}, "whitespace='none'"),
    ({"structured_outputs": {"regex": "a+"}}, {"all_of": '[{"choice": ["b"]}]'}, "no text satisfies both the regex 'a+' and the choice"),
    ({}, {"whitespace": "compact"}, "the request sets whitespace and has no grammar to go by"),
]


def check_refused(client: openai.OpenAI) -> None:
    """Check that each of these is HTTP 400 and says why."""
    for body, xargs, message in REFUSED:
        with pytest.raises(openai.BadRequestError) as refused:
            complete(client, body, **xargs)
        assert message in str(refused.value), body


def attempt(client: openai.OpenAI, body: dict[str, Any], name: str) -> str:
    """Return the answer's text, or what came in its place."""
    try:
        return str(complete(client, body, grammar=name).text)
    except openai.APIError as exc:
        return type(exc).__name__


def check_tool_call(client: openai.OpenAI) -> None:
    """Check that a tool's arguments are what its schema says."""
    function = {"name": "note", "parameters": RECORD, "strict": True}  # else vLLM asks its grammar for any JSON
    tool: Any = {"type": "function", "function": function}
    choice: Any = {"type": "function", "function": {"name": "note"}}
    messages: Any = [{"role": "user", "content": "one sees fish"}]
    found = client.chat.completions.create(model="tiny", messages=messages, tools=[tool], tool_choice=choice, max_tokens=200, temperature=0)
    (call,) = found.choices[0].message.tool_calls or ()
    assert Draft202012Validator(RECORD).is_valid(json.loads(call.function.arguments))  # type: ignore[union-attr]
