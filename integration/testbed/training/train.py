"""Train the testbed's Llama: `python train.py WORK_DIR`; stop it at any time, the same command goes on.

Short contexts first, 2,048 tokens last; Muon for the layers' matrices, AdamW for embeddings and norms; the learning
rate is held after a warm-up and falls to zero over the last quarter. Step k's batch depends on the seed and k alone.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import data
import tokenizer as tokenizer_script

SEED = 20
# With a small base half of a head's dimensions turn with distance and cannot match content; 1e7 leaves 40 of 64 still.
SHAPE = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 64, "max_position_embeddings": 2048, "tie_word_embeddings": True, "attention_bias": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7},
}  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """Steps at one context length; `mix` gives the shares of edits, code, records and repeated tokens."""

    context: int
    rows: int
    steps: int
    mix: tuple[float, float, float, float]


PHASES = (
    Phase(256, 24, 200, (0.50, 0.15, 0.08, 0.27)),
    Phase(512, 12, 600, (0.65, 0.15, 0.08, 0.12)),
    Phase(1024, 6, 800, (0.72, 0.15, 0.08, 0.05)),
    Phase(2048, 3, 200, (0.72, 0.15, 0.10, 0.03)),
)

Document = tuple[list[int], list[float]]


class Batches:
    """Documents packed into rows; every row begins with a document.

    The loss leans on what can be known: an edit's result counts in full and its prompt a fifth, repeated tokens count
    from their second time on, and they are few distinct ones, so that one token of context does not tell the next.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        texts = [text for path in data.files(held=False) if (text := data.read(path))]
        self.functions = [function for text in texts for function in data.functions(text)]
        self.code = [torch.tensor(ids, dtype=torch.int32) for ids in tokenizer(texts, verbose=False).input_ids]
        self.sizes = [len(ids) for ids in self.code]

    def edit(self, rng: random.Random, phase: Phase) -> Document:
        edit = data.make_edit(rng.choice(self.functions), rng)
        ids = self.tokenizer(edit.text).input_ids if edit else []
        if len(ids) > phase.context:
            return [], []
        prompt = len(self.tokenizer(edit.prompt).input_ids) if edit else 0
        return ids, [0.2] * prompt + [1.0] * (len(ids) - prompt)

    def repeat(self, rng: random.Random, phase: Phase) -> Document:
        size = rng.randint(8, phase.context // 4)
        known = [rng.randrange(5, tokenizer_script.VOCAB) for _ in range(rng.randint(6, 60))]
        piece = rng.choices(known, k=size)
        return [*(piece * 2), 0], [0.0] * size + [1.0] * (size + 1)

    def document(self, rng: random.Random, phase: Phase) -> Document:
        kind = rng.choices(("edit", "code", "json", "repeat"), phase.mix)[0]
        if kind == "edit":
            return self.edit(rng, phase)
        if kind == "repeat":
            return self.repeat(rng, phase)
        if kind == "json":
            ids = self.tokenizer(data.json_records(rng)).input_ids
            return ids, [1.0] * len(ids)
        file = rng.choices(self.code, self.sizes)[0]
        size = rng.randint(64, phase.context)
        start = rng.randrange(max(1, len(file) - size))
        ids = [*file[start : start + size].tolist(), 0]
        return ids, [1.0] * len(ids)

    def step(self, number: int, phase: Phase) -> tuple[Tensor, Tensor]:
        """Return tokens and weights, both [rows, context + 1]."""
        rng = random.Random(SEED * 1_000_003 + number)
        rows, weights = [], []
        for _ in range(phase.rows):
            row: list[int] = []
            weight: list[float] = []
            while len(row) <= phase.context:
                ids, counts = self.document(rng, phase)
                row += ids
                weight += counts
            rows.append(row[: phase.context + 1])
            weights.append(weight[: phase.context + 1])
        return torch.tensor(rows), torch.tensor(weights)


def phase_of(step: int) -> Phase:
    for phase in PHASES:
        if step < phase.steps:
            return phase
        step -= phase.steps
    raise ValueError("past the last step")


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=0.003, momentum=0.95, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=0.003, betas=(0.9, 0.95), weight_decay=0.0)]


