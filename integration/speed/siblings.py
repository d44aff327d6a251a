"""Techniques against their simpler siblings: trees against chains, a fusion against its parts, rules for whole drafts against token_wise.

    python integration/speed/siblings.py [--model DIR] [--prompts N] [--rounds N] [--layers N] [--only NAME] [--resume]

Each pair takes turns on the same prompts, greedily or at temperature 1 with the seed of the round. Figures are of tokens: sampled texts differ.
The result is written after each pair; ``--resume`` leaves out the pairs that it has with the same settings, commit and machine.
The draft model is the target's own first layers, under its own last norm and output matrix; how good it is, is in the column "accepted".
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import dataclass, field
from typing import Any

import accelplug_testbed
import torch
from measure import keep, kept_at, record
from transformers import AutoModelForCausalLM, AutoTokenizer

import accelplug
from accelplug.cli.bench.figures import bootstrap, median
from accelplug.cli.bench.results import circumstances
from accelplug.cli.bench.tasks import texts_of

SMALL = object()  # stands for the draft model
DRAWN = {"name": "draft_model", "model": SMALL, "num_tokens": 6}
TREE = "gumbel_top_k(branching=[2, 1, 1])"
PAIRS: dict[str, tuple[object, object, float]] = {
    "suffix / prompt_lookup": ("suffix", "prompt_lookup", 0),
    "suffix tree / chain": ("suffix(shape='tree')", "suffix", 0),
    "token_recycling tree / chain": ("token_recycling", "token_recycling(shape='chain')", 0),
    "fusion / input_copy": ("fusion", "input_copy", 0),
    "fusion / suffix": ("fusion", "suffix", 0),
    "fusion / token_recycling": ("fusion", "token_recycling(num_nodes=32)", 0),
    "adaptive fusion / fusion": ("adaptive(source='fusion')", "fusion", 0),
    "adaptive suffix / suffix": ("adaptive(source='suffix')", "suffix", 0),
    "draft_model top_k / chain": ({**DRAWN, "tree": "top_k(width=2, depth=3)"}, DRAWN, 0),
    "draft_model best_first / chain": ({**DRAWN, "tree": "best_first(rounds=4)"}, DRAWN, 0),
    "draft_model confidence / fixed": ({**DRAWN, "length": "confidence"}, DRAWN, 0),
    "block / token_wise": ((DRAWN, "block"), (DRAWN, "token_wise"), 1),
    "gumbel tree / chain, sampled": ({**DRAWN, "tree": TREE}, DRAWN, 1),
    "sequoia / gumbel tree, sampled": ({**DRAWN, "tree": "sequoia"}, {**DRAWN, "tree": TREE}, 1),
    "stochastic_beam / gumbel tree, sampled": ({**DRAWN, "tree": "stochastic_beam"}, {**DRAWN, "tree": TREE}, 1),
    "traversal / token_wise": (({**DRAWN, "tree": TREE}, "traversal"), ({**DRAWN, "tree": TREE}, "token_wise"), 1),
}


@dataclass
class Counted:
    """What one sibling did: per prompt and round, tokens per second and per forward pass."""

    speed: list[float] = field(default_factory=list)
    gain: list[float] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0


def first_layers(model: Any, count: int) -> Any:
    """Return the model's first layers as a model of its own, on the same weights."""
    small = copy.copy(model)
    small._modules = dict(model._modules)
    small.model = copy.copy(model.model)
    small.model._modules = dict(model.model._modules)
    small.model.layers = model.model.layers[:count]
    small.config = small.model.config = copy.deepcopy(model.config)
    small.config.num_hidden_layers = count
    if getattr(small.config, "layer_types", None):
        small.config.layer_types = small.config.layer_types[:count]
    return small


def named(given: object, small: Any) -> tuple[object, str]:
    """Return a side's drafter and rule."""
    drafter, rule = given if isinstance(given, tuple) else (given, "token_wise")
    return ({**drafter, "model": small} if isinstance(drafter, dict) else drafter), rule


