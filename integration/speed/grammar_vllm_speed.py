"""What a grammar gains as a drafter in vLLM: JSON records under a mask, against the same engine and the same mask without drafts.

    python integration/speed/grammar_vllm_speed.py [--model DIR] [--rounds N] [--concurrency 1 4]

Every contender is an engine of the V1 runner in a process of its own; all stay alive and take their turn in every round. Those that
mask with the same engine must write the same; vLLM's own backend is there for comparison and knows no fixed spacing.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from typing import Any, Final

from grammar_speed import schema_of
from measure import ratios, record
from vllm_speed import Engine, asked, race

from accelplug.cli.bench.tasks import JSON

PLAIN: Final = "same mask, no drafts"
CONTENDERS: Final[Mapping[str, dict[str, Any]]] = {
    PLAIN: {"grammar": "auto"},
    "forced alone": {"grammar": "auto", "num_tokens": 6},
    "prompt_lookup 6": {"grammar": "auto", "drafter": "prompt_lookup(num_tokens=6)"},
    "suffix 8": {"grammar": "auto", "drafter": "suffix(num_tokens=8)"},
    "vLLM's own backend": {},
}
PROMPTS, NEW_TOKENS = 3, 192


def serve(model: str, config: str, concurrency: int) -> None:
    """Answer every line on standard input with the tokens of one run over all prompts, and with what grammars came to."""
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    settings = json.loads(config)
    given = {"additional_config": {"accelplug": settings}} if settings else {}
    llm = LLM(model, dtype="float32", max_model_len=1024, enforce_eager=True, max_num_seqs=concurrency, enable_prefix_caching=False, **given)
    spaced = {"accelplug": {"whitespace": "spaced"}} if settings else None
    texts = list(JSON[:PROMPTS])
    params = [
        SamplingParams(temperature=0, max_tokens=NEW_TOKENS, structured_outputs=StructuredOutputsParams(json=schema_of(text)), extra_args=spaced)
        for text in texts
    ]
    print("ready", flush=True)
    for _ in sys.stdin:
        before = counted(llm)
        outputs = [
            output
            for i in range(0, len(texts), concurrency)
            for output in llm.generate(texts[i : i + concurrency], params[i : i + concurrency], use_tqdm=False)
        ]
        counts = [after - was for after, was in zip(counted(llm), before, strict=True)]
        print(json.dumps([*(list(output.outputs[0].token_ids) for output in outputs), counts]), flush=True)


def counted(llm: Any) -> list[int]:
    """Return how many tokens grammars forced, how many of those were kept, how many drafts they cut; and how many drafts were kept in all."""
    grammars = getattr(llm.llm_engine.engine_core.engine_core.scheduler, "accelplug", None)
    tallies = [] if grammars is None else list(grammars.status().values())
    forced = [sum(tally[name] for tally in tallies) for name in ("drafted", "accepted", "cut")]
    try:
        stats = llm.collective_rpc("accelplug_status")[0]["stats"]
    except NotImplementedError:  # nothing drafts
        return [*forced, 0]
    return [*forced, stats["accepted"] + forced[1]]


def compare(model: str, concurrency: int, rounds: int) -> list[dict[str, Any]]:
    engines = {name: Engine(model, settings, concurrency, script=__file__) for name, settings in CONTENDERS.items()}
    outputs, seconds = race(engines, rounds, f"concurrency {concurrency}")
    answers = {name: found[:-1] for name, found in outputs.items()}
    for name, settings in CONTENDERS.items():
        if settings and answers[name] != answers[PLAIN]:
            raise SystemExit(f"{name} writes something else than the same engine without drafts")
    return [row(concurrency, name, outputs[name], statistics.median(seconds[name]), ratio, answers[PLAIN]) for name, ratio in ratios(seconds, PLAIN).items()]


def row(concurrency: int, name: str, found: list[list[int]], seconds: float, ratio: float, plain: list[list[int]]) -> dict[str, Any]:
    *answers, (forced, kept, cut, accepted) = found
    tokens = sum(map(len, answers))
    return {
        "concurrency": concurrency, "contender": name, "seconds": seconds, "tokens/s": tokens / seconds, "x plain": ratio, "tokens": tokens,
        "forced": forced, "forced accepted": kept, "accepted": accepted, "cut": cut, "same as plain": answers == plain,
    }  # fmt: skip


def main() -> None:
    given = asked(__doc__, 5, [1], serve)
    rows = [row for concurrency in given.concurrency for row in compare(given.model, concurrency, given.rounds)]
    record("grammar_vllm_speed", rows, {"prompts": PROMPTS, "new_tokens": NEW_TOKENS, "rounds": given.rounds, "runner": "V1"})


if __name__ == "__main__":
    main()
