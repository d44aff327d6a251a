"""``suffix(scope="process")`` over 10,000 short requests: what it keeps of finished ones stays within its bound.

Run by hand: ``python integration/speed/finished_requests.py [--requests 10000]``. Writes ``results/finished_requests.json``.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path

import torch
from measure import record
from transformers import LlamaConfig, LlamaForCausalLM

import accelplug

SPEC = "suffix(scope='process', memory=1)"
TOGETHER = 50  # requests in a batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        initializer_range=0.5, eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    record("finished_requests", served(model, given.requests), {"drafter": SPEC})


def served(model: LlamaForCausalLM, requests: int) -> list[dict[str, object]]:
    """Serve random short prompts in one session; return a row for each tenth of them."""
    draw, rows = random.Random(0), []
    with accelplug.attach(model, drafter=SPEC) as session:
        drafter = session.selection.drafter
        assert drafter is not None
        for number in range(TOGETHER, requests + 1, TOGETHER):
            length = draw.randrange(2, 12)
            prompts = torch.tensor([[draw.randrange(1, 512) for _ in range(length)] for _ in range(TOGETHER)])
            model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=10, do_sample=False)
            if number % (requests // 10) == 0:
                stats = session.stats
                held = drafter.instance.finished.bytes / 2**20
                rows.append({"requests": number, "accepted": stats.accepted, "reported MB": held, "process MB": resident()})
    return rows


def resident() -> float:
    """Return the megabytes of memory that the process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