def take(model: Any, session: Any, ids: torch.Tensor, temperature: float, seed: int, new: int, counted: Counted | None) -> None:
    torch.manual_seed(seed)
    stats = session.stats
    before = (stats.tokens, stats.forwards, stats.drafted, stats.accepted)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    with session:
        began = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, pad_token_id=0, **sampling)
        seconds = time.perf_counter() - began
    after = (stats.tokens, stats.forwards, stats.drafted, stats.accepted)
    tokens, forwards, drafted, accepted = (now - was for now, was in zip(after, before, strict=True))
    if counted is not None:
        counted.speed.append(tokens / seconds)
        counted.gain.append(tokens / forwards)
        counted.drafted, counted.accepted = counted.drafted + drafted, counted.accepted + accepted


def interval(own: list[float], base: list[float]) -> dict[str, float]:
    """Return the median of the paired ratios with its 95 % interval."""
    ratios = [a / b for a, b in zip(own, base, strict=True)]
    low, high = bootstrap(ratios)
    return {"median": median(ratios), "low": low, "high": high}


def compared(name: str, model: Any, small: Any, tokenizer: Any, work: list[torch.Tensor], rounds: int, new: int) -> dict[str, Any]:
    """Return the row of one pair, whose sides take turns on each prompt; round 0 is the warm-up, on the first prompt alone."""
    *sides, temperature = PAIRS[name]
    sessions = []
    for side in sides:
        drafter, rule = named(side, small)
        sessions.append(accelplug.attach(model, drafter=drafter, verifier=rule, tokenizer=tokenizer))
    counted = Counted(), Counted()
    for number in range(rounds + 1):
        for ids in work if number else work[:1]:
            for side in (0, 1) if number % 2 else (1, 0):
                take(model, sessions[side], ids, temperature, number, new, counted[side] if number else None)
    speed, gain = interval(counted[0].speed, counted[1].speed), interval(counted[0].gain, counted[1].gain)
    spelled = {
        key: f"{found['median']:.2f} ({found['low']:.2f}-{found['high']:.2f})"
        for key, found in (("speed", speed), ("tokens per forward", gain))
    }
    accepted = " / ".join(f"{side.accepted / max(side.drafted, 1):.0%}" for side in counted)
    return {"pair": name, "temperature": temperature, "times": len(counted[0].speed), **spelled, "accepted": accepted}


def known_rows(notes: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of an earlier run that was the same in all but its pairs."""
    file = kept_at("siblings")
    known = json.loads(file.read_text()) if file.exists() else {}
    wanted = {**{key: value for key, value in circumstances({}).items() if key in ("commit", "machine")}, **notes}
    rows: list[dict[str, Any]] = known.get("rows", []) if all(known.get(key) == value for key, value in wanted.items()) else []
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--prompts", type=int, default=2, help="of each task of bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--layers", type=int, help="of the draft model (default: all but the last)")
    parser.add_argument("--only", action="append", choices=sorted(PAIRS))
    parser.add_argument("--resume", action="store_true", help="go on where an earlier run was cut short")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = given.model or accelplug_testbed.path()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
    layers = given.layers or model.config.num_hidden_layers - 1
    small = first_layers(model, layers)
    texts = texts_of(None)
    tasks = dict.fromkeys(text.task for text in texts)
    prompts = [text.text for task in tasks for text in [text for text in texts if text.task == task][: given.prompts]]
    work = [tokenizer(prompt, return_tensors="pt").input_ids for prompt in prompts]
    notes = {"model": given.model or "the testbed's", "layers": layers, "prompts": len(work), "new_tokens": given.new_tokens, "rounds": given.rounds}
    names = given.only or list(PAIRS)
    rows = [row for row in known_rows(notes) if given.resume or row["pair"] not in names]  # one pair alone costs the others' rows nothing
    for number, name in enumerate(names, 1):
        is_known = any(row["pair"] == name for row in rows)
        if not is_known:
            rows.append(compared(name, model, small, tokenizer, work, given.rounds, given.new_tokens))
            keep("siblings", rows, notes)
        row = next(row for row in rows if row["pair"] == name)
        print(
            f"{number}/{len(names)} {name}: speed {row['speed']}, tokens per forward {row['tokens per forward']}{', known' if is_known else ''}",
            flush=True,
        )
    record("siblings", rows, notes)


if __name__ == "__main__":
    main()
