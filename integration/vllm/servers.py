"""``vllm serve`` in a process group of its own, and what its ``/metrics`` say."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from jobs import CPU, LOGS, environment
from machine import Machine, flags


class Server:
    """A server in a process group of its own."""

    def __init__(self, model_dir: Path, site: Path, log: Path, *more: str, runner: str = "v1", machine: Machine = CPU) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log, self.runner, self.machine = log, runner, machine
        self.breaks, self.breaks_rule = log.with_suffix(".breaks"), log.with_suffix(".breaks_rule")
        """Upon these files the drafter and the rule of a shared server raise."""
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model_dir), "--served-model-name", "tiny", "--port", str(self.port)]
        sizes = ["--dtype", "float32", *flags(machine.arguments(runner)), "--max-model-len", "96", "--max-num-seqs", "8", "--host", "127.0.0.1"]
        if machine is CPU:
            LOGS.append(log)
        with log.open("w") as out:
            env = environment(runner, site, serve=True, machine=machine)
            self.process = subprocess.Popen([*command, *sizes, *more], env=env, stdout=out, stderr=out, start_new_session=True)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return str(answer.read().decode())

    def when(self, happened: Callable[[str], bool], seconds: float = 400) -> str:
        """Return the metrics as soon as something happened."""
        end = time.monotonic() + seconds
        while not happened(metrics := self.get("/metrics")) and time.monotonic() < end:
            time.sleep(0.2)
        return metrics

    def wait(self, seconds: float = 900) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self.get("/health")
            except OSError:
                assert self.process.poll() is None, self.log.read_text()[-3000:]
                time.sleep(0.5)
            else:
                return self.machine.check_log(self.log.read_text())
        raise AssertionError(self.log.read_text()[-3000:])

    def idle(self) -> str:
        """Return the metrics once nothing runs any more, audits included."""
        return self.when(lambda found: all(sample_of(found, f"vllm:num_requests_{how}") == 0 for how in ("running", "waiting")))

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
        self.process.wait(200)

    def left_over(self, seconds: float) -> list[str]:
        """Return the command lines of what still runs after so long: helpers such as a resource tracker end after their parent."""
        until = time.monotonic() + seconds
        while (members := self.members()) and time.monotonic() < until:
            time.sleep(0.2)
        return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in members]

    def kill(self) -> None:
        for pid in self.members():
            os.kill(pid, signal.SIGKILL)


def sample_of(metrics: str, name: str, *labels: str) -> float:
    """Return a metric's value; the one line that has the name and the labels."""
    (line,) = (line for line in metrics.splitlines() if re.match(rf"{name}(?:{{|\s)", line) and all(label in line for label in labels))
    return float(line.rsplit(" ", 1)[1])


def total_of(metrics: str, name: str, *labels: str) -> float:
    """Return the sum of a metric's values over all lines that have the name and the labels; 0 where there is none."""
    lines = (line for line in metrics.splitlines() if re.match(rf"{name}(?:{{|\s)", line) and all(label in line for label in labels))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


Serving = Callable[[str], Server]
"""Returns the server of a runner that several modules ask."""
