"""Speculation at the layer shapes of real models, with random weights: what the loop costs a step, and what an oracle gains.

    python integration/speed/real_shapes.py [--shape 1b|3b|tiny] [--layers N] [--dtype float32] [--dtype bfloat16] [--compiled] [--json]

The weights are random except that the output matrix answers every token with the next id, by a wide margin: so the answer is known, no
rounding changes it, and an oracle's acceptance is what it is told to be. Few layers make steps shorter than a whole model's: the loop's share
of a step is then the greatest it can be. The limit is what bare forward passes allow, the prompt being read once in either: p + (n - 1) t(1)
to p + steps t(k + 1), with p the time of ``generate()`` for one token. "Beside the forward" is what of decoding is not spent
inside the model. ``--compiled`` compares the same on a static cache with a compiled forward pass, whose steps are padded to powers of two. It is
compiled for one token and for several, which takes a minute or more on a CPU and is not timed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measure import forwards, interleaved, ratios, record
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

import accelplug
from accelplug.testing.oracle import Oracle

SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512},
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 32768,
    },
    "3b": {
        "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32768,
    },
}  # fmt: skip
PATTERNS = {"1 of 1": (1, 0), "3 of 3": (3, 0), "7 of 7": (7, 0), "3 of 5": (3, 2), "1 of 7": (1, 6)}
"""What the oracle drafts in every step: accepted of drafted."""
BUCKETS = {"1 of 1": (1, 0), "3 of 3": (3, 0), "7 of 7": (7, 0), "1 of 3": (1, 2)}
"""The same where steps are padded to 2, 4 and 8 tokens: none of these is."""


def counting_model(shape: str, layers: int, dtype: torch.dtype, vocab: int | None = None) -> LlamaForCausalLM:
    """Return a model of random weights that answers every token with the next id."""
    torch.manual_seed(0)
    sizes = SHAPES[shape] if vocab is None else {**SHAPES[shape], "vocab_size": vocab}
    config = LlamaConfig(num_hidden_layers=layers, max_position_embeddings=4096, eos_token_id=None, bos_token_id=None, pad_token_id=0, **sizes)
    model = LlamaForCausalLM(config).to(dtype).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_()
        model.lm_head.weight.copy_(model.model.embed_tokens.weight.roll(1, 0))
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def generated(model: LlamaForCausalLM, prompt: torch.Tensor, new: int, drafter: object | None, **more: Any) -> list[int]:
    if drafter is None:
        return model.generate(prompt, max_new_tokens=new, do_sample=False, **more)[0].tolist()
    with accelplug.attach(model, drafter=None if drafter == "no drafts" else drafter):
        return model.generate(prompt, max_new_tokens=new, do_sample=False, **more)[0].tolist()


def known_answer(model: LlamaForCausalLM, length: int, new: int) -> tuple[torch.Tensor, list[int]]:
    """Return a prompt, [1, length], and it with the answer; wrong drafts are one off, which is never right by chance."""
    vocab = model.config.vocab_size
    prompt = torch.arange(7, 7 + length, device=model.device).remainder(vocab).unsqueeze(0)
    sequence = [(7 + i) % vocab for i in range(length + new)]
    assert generated(model, prompt, new, None) == sequence, "the model does not count"
    return prompt, sequence


def beside_forward(model: LlamaForCausalLM, run: Callable[[], Any], rounds: int) -> float:
    """Return the share of decoding, behind the prompt's pass, that is not spent in the model's own forward passes: the median of some runs."""
    now: list[float] = []

    def note(*_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now.append(time.perf_counter())

    shares = []
    hooks = [model.register_forward_pre_hook(note), model.register_forward_hook(note)]
    for _ in range(rounds):
        now.clear()
        run()
        note()
        begun, ended = now[2:-1:2], now[3:-1:2]
        shares.append(1 - sum(end - begin for begin, end in zip(begun, ended, strict=True)) / (now[-1] - now[1]))
    for hook in hooks:
        hook.remove()
    return statistics.median(shares)


def eager(model: LlamaForCausalLM, length: int, new: int, rounds: int) -> list[dict[str, Any]]:
    """Compare plain generate(), the loop, and oracles in it, with bare forward passes halfway through the answer."""
    prompt, sequence = known_answer(model, length, new)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.tensor([sequence[: length + new // 2]], device=model.device), past_key_values=cache)
    contenders: dict[str, Callable[[], Any]] = {"plain": partial(generated, model, prompt, new, None)}
    contenders["prompt"] = partial(generated, model, prompt, 1, None)
    contenders["no drafts"] = partial(generated, model, prompt, new, "no drafts")
    for width in sorted({1, *(1 + sum(pattern) for pattern in PATTERNS.values())}):
        contenders[f"t({width})"] = partial(forwards, model, cache, width, new)
    for name, pattern in PATTERNS.items():
        contenders[name] = partial(generated, model, prompt, new, Oracle([sequence], [pattern], model.config.vocab_size))
    for name in ("no drafts", *PATTERNS):
        assert contenders[name]() == sequence, f"{name} changes the output"
    seconds = interleaved(contenders, rounds, "eager")
    to_plain = ratios(seconds, "plain")
    middle = {name: statistics.median(taken) for name, taken in seconds.items()}  # of t(k): `new` passes
    bare, read = (new - 1) / new * middle["t(1)"], middle["prompt"]
    rows: list[dict[str, Any]] = []
    beside = {name: beside_forward(model, contenders[name], rounds) for name in ("plain", "no drafts", *PATTERNS)}
    rows += [
        {"run": name, "ms a token": 1e3 * middle[name] / new, "x plain": to_plain[name], "beside the forward": beside[name]} for name in ("plain", "no drafts")
    ]
    for name, (right, wrong) in PATTERNS.items():
        steps = math.ceil((new - 1) / (1 + right))
        allowed = (read + bare) / (read + steps / new * middle[f"t({1 + right + wrong})"])
        rows.append({
            "run": f"oracle, {name}", "ms a token": 1e3 * middle[name] / new, "x plain": to_plain[name],
            "limit": allowed, "share of limit": to_plain[name] / allowed, "beside the forward": beside[name],
        })  # fmt: skip
    return rows


def compiled(model: LlamaForCausalLM, length: int, new: int, rounds: int, backend: str) -> list[dict[str, Any]]:
    """Compare plain generate() on a compiled forward pass with the loop and oracles on the same, all on a static cache."""
    prompt, sequence = known_answer(model, length, new)
    config = CompileConfig(fullgraph=True, backend=backend, mode=None)
    config._compile_all_devices = True
    more = {"cache_implementation": "static", "compile_config": config}
    contenders: dict[str, Callable[[], Any]] = {
        "plain": partial(generated, model, prompt, new, None),
        "compiled": partial(generated, model, prompt, new, None, **more),
        "compiled, no drafts": partial(generated, model, prompt, new, "no drafts", **more),
    }
    for name, pattern in BUCKETS.items():
        contenders[f"compiled oracle, {name}"] = partial(
            generated, model, prompt, new, Oracle([sequence], [pattern], model.config.vocab_size), **more
        )
    for name, run in contenders.items():
        assert run() == sequence, f"{name} changes the output"
    seconds = interleaved(contenders, rounds, "compiled")
    to_plain, to_compiled = ratios(seconds, "plain"), ratios(seconds, "compiled")
    return [
        {"run": name, "ms a token": 1e3 * statistics.median(seconds[name]) / new, "x plain": to_plain[name], "x compiled plain": to_compiled[name]}
        for name in contenders
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, help="tokens of the vocabulary (default: 32,768, or 512 of the tiny one)")
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16"), help="may be repeated (default: both)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=65, help="tokens of the answer; one more than a multiple of 8 leaves no step short")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="compare on a static cache with a compiled forward pass instead")
    parser.add_argument("--backend", default="inductor", help="what compiles (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON, too")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows: list[dict[str, Any]] = []
    for dtype in given.dtype or ("float32", "bfloat16"):
        model = counting_model(given.shape, given.layers, getattr(torch, dtype), given.vocab)
        sizes = (given.prompt, given.new, given.rounds)
        found = compiled(model, *sizes, given.backend) if given.compiled else eager(model, *sizes)
        rows += [{"dtype": dtype, **row} for row in found]
    notes = {key: value for key, value in vars(given).items() if key not in ("dtype", "json")}
    record(f"real_shapes_{given.shape}{'_compiled' if given.compiled else ''}", rows, {**notes, "device": str(model.device)})
    if given.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