def rate(step: int, total: int) -> float:
    """Warm up over 50 steps, hold for a third, then fall to zero in a line: copying sharpens as the rate falls."""
    return min(1.0, (step + 1) / 50, 1.5 * (total - step) / total)


def new_model() -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer_script.VOCAB, bos_token_id=None, eos_token_id=0, pad_token_id=0, **SHAPE))
    begin_with_induction(model)
    return model


@torch.no_grad()
def begin_with_induction(model: LlamaForCausalLM) -> None:
    """Set the first two layers' heads up to find where the last tokens stood before (Olsson et al. 2022, induction heads).

    Layer 0: head h looks 1 + h % 4 tokens back, by biases on the dimensions that turn fast, and writes what it sees to a place of its own.
    Layer 1: a head's query holds the current tokens, its key the ones before a place, on the dimensions that hardly turn.
    A random start needs most of a short training to find this; what the heads then do with it is learned.
    """
    hidden, size = model.config.hidden_size, model.config.head_dim
    half, first, second = size // 2, *(layer.self_attn for layer in model.model.layers[:2])
    fast, slow = range(10), [i for i in range(size) if i % half >= 12]
    angles = 1e7 ** (-torch.arange(half) / half)
    see = nn.init.orthogonal_(torch.empty(size, hidden))
    places = [nn.init.orthogonal_(torch.empty(hidden, size)) for _ in range(4)]
    for group in range(model.config.num_key_value_heads):
        first.k_proj.bias[[group * size + i for i in fast]] = 7.0
        first.v_proj.weight[group * size : (group + 1) * size] = see * 0.14
    for head in range(model.config.num_attention_heads):
        for i in fast:
            back = angles[i] * (1 + head % 4)
            first.q_proj.bias[head * size + i] = 7.0 * torch.cos(back)
            first.q_proj.bias[head * size + half + i] = -7.0 * torch.sin(back)
        first.o_proj.weight[:, head * size : (head + 1) * size] = places[head % 4] * 0.14
    parts = (slow[0::2], slow[1::2])
    for group in range(model.config.num_key_value_heads):
        for part, place in zip(parts, places[:2], strict=True):
            second.k_proj.weight[[group * size + i for i in part]] = place.T[: len(part)] * 2.5
    for head in range(model.config.num_attention_heads):
        for part, source in zip(parts, (see, places[0].T), strict=True):
            second.q_proj.weight[[head * size + i for i in part]] = source[: len(part)] * 2.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, help="stop after this many, to try the script out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    work: Path = arguments.work
    if not (work / "tokenizer").exists():
        tokenizer_script.main(work / "tokenizer")
    batches = Batches(AutoTokenizer.from_pretrained(work / "tokenizer"))
    model, total, first = new_model(), sum(phase.steps for phase in PHASES), 0
    both = optimizers(model)
    bases = [group["lr"] for optimizer in both for group in optimizer.param_groups]
    if (checkpoint := work / "checkpoint.pt").exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(both, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["step"]
    forward = torch.compile(model, dynamic=False)
    for step in range(first, min(total, arguments.steps or total)):
        phase, started = phase_of(step), time.monotonic()
        for (optimizer, base) in zip(both, bases, strict=True):
            optimizer.param_groups[0]["lr"] = base * rate(step, total)
        tokens, weights = batches.step(step, phase)
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(input_ids=tokens[:, :-1], use_cache=False).logits
        losses = nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        counted = weights[:, 1:].flatten()
        loss = (losses * counted).sum() / counted.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        took = time.monotonic() - started
        row = {"step": step, "context": phase.context, "loss": round(loss.item(), 4), "tokens_per_s": round(tokens.numel() / took)}
        with (work / "losses.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        if (step + 1) % 100 == 0 or step + 1 == total:
            print(row, flush=True)
            torch.save({"step": step + 1, "model": model.state_dict(), "optimizers": [o.state_dict() for o in both]}, work / "partial.pt")
            (work / "partial.pt").replace(checkpoint)
    model.to(torch.bfloat16).save_pretrained(work / "model")
    batches.tokenizer.save_pretrained(work / "model")


if __name__ == "__main__":
    main()
