"""Requests to an OpenAI-compatible server, streamed and timed, and the counters that the server shows."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Final
from urllib.request import urlopen

from accelplug._errors import HostError
from accelplug.cli.bench.tasks import Text

COUNTERS: Final = ("accelplug_", "vllm:spec_decode_")
_EVERY_CHUNK: Final = {"include_usage": True, "continuous_usage_stats": True}  # the second is vLLM's own, others pass over it


@dataclass(slots=True)
class Answer:
    """What came of one request, in seconds since it was sent.

    :ivar gaps: for each token but those of the first chunk, how long after its predecessor it came; tokens of one chunk share its gap.
    """

    first: float = 0.0
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    text: str = ""

    def add(self, text: str, tokens: int | None, waited: float) -> None:
        """Take a chunk.

        :param tokens: how many there are by now; None where the server does not say, and then a chunk is a token.
        :param waited: seconds since the chunk before, or since the request was sent.
        """
        new = 1 if tokens is None else tokens - self.tokens
        if not text and new <= 0:
            return
        if not self.text and not self.tokens:
            self.first = waited
        else:
            self.gaps += [waited / max(new, 1)] * max(new, 1)
        self.tokens += new
        self.text += text


class Server:
    """A running server.

    :param url: as people write it, with or without ``/v1``.
    :raises HostError: the client's package is missing, or the server does not answer.
    """

    def __init__(self, url: str, model: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._openai = _openai()
        self.model = model or self.models()[0]

    def models(self) -> list[str]:
        """Return the models served.

        :raises HostError: the server does not answer, or serves none.
        """
        try:
            with self._openai.OpenAI(base_url=f"{self.url}/v1", api_key=_key(), max_retries=0, timeout=30) as client:
                found = [model.id for model in client.models.list()]
        except (self._openai.OpenAIError, ValueError) as exc:
            raise HostError(f"no OpenAI-compatible server answers at {self.url} ({_said(exc)}); start one, or pass its address") from exc
        if not found:
            raise HostError(f"{self.url} serves no model; start it with one")
        return found

    def run(self, texts: Sequence[Text], concurrency: int, max_tokens: int, tick: Callable[[], None]) -> tuple[float, list[Answer]]:
        """Ask all texts, `concurrency` of them at a time; return the seconds that took, and the answers in the order of the texts.

        :raises HostError: the server refuses a request or breaks off.
        """
        return asyncio.run(self._run(texts, concurrency, max_tokens, tick))

    async def _run(self, texts: Sequence[Text], concurrency: int, max_tokens: int, tick: Callable[[], None]) -> tuple[float, list[Answer]]:
        answers: list[Answer] = [Answer() for _ in texts]
        waiting = iter(enumerate(texts))

        async def ask_one_after_the_other(client: Any) -> None:
            for number, text in waiting:
                try:
                    answers[number] = await self._ask(client, text, max_tokens)
                except self._openai.OpenAIError as exc:
                    raise HostError(f"{self.url} did not answer a request ({_said(exc)}); see its log") from exc
                tick()

        try:
            async with self._openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=_key(), max_retries=0, timeout=600) as client:
                began = time.perf_counter()
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(concurrency, len(texts))):
                        group.create_task(ask_one_after_the_other(client))
                return time.perf_counter() - began, answers
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the first that failed; the others were cancelled

    async def _ask(self, client: Any, text: Text, max_tokens: int) -> Answer:
        """Ask for a text's continuation, a question through the server's chat template; greedily."""
        asked: dict[str, Any] = {"model": self.model, "temperature": 0, "max_tokens": max_tokens, "stream": True, "stream_options": _EVERY_CHUNK}
        answer, before = Answer(), time.perf_counter()
        if text.is_question:
            stream = await client.chat.completions.create(messages=[{"role": "user", "content": text.text}], **asked)
        else:
            stream = await client.completions.create(prompt=text.text, **asked)
        async for chunk in stream:
            now = time.perf_counter()
            usage = None if chunk.usage is None else chunk.usage.completion_tokens
            if chunk.choices:
                choice = chunk.choices[0]
                answer.add((choice.delta.content if text.is_question else choice.text) or "", usage, now - before)
                before = now
            elif usage:
                answer.tokens = usage  # the last chunk's, where the others have none
        if not answer.tokens:
            raise HostError(f"{self.url} answered a request with no tokens; see that --prompts suit the model")
        return answer

    def counters(self) -> dict[str, float]:
        """Return what ``/metrics`` counts of drafting, by name and labels; nothing where the server has no such page."""
        try:
            with urlopen(f"{self.url}/metrics", timeout=30) as page:
                lines = page.read().decode().splitlines()
        except (OSError, HTTPException, ValueError):
            return {}
        samples = (line.rpartition(" ") for line in lines if line.startswith(COUNTERS))
        return {name: float(value) for name, _, value in samples if not name.partition("{")[0].endswith("_created")}


def accepted(before: dict[str, float], after: dict[str, float]) -> dict[str, float] | None:
    """Return how many tokens were drafted and accepted between two looks at ``/metrics``; None where nothing was drafted.

    accelplug's counters say it where the server has them, else vLLM's, which no technique is named in.
    """

    def grown(name: str, label: str) -> float:
        return sum(value - before.get(key, 0.0) for key, value in after.items() if key.partition("{")[0] == name and label in key)

    for drafted, kept, label in (
        ("accelplug_drafted_tokens_total", "accelplug_accepted_tokens_total", 'kind="drafter"'),
        ("vllm:spec_decode_num_draft_tokens_total", "vllm:spec_decode_num_accepted_tokens_total", ""),
    ):
        if (count := grown(drafted, label)) > 0:
            return {"drafted": count, "accepted": grown(kept, label)}
    return None


def _openai() -> Any:
    try:
        import openai
    except ModuleNotFoundError as exc:
        raise HostError("measuring a server needs the package openai; pip install 'accelplug[serve]'") from exc
    return openai


def _key() -> str:
    return os.environ.get("OPENAI_API_KEY") or "none"


def _said(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {' '.join(str(exc).split())[:200]}"
