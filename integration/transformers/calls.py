"""Random calls of generate(): what a call returns with drafts is what it returns without. Run by hand.

``python integration/transformers/calls.py [--calls N] [--seed S]`` makes calls with random settings, prompts, padding and drafts of every fate, on six tiny
models, each call plainly and under accelplug from one seed. Tokens, the type and the fields of the answer, its scores, logits and hidden states are compared,
and every call that differs or fails is printed with what it takes to repeat it. A summary in JSON comes last. Where a cutoff falls between two tokens of
one probability but for rounding, either may be kept: that came about in one of several thousand calls.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import track
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration, WatermarkingConfig

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import accelplug  # noqa: E402
from accelplug.testing.oracle import Oracle  # noqa: E402
from tests.hosts.hf.conftest import MAKERS, VOCAB, wandering  # noqa: E402

TOLERANCE = 1e-3
Settings = dict[str, Any]
Draws = dict[str, Callable[[random.Random], Any]]


def _token(chance: random.Random) -> int:
    return chance.randrange(2, VOCAB)


SAMPLING: Draws = {
    "temperature": lambda chance: chance.choice([0.3, 0.8, 1.7]),
    "top_k": lambda chance: chance.choice([1, 3, 20, 50]),
    "top_p": lambda chance: chance.choice([0.3, 0.9]),
    "min_p": lambda chance: chance.choice([0.05, 0.3]),
    "typical_p": lambda chance: chance.choice([0.4, 0.9]),
    "epsilon_cutoff": lambda chance: chance.choice([1e-3, 0.02]),
    "eta_cutoff": lambda chance: chance.choice([1e-3, 0.02]),
    "top_h": lambda chance: chance.choice([0.3, 0.8]),
    "num_return_sequences": lambda chance: chance.randint(2, 3),
}
"""What only a sampled call takes."""
ANY: Draws = {
    "repetition_penalty": lambda chance: chance.choice([0.8, 1.3]),
    "no_repeat_ngram_size": lambda chance: chance.randint(1, 3),
    "encoder_repetition_penalty": lambda chance: chance.choice([0.8, 1.3]),
    "encoder_no_repeat_ngram_size": lambda chance: chance.randint(1, 3),
    "min_new_tokens": lambda chance: chance.randint(1, 20),
    "min_length": lambda chance: chance.randint(1, 25),
    "max_length": lambda chance: chance.randint(10, 30),
    "bad_words_ids": lambda chance: [[_token(chance)], [_token(chance), _token(chance)]],
    "suppress_tokens": lambda chance: [_token(chance) for _ in range(3)],
    "begin_suppress_tokens": lambda chance: [_token(chance) for _ in range(20)],
    "forced_bos_token_id": _token,
    "forced_eos_token_id": _token,
    "exponential_decay_length_penalty": lambda chance: (chance.randint(1, 8), chance.choice([1.05, 1.5])),
    "sequence_bias": lambda chance: [[[_token(chance)], -3.0], [[_token(chance), _token(chance)], 5.0]],
    "eos_token_id": lambda chance: chance.choice([_token(chance), list(range(0, VOCAB, 5))]),
    "guidance_scale": lambda chance: chance.choice([0.7, 1.5]),
    "watermarking_config": lambda chance: WatermarkingConfig(bias=2.5, seeding_scheme=chance.choice(["lefthash", "selfhash"])),
    "prefill_chunk_size": lambda chance: chance.randint(1, 3),
    "cache_implementation": lambda chance: chance.choice(["static", "dynamic"]),
    **{name: lambda _: True for name in ("renormalize_logits", "remove_invalid_values", "output_scores", "output_logits", "output_hidden_states")},
    "use_cache": lambda _: False,
}


def models() -> dict[str, Any]:
    """Return tiny random models whose output wanders: four decoders, two encoder-decoders."""
    sizes = {"vocab_size": VOCAB, "d_model": 48, "decoder_start_token_id": 2, "pad_token_id": 0, "eos_token_id": None}
    t5 = T5Config(d_kv=12, d_ff=96, num_layers=2, num_heads=4, **sizes)
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 256}
    bart = BartConfig(encoder_attention_heads=4, decoder_attention_heads=4, bos_token_id=None, forced_eos_token_id=None, **layers, **sizes)
    made = {"t5": lambda: T5ForConditionalGeneration(t5), "bart": lambda: BartForConditionalGeneration(bart)}
    return {name: wandering(make) for name, make in {**MAKERS, **made}.items()}


def settings(chance: random.Random) -> Settings:
    """Draw the settings of a call, most of them left out."""
    sampled = chance.random() < 0.5
    drawn = {name: draw(chance) for draws, share in ((SAMPLING, 0.25 * sampled), (ANY, 0.1)) for name, draw in draws.items() if chance.random() < share}
    ends = {} if "max_length" in drawn else {"max_new_tokens": chance.randint(1, 30)}
    return {"do_sample": sampled, "return_dict_in_generate": chance.random() < 0.5, "pad_token_id": 0, **ends, **drawn}


def prompts(chance: random.Random) -> Settings:
    """Draw one to three rows, some of them padded on the left."""
    rows, length = chance.choice([1, 1, 1, 2, 3]), chance.randint(1, 9)
    ids, mask = torch.tensor([[_token(chance) for _ in range(length)] for _ in range(rows)]), torch.ones(rows, length, dtype=torch.long)
    for row in range(rows if rows > 1 else 0):
        padding = chance.randint(0, length - 1)
        ids[row, :padding], mask[row, :padding] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def generated(model: Any, call: Settings, seed: int) -> Any:
    """Call generate() from a seed; it may change what it is given."""
    torch.manual_seed(seed)
    return model.generate(**copy.deepcopy(call))


def tokens_of(answer: Any) -> torch.Tensor:
    """Return the tokens of an answer, whichever type it has."""
    return answer if isinstance(answer, torch.Tensor) else answer.sequences


def difference(plain: Any, ours: Any) -> str | None:
    """Return in what two answers differ."""
    if tokens_of(plain).tolist() != tokens_of(ours).tolist():
        return f"tokens {tokens_of(plain).tolist()} became {tokens_of(ours).tolist()}"
    if type(plain) is not type(ours):
        return f"{type(plain).__name__} became {type(ours).__name__}"
    if isinstance(plain, torch.Tensor):
        return None
    if list(plain) != list(ours):
        return f"the fields {list(plain)} became {list(ours)}"
    return next((f"{name} differ" for name in plain if name != "past_key_values" and not _close(plain[name], ours[name])), None)


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.allclose(one.float(), other.float(), atol=TOLERANCE, equal_nan=True)
    return len(one) == len(other) and all(map(_close, one, other))


def judged(model: Any, chance: random.Random) -> tuple[str, str]:
    """Make one call both ways; return what became of it, and the details where that is to be told."""
    call, seed = {**settings(chance), **prompts(chance)}, chance.randrange(1000)
    try:
        plain = generated(model, call, seed)
    except Exception:
        return "plain generate() fails", ""
    pattern = [(chance.randint(0, 5), chance.randint(0, 2)) for _ in range(7)]
    try:
        with accelplug.attach(model, drafter=Oracle(tokens_of(plain).tolist(), pattern, VOCAB), batches="lockstep") as session:
            found = difference(plain, generated(model, call, seed))
    except accelplug.AccelplugError as exc:
        return "refused", str(exc)
    except Exception as exc:
        return "fails", f"{type(exc).__name__}: {exc}"
    stats = session.stats
    fate = "none accepted" if not stats.accepted else "none rejected" if stats.accepted == stats.drafted else "both"
    return ("equal", fate) if found is None else ("differs", f"{found}; {call}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    made, came, drafts, refusals = models(), Counter[str](), Counter[str](), Counter[str]()
    for number in track(range(given.calls), "calls", console=Console(stderr=True)):
        chance = random.Random(f"{given.seed} {number}")
        name = chance.choice(list(made))
        outcome, details = judged(made[name], chance)
        came[outcome] += 1
        drafts[details] += outcome == "equal"
        refusals[details] += outcome == "refused"
        if outcome in {"differs", "fails"}:
            print(f"{outcome}: seed {given.seed}, call {number}, {name}: {details}", flush=True)
    print(json.dumps({"calls": dict(came), "drafts of the equal ones": dict(+drafts), "refusals": dict(+refusals)}))
    return came["differs"] + came["fails"]


if __name__ == "__main__":
    sys.exit(main() > 0)
