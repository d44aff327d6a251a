"""Fixtures for real vLLM engines in subprocesses. Run with ``pytest integration/vllm``; one engine works at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from batches import ALL, MAX_LENGTH, PROMPTS, SERVED, TEXTS, TOKENS, token_inside
from jobs import HERE, Kept, Plain, Run, engine, engines_started, run_engines
from servers import Server, Serving
from transformers import AutoTokenizer

MOST = 9
"""Engines, of which those of `integration/cli`, `readme` and `stranger` come to six more."""
AUDITED = {"v1": "1.0", "v2-async": "0.2"}  # V2 runs in Triton's interpreter
WITH_GRAMMARS = ["--additional-config.accelplug.grammar=auto", "--max-model-len", "256", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"vLLM engines started by integration/vllm: {engines_started()}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where the tests that are not marked ``by_hand`` start more engines than they may; starting them is what takes the time."""
    if session.config.option.markexpr == "not by_hand" and engines_started() > MOST:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, small enough for Triton's interpreter. The token that ends its text comes inside a draft of the oracle."""
    made = tiny_model.make(tmp_path_factory.mktemp("model"))
    tiny_model.end_with(made, token_inside(tiny_model.continue_greedily(made, PROMPTS, MAX_LENGTH)))
    return made


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH in which the distribution 'adversaries' is installed."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(HERE / "adversaries.py", folder)
    info = folder / "adversaries-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: adversaries\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text("[accelplug]\nadversaries = adversaries\n")
    return folder


@pytest.fixture(scope="session")
def run(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run engines in one subprocess and return what each did, by name."""

    def run(runner: str, *engines: object, **more: str) -> dict[str, object]:
        return run_engines(tmp_path_factory.mktemp("job"), site, runner, *engines, **more)

    return run


@pytest.fixture(scope="session")
def run_shared(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run what `shared` describes: one engine for each runner, and one without accelplug, as long as the tests."""
    kept: dict[str, Kept] = {}

    def run(runner: str, *engines: dict[str, Any]) -> dict[str, Any]:
        if runner not in kept or kept[runner].process.poll() is not None:
            kept[runner] = Kept(tmp_path_factory.mktemp(runner), site, "v1" if runner == "plain" else runner)
        return kept[runner].run(*engines)

    yield run
    for process in kept.values():
        process.stop()


@pytest.fixture(scope="session")
def ask_plain(run_shared: Run, model_dir: Path) -> Plain:
    """Return what vLLM generates without a drafter, batch by batch: one engine for everybody who compares with it."""

    def ask(*batches: dict[str, Any]) -> list[list[dict[str, Any]]]:
        done = run_shared("plain", {**engine(model_dir, "plain", *batches), "shared": True})["plain"]
        assert done["status"] is None
        outputs: list[list[dict[str, Any]]] = done["outputs"]
        return outputs

    return ask


@pytest.fixture(scope="session")
def plain(ask_plain: Plain) -> dict[str, list[dict[str, Any]]]:
    """What that is for the batches that several modules ask."""
    return dict(zip(ALL, ask_plain(*ALL.values()), strict=True))


@pytest.fixture(scope="session")
def serving(model_dir: Path, site: Path, plain: dict[str, list[dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Servers whose drafter is right at first, behind a rule that is not vLLM's; either raises once a test says so. The one on V1 compiles grammars too."""
    folder, kept = tmp_path_factory.mktemp("servers"), dict[str, Server]()
    sequences, template = folder / "sequences.json", folder / "template.jinja"
    known = [[prompt, output["token_ids"]] for prompt, output in zip(SERVED["prompts"], plain["served"], strict=True)]
    texts = [AutoTokenizer.from_pretrained(model_dir)(text).input_ids for text in TEXTS]
    known += zip(texts, tiny_model.continue_greedily(model_dir, texts, TOKENS + max(map(len, texts))), strict=True)
    sequences.write_text(json.dumps(known))
    template.write_text(TEMPLATE)

    def serve(runner: str) -> Server:
        if runner not in kept:
            log = folder / f"{runner}.log"
            oracle = {"sequences": sequences, "pattern": "[[2, 1]]", "raise_upon": log.with_suffix(".breaks")}
            dotted = [f"--additional-config.accelplug.drafter.{name}={value}" for name, value in {"name": "oracle", **oracle}.items()]
            rule = {"verifier.name": "halved", "verifier.raise_upon": log.with_suffix(".breaks_rule"), "audit": AUDITED[runner]}
            dotted += [f"--additional-config.accelplug.{name}={value}" for name, value in rule.items()]
            more = [*WITH_GRAMMARS, "--chat-template", str(template)] if runner == "v1" else []
            kept[runner] = Server(model_dir, site, log, *dotted, "--per-request-spec-decode-metrics", "summary", *more, runner=runner)
        kept[runner].wait()
        return kept[runner]

    yield serve
    for server in kept.values():
        server.kill()
