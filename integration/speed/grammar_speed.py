"""What a grammar gains as a drafter: JSON records under a mask, against plain ``generate()`` under the same mask.

    python integration/speed/grammar_speed.py [--model DIR] [--rounds N] [--engine NAME] [--whitespace spaced]

Every contender writes the same text; which tokens were forced, drafted and cut is in the table.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measure import interleaved, ratios, record
from transformers import AutoModelForCausalLM, AutoTokenizer

import accelplug
from accelplug.cli.bench.tasks import JSON

DRAFTERS = (None, "prompt_lookup(num_tokens=6)", "suffix", "token_recycling(num_nodes=16)")
TYPES = {"string": {"type": "string", "maxLength": 40}, "integer": {"type": "integer", "minimum": 0, "maximum": 99999}, "number": {"type": "number"},
         "boolean": {"type": "boolean"}, "list": {"type": "array", "items": {"type": "string", "maxLength": 40}, "maxItems": 3}}  # fmt: skip


def schema_of(prompt: str) -> dict[str, Any]:
    """Return the schema that the prompt describes: so many records of these fields."""
    count, _, fields = prompt.splitlines()[1].partition(" records of ")
    kinds = dict(field.split(": ") for field in fields.split(", "))
    record = {"type": "object", "properties": {name: TYPES[kind] for name, kind in kinds.items()}, "required": list(kinds), "additionalProperties": False}
    return {"type": "array", "items": record, "minItems": int(count), "maxItems": int(count)}


def plain(model: Any, work: list[tuple[torch.Tensor, Any]], new: int) -> list[list[int]]:
    call = {"max_new_tokens": new, "do_sample": False}
    return [model.generate(ids, **call, logits_processor=[grammar.after(ids)])[0].tolist() for ids, grammar in work]


def fast(model: Any, work: list[tuple[torch.Tensor, Any]], new: int, drafter: object, seen: list[Any] | None = None) -> list[list[int]]:
    found = []
    for ids, grammar in work:
        with accelplug.attach(model, drafter=drafter, grammar=grammar) as session:
            found.append(model.generate(ids, max_new_tokens=new, do_sample=False)[0].tolist())
        if seen is not None:
            seen.append(session.stats)
    return found


def row(name: str, seconds: list[float], ratio: float, stats: list[Any], same: bool) -> dict[str, Any]:
    forced = [technique for each in stats for technique in each.techniques if technique.kind == "grammar"]
    tokens = sum(each.tokens for each in stats)
    return {
        "contender": name, "seconds": statistics.median(seconds), "x plain": ratio, "tokens": tokens or None,
        "forced": sum(each.drafted for each in forced) or None, "forced accepted": sum(each.accepted for each in forced) or None,
        "accepted": sum(each.accepted for each in stats) or None, "cut": sum(each.pruned for each in stats) or None,
        "tokens per forward": tokens / sum(each.forwards for each in stats) if stats else 1.0, "same as plain": same,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--whitespace", default="spaced", choices=("any", "spaced", "compact"))
    parser.add_argument("--prompts", type=int, default=3)
    given = parser.parse_args()
    if given.model is None:
        import accelplug_testbed

        given.model = accelplug_testbed.path()
    torch.set_num_threads(1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(given.model)
    work = []
    for prompt in JSON[: given.prompts]:
        written = {"json_schema": schema_of(prompt), "whitespace": given.whitespace}
        grammar = accelplug.grammar(model, written, tokenizer=tokenizer, engine=given.engine)
        work.append((tokenizer(prompt, return_tensors="pt").input_ids, grammar))
    contenders: dict[str, Callable[[], Any]] = {"plain, same mask": partial(plain, model, work, given.new_tokens)}
    contenders |= {f"{drafter or 'forced alone'}": partial(fast, model, work, given.new_tokens, drafter) for drafter in DRAFTERS}
    expected = plain(model, work, given.new_tokens)
    stats: dict[str, list[Any]] = {name: [] for name in contenders}
    same = dict.fromkeys(contenders, True)
    for name, drafter in zip(list(contenders)[1:], DRAFTERS, strict=True):
        same[name] = fast(model, work, given.new_tokens, drafter, stats[name]) == expected
    seconds = interleaved(contenders, given.rounds, "grammar")
    found = ratios(seconds, "plain, same mask")
    rows = [row(name, seconds[name], found[name], stats[name], same[name]) for name in contenders]
    record("grammar_speed", rows, {"engine": str(work[0][1].engine), "prompts": len(work), "new_tokens": given.new_tokens, "rounds": given.rounds})


if __name__ == "__main__":
    main()
