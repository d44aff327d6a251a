"""Counters get from a worker to ``/metrics`` through a file, under the techniques' own names."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("prometheus_client", reason="vLLM brings it")

from prometheus_client import CollectorRegistry, generate_latest

from accelplug.hosts.vllm.board import FOLDER, LABELS, Board, Counters, board_of, read_boards
from accelplug.hosts.vllm.metrics import FAMILIES, Boards

DRAFTER = ("drafter", "oracle", "adversaries", "1.5")
RULE = ("verifier", "typical", "accelplug", "0.1.0")


class Attachment:
    def __init__(self) -> None:
        self.calls, self.accepted = 0, 0.0

    def counters(self) -> list[Counters]:
        self.calls += 1
        return [Counters(DRAFTER, (10.0, self.accepted, 0.0, 0.25, 1.0)), Counters(RULE, (10.0, self.accepted, 2.0, 0.5, 0.0))]


def board(folder: Path, attachment: Attachment, *, engine: str = "0", waits: bool = False) -> Board:
    return Board(folder, engine, attachment.counters(), waits=waits)


def test_what_is_written_is_shown(tmp_path: Path) -> None:
    registry, attachment = CollectorRegistry(), Attachment()
    registry.register(Boards(tmp_path))
    assert b"accelplug_drafted_tokens_total{" not in generate_latest(registry), "no engine yet"
    written = board(tmp_path, attachment)
    attachment.accepted = 7.0
    written.write(attachment)
    for name, who, value in (
        ("drafted_tokens_total", DRAFTER, 10.0),
        ("accepted_tokens_total", DRAFTER, 7.0),
        ("plugin_seconds_total", DRAFTER, 0.25),
        ("switched_off", DRAFTER, 1.0),
        ("lossy_accepts_total", RULE, 2.0),
        ("switched_off", RULE, 0.0),
    ):
        assert registry.get_sample_value(f"accelplug_{name}", dict(zip(LABELS, [*who, "0"], strict=True))) == value, name


def test_nothing_in_the_folder_stops_a_scrape(tmp_path: Path) -> None:
    attachment, folder = Attachment(), tmp_path / "later"
    boards = Boards(folder)
    assert [metric.samples for metric in boards.collect()][:-1] == [[]] * len(FAMILIES), "no folder yet, or no more"
    folder.mkdir()
    (folder / "notes.txt").write_text("somebody else's")
    (folder / "0-1-2").touch()  # a board that another process is about to fill
    board(folder, attachment).write(attachment)
    assert len(list(read_boards(folder))) == 2
    boards.refused += 3
    registry = CollectorRegistry()
    registry.register(boards)
    assert registry.get_sample_value("accelplug_refused_requests_total") == 3
    assert registry.get_sample_value("accelplug_drafted_tokens_total", dict(zip(LABELS, [*RULE, "0"], strict=True))) == 10


def test_folder_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("vllm.distributed")
    monkeypatch.setenv(FOLDER, str(tmp_path / "nowhere"))
    monkeypatch.setattr("vllm.distributed.get_tensor_model_parallel_rank", lambda: 0)
    config = SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_rank=0))
    with caplog.at_level(logging.WARNING, "vllm.accelplug"):
        assert board_of(Attachment(), config, torch.device("cpu")) is None
    assert f"no counters on /metrics, since {tmp_path / 'nowhere'} cannot be written" in caplog.text


def test_engines_of_one_name_add_up_and_others_stay_apart(tmp_path: Path) -> None:
    attachment = Attachment()
    attachment.accepted = 3.0
    for engine in ("0", "0", "1"):
        board(tmp_path, attachment, engine=engine).write(attachment)
    assert len(list(read_boards(tmp_path))) == 6
    (accepted,) = (metric for metric in Boards(tmp_path).collect() if metric.name == "accelplug_accepted_tokens")
    assert sorted((sample.labels["engine"], sample.value) for sample in accepted.samples) == [
        ("0", 6.0),
        ("0", 6.0),
        ("1", 3.0),
        ("1", 3.0),
    ]


def test_a_device_is_looked_at_once_a_second(tmp_path: Path) -> None:
    attachment = Attachment()
    written = board(tmp_path, attachment, waits=True)
    before = attachment.calls
    for _ in range(50):
        written.write(attachment)
    assert attachment.calls - before in {1, 2}
