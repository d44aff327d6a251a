"""Counters get from a worker to ``/metrics`` through files, under the techniques' own names."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("prometheus_client", reason="vLLM brings it")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from accelplug.hosts.vllm.board import FOLDER, LABELS, SHARED, Board, Counters, board_of, write_refusal
from accelplug.hosts.vllm.metrics import shown_in

DRAFTER = ("drafter", "oracle", "adversaries", "1.5")
RULE = ("verifier", "typical", "accelplug", "0.1.0")


class Attachment:
    def __init__(self) -> None:
        self.calls, self.accepted = 0, 0.0

    def counters(self) -> list[Counters]:
        self.calls += 1
        return [Counters(DRAFTER, (4.0, 10.0, self.accepted, 0.0, 0.25, 1.0)), Counters(RULE, (4.0, 10.0, self.accepted, 2.0, 0.5, 0.0))]


def board(folder: Path, attachment: Attachment, *, engine: str = "0", waits: bool = False) -> Board:
    return Board(folder, engine, attachment.counters(), waits=waits)


def labels(who: tuple[str, ...], engine: str = "0") -> dict[str, str]:
    return dict(zip(LABELS, [*who, engine], strict=True))


@pytest.fixture
def registry(tmp_path: Path) -> CollectorRegistry:
    made = CollectorRegistry()
    shown_in(made, str(tmp_path))
    return made


def test_what_is_written_is_shown(tmp_path: Path, registry: CollectorRegistry) -> None:
    attachment = Attachment()
    assert generate_latest(registry) == b"", "no engine yet"
    written = board(tmp_path, attachment)
    assert registry.get_sample_value("accelplug_accepted_tokens_total", labels(DRAFTER)) == 0
    attachment.accepted = 7.0
    written.write(attachment)
    for name, who, value in (
        ("drafts_total", DRAFTER, 4.0),
        ("drafted_tokens_total", DRAFTER, 10.0),
        ("accepted_tokens_total", DRAFTER, 7.0),
        ("plugin_seconds_total", DRAFTER, 0.25),
        ("switched_off", DRAFTER, 1.0),
        ("lossy_accepts_total", RULE, 2.0),
        ("switched_off", RULE, 0.0),
    ):
        assert registry.get_sample_value(f"accelplug_{name}", labels(who)) == value, name
    assert b"# TYPE accelplug_switched_off gauge" in generate_latest(registry)
    assert b"accelplug_answers" not in generate_latest(registry), "neither is a grammar's engine"


def test_what_grammars_came_to_is_shown(tmp_path: Path, registry: CollectorRegistry) -> None:
    pytest.importorskip("vllm")
    from accelplug.hosts.vllm.grammar_core import Tally

    who = ("grammar", "auto", "accelplug", "0.1.0")
    tally = Tally(compiled=9, drafts=6, drafted=8, accepted=7, cut=6, answers=5, violations=4, failures=3, seconds=2.0)
    Board(tmp_path, "0", [tally.counters(who)], waits=False)
    shown = {name: registry.get_sample_value(f"accelplug_{name}_total", labels(who)) for name in SHOWN}
    assert shown == SHOWN


SHOWN = {"drafts": 6, "drafted_tokens": 8, "accepted_tokens": 7, "cut_drafts": 6, "answers": 5, "violations": 4, "failed_requests": 3, "plugin_seconds": 2.0}


def test_nothing_in_the_folder_stops_a_scrape(tmp_path: Path) -> None:
    attachment, folder, registry = Attachment(), tmp_path / "later", CollectorRegistry()
    shown_in(registry, str(folder))
    (folder / "notes.txt").write_text("somebody else's")
    (folder / "counter_accelplug-0-1-2.new").touch()  # which another process is about to fill
    board(folder, attachment).write(attachment)
    assert registry.get_sample_value("accelplug_drafted_tokens_total", labels(RULE)) == 10
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert generate_latest(registry) == b"", "no folder any more"


def test_folder_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("vllm.distributed")
    monkeypatch.setenv(FOLDER, str(tmp_path / "nowhere"))
    monkeypatch.delenv(SHARED, raising=False)
    monkeypatch.setattr("vllm.distributed.get_tensor_model_parallel_rank", lambda: 0)
    config = SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_index=0))
    with caplog.at_level(logging.WARNING, "vllm.accelplug"):
        assert board_of(Attachment(), config, torch.device("cpu")) is None
    assert f"no counters on /metrics, since {tmp_path / 'nowhere'} cannot be written" in caplog.text


def test_a_worker_says_that_it_refused(tmp_path: Path, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv(SHARED, raising=False)
    monkeypatch.delenv(FOLDER, raising=False)
    write_refusal("nobody looks")
    monkeypatch.setenv(FOLDER, str(tmp_path))
    for _ in range(2):  # tensor-parallel ranks
        write_refusal("drafter 'odd' needs 'hidden.last'")
    assert registry.get_sample_value("accelplug_refused_info", {"reason": "drafter 'odd' needs 'hidden.last'"}) == 1
    monkeypatch.setenv(FOLDER, str(tmp_path / "nowhere"))
    with caplog.at_level(logging.WARNING, "vllm.accelplug"):
        write_refusal("it cannot")
    assert "no refusal on /metrics" in caplog.text


def test_engines_of_one_name_add_up_and_others_stay_apart(tmp_path: Path, registry: CollectorRegistry) -> None:
    attachment = Attachment()
    attachment.accepted = 3.0
    for engine in ("0", "0", "1"):
        board(tmp_path, attachment, engine=engine)
    found = {engine: registry.get_sample_value("accelplug_accepted_tokens_total", labels(RULE, engine)) for engine in "01"}
    assert found == {"0": 6.0, "1": 3.0}
    assert registry.get_sample_value("accelplug_switched_off", labels(DRAFTER)) == 1, "no sum of those that were"


def test_a_device_is_looked_at_once_a_second(tmp_path: Path) -> None:
    attachment = Attachment()
    written = board(tmp_path, attachment, waits=True)
    before = attachment.calls
    for _ in range(50):
        written.write(attachment)
    assert attachment.calls - before in {1, 2}


def test_news_is_written_at_once_and_seconds_alone_once_a_second(tmp_path: Path, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("accelplug.hosts.vllm.board.time.monotonic", lambda: now[0])
    attachment = Attachment()
    written = board(tmp_path, attachment)
    written.write(attachment)
    before = attachment.calls
    for _ in range(50):
        now[0] += 0.01
        written.write(attachment, quiet=True)
    assert attachment.calls == before
    attachment.accepted = 3.0
    written.write(attachment)
    assert registry.get_sample_value("accelplug_accepted_tokens_total", labels(DRAFTER)) == 3
    now[0] += 1.01
    written.write(attachment, quiet=True)
    assert attachment.calls == before + 2


EXPOSE = """
import json, os, sys
from prometheus_client import REGISTRY, generate_latest
from accelplug.hosts.vllm.metrics import count, expose, tell_refused
expose(); expose()
of_typical = "verifier", "typical", "option"
count("accelplug_refused_requests", *of_typical)
count("accelplug_audited_requests")
tell_refused("it cannot"); tell_refused("it cannot")
labels = dict(zip(("kind", "technique", "reason"), of_typical))
counted = [REGISTRY.get_sample_value("accelplug_refused_requests_total", labels), REGISTRY.get_sample_value("accelplug_audited_requests_total")]
print(json.dumps([counted, REGISTRY.get_sample_value("accelplug_refused_info", {"reason": "it cannot"}), os.environ.get("ACCELPLUG_METRICS_DIR")]))
"""


@pytest.mark.parametrize("servers", [1, 2])
def test_what_front_ends_count(servers: int, tmp_path: Path) -> None:
    """Several API servers share a folder of prometheus_client's, and vLLM's ``/metrics`` shows that."""
    environment = {name: value for name, value in os.environ.items() if name not in {FOLDER, SHARED}}
    environment |= {SHARED: str(tmp_path)} if servers > 1 else {}
    answers = [
        json.loads(subprocess.run([sys.executable, "-c", EXPOSE], env=environment, capture_output=True, text=True, check=True).stdout) for _ in range(servers)
    ]
    if servers == 1:
        ((counted, refused, folder),) = answers
        assert (counted, refused) == ([1, 1], 1)
        assert not Path(folder).exists(), "it goes with the process"
    else:
        board(tmp_path, Attachment())
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(tmp_path))
        assert registry.get_sample_value("accelplug_refused_requests_total", {"kind": "verifier", "technique": "typical", "reason": "option"}) == 2
        assert registry.get_sample_value("accelplug_refused_info", {"reason": "it cannot"}) == 1, "either says so"
        assert registry.get_sample_value("accelplug_drafted_tokens_total", labels(RULE)) == 10
        assert [folder for *_, folder in answers] == [None, None]


NAMED = """
import json, os
from prometheus_client import REGISTRY
from accelplug.hosts.vllm.metrics import expose, hide
expose()
told = REGISTRY.get_sample_value("accelplug_refused_info", {"reason": "it cannot"})
print(json.dumps([told, os.environ["ACCELPLUG_METRICS_DIR"], hide() or os.environ.get("ACCELPLUG_METRICS_DIR")]))
"""


def test_what_an_earlier_server_left_in_a_folder_with_a_name_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SHARED, raising=False)
    monkeypatch.setenv(FOLDER, str(tmp_path / "here"))
    (tmp_path / "here").mkdir()
    write_refusal("it cannot")  # of a server that was killed
    told, mine, back = json.loads(subprocess.run([sys.executable, "-c", NAMED], capture_output=True, text=True, check=True).stdout)
    assert (told, Path(mine).parent, back) == (None, tmp_path / "here", str(tmp_path / "here"))
    monkeypatch.setenv(FOLDER, str(tmp_path / "here" / "accelplug-run-1"))
    (tmp_path / "here" / "accelplug-run-1").mkdir()
    write_refusal("it cannot")  # by a worker of this server, whose front end is several processes
    told, mine, _ = json.loads(subprocess.run([sys.executable, "-c", NAMED], capture_output=True, text=True, check=True).stdout)
    assert (told, mine) == (1, str(tmp_path / "here" / "accelplug-run-1"))
