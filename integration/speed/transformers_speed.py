"""What the Transformers host costs, against plain ``generate()``; ``accelplug bench`` compares drafters with Transformers' own.

    python integration/speed/transformers_speed.py {loop,limit,propose} [--model DIR] [--rounds N]

loop: our loop without drafts against plain generate(). limit: an oracle's speed-up against (k+1) t(1) / t(k+1).
propose: what one prompt-lookup step costs as the context grows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from measure import forwards, interleaved, ratios, record
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache

import accelplug
from accelplug.cli.bench.tasks import FREE_CODE
from accelplug.hooks import CommitView, DraftView
from accelplug.spec.prompt_lookup import PromptLookup
from accelplug.testing.oracle import Oracle


def plain(model: Any, prompts: list[torch.Tensor], new: int, **extra: Any) -> list[list[int]]:
    return [model.generate(p, max_new_tokens=new, do_sample=False, **extra)[0].tolist() for p in prompts]


def fast(model: Any, prompts: list[torch.Tensor], new: int, **selection: Any) -> list[list[int]]:
    with accelplug.attach(model, **selection):
        return plain(model, prompts, new)


def loop(model: Any, tokenizer: Any, rounds: int) -> None:
    prompts = [tokenizer(text, return_tensors="pt").input_ids for text in FREE_CODE[:4]]
    model.generation_config.eos_token_id = None
    contenders = {"plain": partial(plain, model, prompts, 96), "accelplug, no drafts": partial(fast, model, prompts, 96, drafter=None)}
    seconds = interleaved(contenders, rounds, "loop")
    rows = [{"contender": n, "seconds": statistics.median(seconds[n]), "x plain": r} for n, r in ratios(seconds, "plain").items()]
    record("transformers_loop", rows, {"prompts": len(prompts), "new_tokens": 96, "rounds": rounds})


def limit(model: Any, tokenizer: Any, rounds: int) -> None:
    prompt, new, vocab = tokenizer(FREE_CODE[0], return_tensors="pt").input_ids, 720, model.config.vocab_size
    model.generation_config.eos_token_id = None
    sequence = plain(model, [prompt], new)[0]
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.tensor([sequence[: len(sequence) // 2]]), past_key_values=cache)
    depths = (1, 3, 5, 7)
    contenders: dict[str, Callable[[], Any]] = {"plain": partial(plain, model, [prompt], new), "t(1)": partial(forwards, model, cache, 1, 20)}
    for k in depths:
        contenders[f"t({k + 1})"] = partial(forwards, model, cache, k + 1, 20)
        contenders[f"oracle {k}"] = partial(fast, model, [prompt], new, drafter=Oracle([sequence], [(k, 0)], vocab))
    seconds = interleaved(contenders, rounds, "limit")
    rows = []
    for k in depths:
        allowed = (k + 1) * ratios(seconds, "t(1)")[f"t({k + 1})"]
        reached = ratios(seconds, "plain")[f"oracle {k}"]
        rows.append({"accepted per step": k, "t(k+1)/t(1)": (k + 1) / allowed, "allowed": allowed, "reached": reached, "share": reached / allowed})
    record("transformers_limit", rows, {"new_tokens": new, "rounds": rounds})


def propose(*_: Any) -> None:
    rows = []
    generator = np.random.default_rng(0)
    for context in (512, 2048, 8192, 32768):
        tokens = np.resize(generator.integers(0, 500, context // 2), (1, context + 4 * 400))  # repeats, so that drafts are found
        drafter, slot, length, fresh = PromptLookup(), np.zeros(1, np.int64), np.array([context]), np.array([context])
        commit, view = CommitView(slot, slot, tokens, length, fresh, slot), DraftView(slot, slot, tokens, length, np.array([8]))
        drafter.start(slot)
        began = time.perf_counter()
        drafter.observe(commit)
        index, steps, drafted = time.perf_counter() - began, [], 0
        for _ in range(400):
            fresh[0] = 4
            length[0] += 4
            began = time.perf_counter()
            drafter.observe(commit)
            drafted += len(drafter.propose(view).tokens)
            steps.append(time.perf_counter() - began)
        rows.append({"context": context, "step us": 1e6 * statistics.median(steps), "prompt index ms": 1e3 * index, "drafted per step": drafted / 400})
    record("prompt_lookup_propose", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["loop", "limit", "propose"])
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.model is None:
        import accelplug_testbed

        arguments.model = accelplug_testbed.path()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    {"loop": loop, "limit": limit, "propose": propose}[arguments.what](model, tokenizer, arguments.rounds)


if __name__ == "__main__":
    main()
