"""Compiled forward passes by inductor: output, drafts, graphs and steps that were not compiled, on kinds of layers. Run by hand.

``python integration/transformers/inductor.py [CASES...]`` runs all, or those named, and writes what came of them into
``results/inductor.json``, beside what is there of others. Every case decodes greedily over one static cache, compiled by Transformers'
default `CompileConfig`: plainly, with drafts of all widths that are right and wrong by turns, and with two drafters, each twice. A minute or more
per case is compiling. A model with recurrent layers is compared with itself the first time it is used, in a few steps that are not compiled.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch._dynamo.utils import counters
from transformers import CompileConfig, LogitsProcessorList

import accelplug
from accelplug.testing.oracle import Oracle

RESULT = Path(__file__).resolve().parent / "results" / "inductor.json"
PACKAGES = ("accelplug", "transformers", "torch")
VOCAB, WINDOW = 96, 16
PATTERN = [(3, 1), (0, 2), (5, 0), (0, 0), (2, 4), (6, 1), (11, 4), (0, 6), (1, 0), (0, 1), (9, 0), (0, 11)]
BASE = {"vocab_size": VOCAB, "eos_token_id": None, "bos_token_id": None, "pad_token_id": 0, "hidden_size": 32, "intermediate_size": 32}
COMMON = {**BASE, "num_attention_heads": 4, "num_key_value_heads": 2}
WINDOWED = {**COMMON, "head_dim": 16, "sliding_window": WINDOW, "max_position_embeddings": 512}
MIXER = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_expand": 2, "mamba_chunk_size": 8}
SHORT, LONG = [[5, 6, 7, 8, 9]], [list(range(3, 33))]
TWO = [[5, 6, 7, 8, 9], [0, 0, 7, 8, 3]]
"""The second row is padded."""


def llama() -> Any:
    """Full attention."""
    return tf.LlamaForCausalLM(tf.LlamaConfig(num_hidden_layers=2, **COMMON))


def mistral() -> Any:
    """Nothing but windows."""
    return tf.MistralForCausalLM(tf.MistralConfig(num_hidden_layers=1, **WINDOWED))


def gemma3() -> Any:
    """A window beside full attention."""
    types = ["sliding_attention", "full_attention"]
    return tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(num_hidden_layers=2, layer_types=types, tie_word_embeddings=False, **WINDOWED))


def lfm2() -> Any:
    """Short convolutions beside attention."""
    return tf.Lfm2ForCausalLM(tf.Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"], **COMMON))


def qwen3_next() -> Any:
    """Gated delta rule beside attention, with experts."""
    linear = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    types = ["linear_attention", "full_attention"]
    return tf.Qwen3NextForCausalLM(tf.Qwen3NextConfig(num_hidden_layers=2, layer_types=types, head_dim=8, **linear, **experts, **COMMON))


def falcon_h1() -> Any:
    """Mamba 2 and attention side by side in one layer."""
    return tf.FalconH1ForCausalLM(tf.FalconH1Config(num_hidden_layers=1, mamba_d_ssm=64, **MIXER, **COMMON))


def mamba2() -> Any:
    """No attention."""
    special = {name: value for name, value in BASE.items() if name != "intermediate_size"}
    return tf.Mamba2ForCausalLM(tf.Mamba2Config(num_heads=4, head_dim=16, state_size=8, num_hidden_layers=1, n_groups=1, chunk_size=8, **special))


def jamba() -> Any:
    """Mixers that read one token after the other, whose steps with drafts are not compiled."""
    periods = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 2}
    return tf.JambaForCausalLM(tf.JambaConfig(num_hidden_layers=2, mamba_d_state=4, use_mamba_kernels=False, **periods, **COMMON))


CASES: dict[str, tuple[Callable[[], Any], list[list[int]]]] = {
    "full attention": (llama, SHORT),
    "full attention, two rows": (llama, TWO),
    "windows: with room, filling, full": (mistral, SHORT),
    "windows: full from the start": (mistral, LONG),
    "a window beside full attention": (gemma3, SHORT),
    "short convolutions": (lfm2, SHORT),
    "gated delta rule": (qwen3_next, SHORT),
    "Mamba 2 beside attention": (falcon_h1, SHORT),
    "Mamba 2 alone": (mamba2, SHORT),
    "Mamba 1 beside attention": (jamba, SHORT),
}
UNCOMPILED = {"Mamba 1 beside attention"}
"""Where steps run as they are, as docs/transformers.md says."""


class Compiled:
    """One model over static caches, and what became of its forward passes.

    :ivar uncompiled: the widths of the passes that ran as they are since the last call began, the prompt's among them.
    """

    def __init__(self, make: Callable[[], Any], prompts: list[list[int]], new_tokens: int, backend: str = "inductor") -> None:
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(3)
        self.model = make().eval()
        with torch.no_grad():
            for weights in self.model.parameters():
                if weights.ndim > 1:  # large enough for the output to wander
                    weights.normal_(0, 0.3)
        self.model.generation_config.eos_token_id = None
        self.model.get_input_embeddings().register_forward_pre_hook(self._look)
        self.uncompiled: list[int] = []
        ids = torch.tensor(prompts)
        config = CompileConfig(backend=backend)
        config._compile_all_devices = True
        self.plain_arguments = {"input_ids": ids, "attention_mask": (ids != 0).long(), "max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
        self.arguments = {**self.plain_arguments, "cache_implementation": "static", "compile_config": config}

    def _look(self, _module: Any, given: tuple[torch.Tensor, ...]) -> None:
        if not torch.compiler.is_compiling():  # while tracing this is always so, hence in no graph
            self.uncompiled.append(given[0].shape[1])

    def run(self, drafter: object | None) -> tuple[list[list[int]], dict[str, Any]]:
        """Generate; return prompts with output, and what it took."""
        self.uncompiled.clear()
        graphs, began = counters["stats"]["unique_graphs"], time.perf_counter()
        with accelplug.attach(self.model, drafter=drafter) if drafter is not None else torch.no_grad() as session:
            rows = self.model.generate(**self.arguments).tolist()
        seconds = time.perf_counter() - began
        found = {
            "graphs": counters["stats"]["unique_graphs"] - graphs, "uncompiled_steps": len(self.uncompiled) - 1, "seconds": round(seconds, 1),
        }  # fmt: skip
        if drafter is not None:
            stats = session.stats
            found |= {"forwards": stats.forwards, "drafted": stats.drafted, "accepted": stats.accepted}
        return rows, found

    def least_margin(self) -> float:
        """Return how close the best two tokens ever were, by plain passes that are not compiled: what rounding may differ by before it shows."""
        least = [float("inf")]

        def look(_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            best, second = scores.topk(2).values.T
            least.append(float((best - second).min()))
            return scores

        self.model.generate(**self.plain_arguments, logits_processor=LogitsProcessorList([look]))
        return min(least)


def follow(name: str, *, new_tokens: int = 160, backend: str = "inductor") -> dict[str, Any]:
    """Run one case; return what became of each way of decoding."""
    make, prompts = CASES[name]
    compiled = Compiled(make, prompts, new_tokens, backend)
    uncompiled = compiled.model.generate(**compiled.plain_arguments).tolist()
    known, plain = compiled.run(None)
    assert len({*known[0][len(prompts[0]) :]}) > 20, "the output must wander for mistakes to show"
    shown = [row[sum(token == 0 for token in prompt) :] for row, prompt in zip(known, prompts, strict=True)]  # drafters see no padding
    ways: dict[str, Any] = {"plain": {**plain, "as_uncompiled": known == uncompiled}}
    drafters = {"half right": Oracle(shown, PATTERN, VOCAB), "suffix": "suffix", "prompt_lookup": "prompt_lookup"}
    for turn in ("first", "second"):
        for way, drafter in drafters.items():
            rows, found = compiled.run(drafter)
            ways[f"{way}, {turn}"] = {**found, "as_plain": rows == known}
    return {
        "ways": ways, "graphs": counters["stats"]["unique_graphs"], "graph_breaks": sum(counters["graph_break"].values()),
        "least_margin": compiled.least_margin(),
    }  # fmt: skip


def is_right(name: str, found: dict[str, Any]) -> bool:
    """Whether all output was plain generation's, drafts were accepted and rejected, and in the second turn all was compiled already."""
    drafted = {way: of for way, of in found["ways"].items() if way != "plain"}
    second = [of for way, of in drafted.items() if way.endswith("second")]
    half = drafted["half right, second"]
    return (
        all(of["as_plain"] for of in drafted.values())
        and 0 < half["accepted"] < half["drafted"]
        and not any(of["graphs"] for of in second)
        and (name in UNCOMPILED or not any(of["uncompiled_steps"] for of in second))
        and not found["graph_breaks"]
    )


def main(asked: list[str]) -> int:
    """Run the cases and record them; leave with 1 where one is not right."""
    torch.set_num_threads(1)
    versions = {name: version(name) for name in PACKAGES}
    outcomes = []
    for name in asked or CASES:
        try:
            found = follow(name)
            outcomes.append(is_right(name, found))
        except Exception as exc:  # what goes wrong in one case is part of the record
            found = {"said": f"{type(exc).__name__}: {str(exc).strip().partition(chr(10))[0]}"}
            outcomes.append(False)
        kept = json.loads(RESULT.read_text())["cases"] if RESULT.exists() else {}
        kept[name] = {"outcome": "right" if outcomes[-1] else "wrong", **found, "with": versions}
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps({"cases": dict(sorted(kept.items()))}, indent=1) + "\n")
        print(name, kept[name]["outcome"], json.dumps(found), flush=True)
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
