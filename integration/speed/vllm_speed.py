"""Prompt lookup inside vLLM against vLLM's own n-gram drafter and plain vLLM, on the same prompts.

    python integration/speed/vllm_speed.py [--model DIR] [--rounds N] [--concurrency 1 8]

Every contender is an engine in a process of its own; all stay alive and take their turn in every round, so that a
change of the machine's speed meets them alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from measure import interleaved, ratios, record

from accelplug.testing.vllm_processes import vllm_environment

CONTENDERS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "vllm ngram 4/2-4": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2}},
    "vllm ngram 8/2-4": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 8, "prompt_lookup_max": 4, "prompt_lookup_min": 2}},
    "prompt_lookup 4": {"additional_config": {"accelplug": {"drafter": "prompt_lookup(num_tokens=4)"}}},
    "prompt_lookup 8": {"additional_config": {"accelplug": {"drafter": "prompt_lookup(num_tokens=8)"}}},
}
NEW_TOKENS = 150


def prompts(count: int) -> list[str]:
    import accelplug_testbed

    edits = accelplug_testbed.prompts()
    return [edit["prompt"] for edit in edits[:: max(1, len(edits) // count)]][:count]


def serve(model: str, config: str, concurrency: int, count: int = 6, also: Callable[[Any], list[Any]] = lambda _: []) -> None:
    """Answer every line on standard input with one run over all prompts: seconds are measured by whoever asks.

    :param count: how many prompts.
    :param also: what of the engine stands behind the outputs in every answer.
    """
    from vllm import LLM, SamplingParams

    llm = LLM(model, dtype="float32", max_model_len=2048, enforce_eager=True, max_num_seqs=concurrency, enable_prefix_caching=False, **json.loads(config))
    sampling = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
    texts = prompts(count)
    print("ready", flush=True)
    for _ in sys.stdin:
        groups = [texts[i : i + concurrency] for i in range(0, len(texts), concurrency)]
        outputs = [output for group in groups for output in llm.generate(group, sampling, use_tqdm=False)]
        print(json.dumps([*(list(output.outputs[0].token_ids) for output in outputs), *also(llm)]), flush=True)


class Engine:
    """An engine in its own process; call it for one run, with what its script reads on standard input for that.

    :param script: what the process runs; it answers ``--serve`` as this one does.
    :param environment: the process's; without one, that of vLLM's V1 runner on a CPU.
    """

    def __init__(
        self, model: str, config: Mapping[str, Any], concurrency: int, script: str = __file__, environment: Mapping[str, str] | None = None
    ) -> None:
        command = [sys.executable, script, "--model", model, "--serve", json.dumps(config), "--concurrency", str(concurrency)]
        # In one process, so that an engine waiting for its turn costs nothing, and on one thread, for numba too: loading it was seen to raise
        # the number of torch's threads, in engines that speculate and in no other.
        threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        environment = {**(environment or vllm_environment("v1")), "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", **threads}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  open as long as the process writes
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment)
        self.config, self.is_ready = config, False  # several engines may start at once

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return line.strip() or ("-" if line else "")

    def wait(self) -> None:
        """Wait until the engine is up."""
        while not self.is_ready and (line := self._line()) != "ready":
            if not line:
                self.log.seek(0)
                raise SystemExit(f"the engine for {self.config} did not start: {self.log.read()[-2000:]}")
        self.is_ready = True

    def __call__(self, line: str = "") -> list[list[int]]:
        self.wait()
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        while not (answer := self._line()).startswith("[["):
            if not answer:
                raise SystemExit("an engine died")
        outputs: list[list[int]] = json.loads(answer)
        return outputs

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(120)


def race(engines: Mapping[str, Engine], rounds: int, label: str) -> tuple[dict[str, list[list[int]]], dict[str, list[float]]]:
    """Return every engine's first answer, and its seconds per round; the engines end."""
    outputs = {name: engine() for name, engine in engines.items()}
    seconds = interleaved({name: partial(engine) for name, engine in engines.items()}, rounds, label)
    for engine in engines.values():
        engine.stop()
    return outputs, seconds


def compare(model: str, concurrency: int, rounds: int) -> list[dict[str, Any]]:
    engines = {name: Engine(model, config, concurrency) for name, config in CONTENDERS.items()}
    outputs, seconds = race(engines, rounds, f"concurrency {concurrency}")
    tokens = sum(map(len, outputs["plain"]))
    return [
        {"concurrency": concurrency, "contender": name, "tokens/s": tokens / statistics.median(seconds[name]), "x plain": ratio,
         "outputs differing from plain": sum(a != b for a, b in zip(outputs[name], outputs["plain"], strict=True))}
        for name, ratio in ratios(seconds, "plain").items()
    ]  # fmt: skip


def asked(description: str | None, rounds: int, concurrency: list[int], serving: Callable[[str, str, int], None]) -> argparse.Namespace:
    """Read the command line; without --model, the model is the testbed's. A process that was started as an engine serves here, and ends.

    :param rounds: unless given.
    :param concurrency: likewise.
    :param serving: takes the model, the configuration, and the most requests at a time.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--concurrency", type=int, nargs="+", default=concurrency)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.model is None:
        import accelplug_testbed

        arguments.model = str(accelplug_testbed.path())
    if arguments.serve:
        serving(arguments.model, arguments.serve, max(arguments.concurrency))
        sys.exit()
    return arguments


def main() -> None:
    arguments = asked(__doc__, 5, [1, 8], serve)
    rows = [row for concurrency in arguments.concurrency for row in compare(arguments.model, concurrency, arguments.rounds)]
    record("vllm_prompt_lookup", rows, {"new_tokens": NEW_TOKENS, "rounds": arguments.rounds, "runner": "V1"})


if __name__ == "__main__":
    main()
