"""What a drafter that drafts nothing costs a step of vLLM's V1 runner, beside plain steps of the same engine.

    python integration/speed/undrafted_tax.py [--model DIR|1b|3b] [--rounds N] [--concurrency 1 8]

Engines of one and the same configuration were seen to differ by a tenth, in one process too: more than what is looked for. So an engine
takes five steps with its drafter and five as if there were none, by turns, and all but the first of each five count. Steps are measured
in CPU time; what is shown are the mean of the middle nine tenths over all rounds, which what a drafter does in every fourth step is part
of, the median, the 25th percentile ("fast"), which other load disturbs less, and the 99th.
"1b" and "3b" are two layers of that shape with random weights: the testbed's steps are shorter than those of models that people serve.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import record
from ngram_tax import CONTENDERS, NOTHING, NUM_TOKENS, WRONG, drafting, install
from real_shapes import SHAPES, counting_model
from vllm_speed import NEW_TOKENS, Engine, asked, prompts

DRAFTERS: Mapping[str, dict[str, Any]] = {
    "plugin, does nothing": drafting("does_nothing", num_tokens=NUM_TOKENS),
    **{name: CONTENDERS[name] for name in (NOTHING, WRONG)},
}
LAYERS = 2
BEFORE = 30
"""Steps that do not count: the prompt's, and those in which a drafter that is always wrong is found out."""
TURN = 5
"""Steps in a row of either kind; the first, which follows one of the other kind, does not count."""


class Turns:
    """Takes accelplug out of an engine, and puts it back.

    :param llm: vLLM's LLM with its core in this process.
    """

    def __init__(self, llm: Any) -> None:
        self.core = llm.llm_engine.engine_core.engine_core
        self.worker = self.core.model_executor.driver_worker.worker
        self.runner = self.worker.model_runner
        self.attached, self.speculative = type(self.worker), self.runner.speculative_config
        self.own = {name: vars(self.runner)[name] for name in ("execute_model", "sample_tokens", "_sample")}

    def plain(self) -> None:
        """From here on steps are those of an engine that never speculates. Nothing may be drafted for the first of them."""
        self.core.check_for_draft_tokens, self.runner.speculative_config = False, None
        self.worker.__class__ = self.attached.__mro__[2]
        for name in self.own:
            vars(self.runner).pop(name, None)

    def drafting(self) -> None:
        """From here on the drafter is asked again."""
        self.core.check_for_draft_tokens, self.runner.speculative_config = True, self.speculative
        self.worker.__class__ = self.attached
        vars(self.runner).update(self.own)


def serve(model: str, config: str, concurrency: int) -> None:
    """Answer every line on standard input with the nanoseconds of one run's plain steps and of its others."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model, dtype="float32", max_model_len=2048, enforce_eager=True, max_num_seqs=concurrency, enable_prefix_caching=False,
        disable_log_stats=False, **json.loads(config),
    )  # fmt: skip
    sampling, turns = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True), Turns(llm)
    modes = turns.plain, turns.drafting
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin):
        for i, text in enumerate(prompts(concurrency)):
            llm.llm_engine.add_request(f"{number}-{i}", text, sampling)
        print(json.dumps(run(llm.llm_engine, modes, number)), flush=True)


def run(engine: Any, modes: tuple[Callable[[], None], Callable[[], None]], number: int) -> list[list[int]]:
    """Return the nanoseconds of the steps of either mode that count; in every other run the modes change places."""
    spent: list[list[int]] = [[], []]
    step = 0
    while engine.has_unfinished_requests():
        mode = 1 if step < BEFORE else (step // TURN + number) % 2
        modes[mode]()
        began = time.process_time_ns()
        engine.step()
        if step >= BEFORE and step % TURN:
            spent[mode].append(time.process_time_ns() - began)
        step += 1
    modes[1]()
    return spent


def compare(model: str, concurrency: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each drafter; engines run one after the other."""
    rows = []
    for name, config in DRAFTERS.items():
        engine = Engine(model, config, concurrency, script=__file__)
        runs = [engine() for _ in range(rounds + 1)][1:]
        engine.stop()
        plain, own = (np.array([nanos for run in runs for nanos in run[mode]]) / 1000 for mode in (0, 1))
        shown = {f"{what} x plain": float(np.percentile(plain, q) / np.percentile(own, q)) for what, q in (("median", 50), ("fast", 25), ("p99", 99))}
        means = middle_mean(plain), middle_mean(own)
        spent = {"plain us": means[0], "more us": means[1] - means[0], "mean x plain": means[0] / means[1]}
        rows.append({"concurrency": concurrency, "drafter": name, **spent, **shown, "steps": len(own)})
    return rows


def middle_mean(values: Any) -> float:
    """Return the mean without the least and the largest twentieth, [num_steps]."""
    low, high = np.percentile(values, (5, 95))
    return float(values[(values >= low) & (values <= high)].mean())


def written(shape: str, folder: Path) -> str:
    """Write a checkpoint of two layers, with the testbed's tokenizer, and return where it is."""
    import accelplug_testbed
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(accelplug_testbed.path())
    counting_model(shape, LAYERS, torch.float32, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Measure and record."""
    arguments = asked(__doc__, 8, [1, 8], serve)
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder))
        is_shape = arguments.model in SHAPES
        model = written(arguments.model, Path(folder) / "model") if is_shape else arguments.model
        rows = [row for concurrency in arguments.concurrency for row in compare(model, concurrency, arguments.rounds)]
    name = f"vllm_undrafted_tax_{arguments.model}" if is_shape else "vllm_undrafted_tax"
    record(name, rows, {"rounds": arguments.rounds, "runner": "V1", "new_tokens": NEW_TOKENS})


if __name__ == "__main__":
    main()
