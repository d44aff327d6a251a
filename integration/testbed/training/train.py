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
SHAPE = {
    "hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """Steps at one context length; `mix` gives the shares of edits, code, records and repeated random tokens.

    In a `sharp` phase repeated sequences use few distinct tokens, so that copying must look further back than one
    token, and the loss leans on what can be known: an edit's result counts in full, its prompt a fifth, random tokens
    not at all until they repeat.
    """

    context: int
    rows: int
    steps: int
    mix: tuple[float, float, float, float]
    sharp: bool = False


PHASES = (
    Phase(256, 24, 800, (0.50, 0.25, 0.10, 0.15)),
    Phase(512, 12, 500, (0.55, 0.27, 0.13, 0.05)),
    Phase(512, 12, 400, (0.55, 0.15, 0.08, 0.22), sharp=True),
    Phase(1024, 6, 300, (0.60, 0.20, 0.10, 0.10), sharp=True),
    Phase(512, 12, 600, (0.75, 0.08, 0.05, 0.12), sharp=True),
    Phase(1024, 6, 200, (0.75, 0.10, 0.08, 0.07), sharp=True),
    Phase(2048, 3, 100, (0.70, 0.15, 0.10, 0.05), sharp=True),
)

Document = tuple[list[int], list[float]]


class Batches:
    """Documents packed into rows, with a weight for every token's loss; every row begins with a document."""

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
        prompt = len(self.tokenizer(edit.prompt).input_ids) if edit and phase.sharp else 0
        return ids, [0.2] * prompt + [1.0] * (len(ids) - prompt)

    def repeat(self, rng: random.Random, phase: Phase) -> Document:
        size = rng.randint(8, phase.context // 4)
        known = [rng.randrange(5, tokenizer_script.VOCAB) for _ in range(rng.randint(6, 60))]
        piece = [rng.choice(known) if phase.sharp else rng.randrange(5, tokenizer_script.VOCAB) for _ in range(size)]
        return [*(piece * 2), 0], [0.0 if phase.sharp else 1.0] * size + [1.0] * (size + 1)

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
    muon = torch.optim.Muon(matrices, lr=0.005, momentum=0.95, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=0.004, betas=(0.9, 0.95), weight_decay=0.0)]


def rate(step: int, total: int) -> float:
    """Warm up, hold, and fall to zero over the last quarter of the steps: copying sharpens as the rate falls."""
    return min(1.0, (step + 1) / 100, 0.65 if step >= 2000 else 1.0, 0.45 * (total - step) / (total / 4))


def new_model() -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    return LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer_script.VOCAB, bos_token_id=None, eos_token_id=0, pad_token_id=0, **SHAPE))


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
