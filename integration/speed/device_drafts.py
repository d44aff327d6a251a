"""What a step of the drafters' device versions costs, and how many operations it hands to the device; on CUDA where there is one.

    python integration/speed/device_drafts.py [--tokens N] [--rows 1 8 32]

On a CPU the figure is the thread's own time, the least of a hundred steps, in which every row gains two tokens; it stands for the work,
not for what a GPU takes. There the host only queues the operations, at some microseconds each, while the device is busy with the model.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from measure import record
from torch.utils._python_dispatch import TorchDispatchMode

from accelplug.hooks import DeviceView
from accelplug.spec.input_copy import InputCopy
from accelplug.spec.prompt_lookup import PromptLookup
from accelplug.spec.suffix import Suffix

DRAFTERS: dict[str, type] = {"prompt_lookup": PromptLookup, "suffix": Suffix, "input_copy": InputCopy}
STEPS, NUM_TOKENS = 100, 8
VIEWS = ("view", "expand", "slice", "select", "unsqueeze", "squeeze", "alias", "unbind", "t.default", "detach")


class Operations(TorchDispatchMode):
    """Counts operations that are no mere views."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.count += not any(word in str(func) for word in VIEWS)
        return func(*args, **(kwargs or {}))


def measure(drafter: Any, rows: int, width: int, device: str) -> dict[str, float]:
    """Return the least milliseconds of a step, and its operations; a text repeats itself a little."""
    torch.manual_seed(0)
    tokens = torch.randint(0, 300, (rows, width), device=device, dtype=torch.int32)
    lengths = torch.full((rows,), width - 2 * STEPS - 8, device=device, dtype=torch.int32)
    view = DeviceView(torch.arange(rows, device=device), tokens, lengths, NUM_TOKENS, {}, lengths - 20)
    drafter.start(np.arange(rows))
    took = []
    for _ in range(STEPS):
        lengths.add_(2)
        begin = time.thread_time() if device == "cpu" else time.perf_counter()
        drafter.propose_on_device(view)
        if device != "cpu":
            torch.cuda.synchronize()
        took.append((time.thread_time() if device == "cpu" else time.perf_counter()) - begin)
    with Operations() as operations:
        drafter.propose_on_device(view)
    return {"ms": 1000 * min(took), "median ms": 1000 * float(np.median(took)), "operations": operations.count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    cells = [(name, rows) for name in DRAFTERS for rows in given.rows]
    found = [{"drafter": name, "rows": rows, **measure(DRAFTERS[name](), rows, given.tokens, device)} for name, rows in cells]
    record("device_drafts", found, {"device": device, "tokens of a row": given.tokens})


if __name__ == "__main__":
    main()
