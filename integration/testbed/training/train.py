"""Train the testbed's Llama: `python train.py WORK_DIR`; stop it at any time, the same command goes on.

Short contexts first, 2,048 tokens last; Muon for the layers' matrices, AdamW for embeddings and norms; the learning
rate is constant after a warm-up and falls to zero over the last third. Step k's batch depends on the seed and k alone.
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
    """Steps at one context length; `mix` gives the shares of edits, code, records and repeated random tokens."""

    context: int
    rows: int
    steps: int
    mix: tuple[float, float, float, float]


PHASES = (
    Phase(256, 24, 800, (0.50, 0.25, 0.10, 0.15)),
    Phase(512, 12, 900, (0.55, 0.27, 0.13, 0.05)),
    Phase(1024, 6, 400, (0.55, 0.27, 0.13, 0.05)),
    Phase(2048, 3, 250, (0.50, 0.35, 0.13, 0.02)),
)


class Batches:
    """Documents packed into rows; every row begins with a document's first token."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        texts = [text for path in data.files(held=False) if (text := data.read(path))]
        self.functions = [function for text in texts for function in data.functions(text)]
        self.code = [torch.tensor(ids, dtype=torch.int32) for ids in tokenizer(texts, verbose=False).input_ids]
        self.sizes = [len(ids) for ids in self.code]

    def document(self, rng: random.Random, context: int, mix: tuple[float, ...]) -> list[int]:
        kind = rng.choices(("edit", "code", "json", "repeat"), mix)[0]
        if kind == "edit":
            edit = data.make_edit(rng.choice(self.functions), rng)
            ids = self.tokenizer(edit.text).input_ids if edit else []
            return ids if len(ids) <= context else []
        if kind == "json":
            return self.tokenizer(data.json_records(rng)).input_ids
        if kind == "repeat":
            piece = [rng.randrange(5, tokenizer_script.VOCAB) for _ in range(rng.randint(8, context // 4))]
            return [*(piece * 2), 0]
        ids = rng.choices(self.code, self.sizes)[0]
        size = rng.randint(64, context)
        start = rng.randrange(max(1, len(ids) - size))
        return [*ids[start : start + size].tolist(), 0]

    def step(self, number: int, phase: Phase) -> Tensor:
        rng = random.Random(SEED * 1_000_003 + number)
        rows = []
        for _ in range(phase.rows):
            row: list[int] = []
            while len(row) <= phase.context:
                row += self.document(rng, phase.context, phase.mix)
            rows.append(row[: phase.context + 1])
        return torch.tensor(rows)


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
    return min(1.0, (step + 1) / 100, (total - step) / (total / 3))


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
        tokens = batches.step(step, phase)
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
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
