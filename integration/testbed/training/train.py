"""Train the testbed's Llama: `python train.py WORK_DIR`; stop it at any time, the same command goes on.

Short contexts first, 2,048 tokens last; Muon for the layers' matrices, AdamW for embeddings and norms; copying.py's
circuit is there from the start and kept. The learning rate is held after a warm-up and falls over the last half. Step k's
batch depends on the seed and k alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import copying
import data
import tokenizer as tokenizer_script

SEED = 20
# With a small base half of a head's dimensions turn with distance and cannot match content; 1e10 leaves 90 of 128 still.
SHAPE = {
    "hidden_size": 384, "intermediate_size": 512, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 128, "max_position_embeddings": 2048, "tie_word_embeddings": True, "attention_bias": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e10},
}  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """Steps at one context length; `mix` gives the shares of edits, code and records."""

    context: int
    rows: int
    steps: int
    mix: tuple[float, float, float]


PHASES = (
    Phase(1024, 6, 350, (0.45, 0.35, 0.20)),
    Phase(2048, 3, 40, (0.50, 0.30, 0.20)),
)

Document = tuple[list[int], list[float]]


class Batches:
    """Documents packed into rows; every row begins with a document.

    The loss leans on what can be known: an edit's result counts most, its prompt little.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        texts = [text for path in data.files(held=False) if (text := data.read(path))]
        self.functions = [function for path in data.files(held=False) for function in data.functions(path)]
        self.code = [torch.tensor(ids, dtype=torch.int32) for ids in tokenizer(texts, verbose=False).input_ids]
        self.sizes = [len(ids) for ids in self.code]

    def edit(self, rng: random.Random, phase: Phase) -> Document:
        edit = data.make_edit(rng.choice(self.functions), rng)
        ids = self.tokenizer(edit.text).input_ids if edit else []
        if len(ids) > phase.context:
            return [], []
        prompt = len(self.tokenizer(edit.prompt).input_ids) if edit else 0
        return ids, [0.2] * prompt + [2.0] * (len(ids) - prompt)

    def document(self, rng: random.Random, phase: Phase) -> Document:
        kind = rng.choices(("edit", "code", "json"), phase.mix)[0]
        if kind == "edit":
            return self.edit(rng, phase)
        if kind == "json":
            ids = self.tokenizer(data.json_records(rng)).input_ids
            return ids, [1.0] * len(ids)
        file = rng.choices(self.code, self.sizes)[0]
        size = rng.randint(64, phase.context)
        start = rng.randrange(max(1, len(file) - size))
        ids = [*file[start : start + size].tolist(), 0]
        return ids, [0.6] * len(ids)

    def step(self, number: int, phase: Phase) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens, weights and each token's document, all [rows, context + 1]; every document ends with token 0."""
        rng = random.Random(SEED * 1_000_003 + number)
        rows = []
        for _ in range(phase.rows):
            row: list[tuple[int, float, int]] = []
            for document in itertools.count():
                ids, counts = self.document(rng, phase)
                row += zip(ids, counts, [document] * len(ids), strict=True)
                if len(row) > phase.context:
                    break
            rows.append(list(zip(*row[: phase.context + 1], strict=True)))
        tokens, weights, documents = (torch.tensor(part) for part in zip(*rows, strict=True))
        return tokens, weights, documents


def within_documents(document: Tensor) -> Tensor:
    """Return which earlier tokens each one sees, those of its own document: bool [rows, 1, context, context]."""
    return (document.unsqueeze(2) == document.unsqueeze(1)).tril().unsqueeze(1)


def phase_of(step: int) -> Phase:
    for phase in PHASES:
        if step < phase.steps:
            return phase
        step -= phase.steps
    raise ValueError("past the last step")


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in trained if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=0.002, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=0.002, betas=(0.9, 0.95), weight_decay=0.0)]


def rate(step: int, total: int) -> float:
    """Warm up over 20 steps, hold, then fall to zero in a line over the last half."""
    return min((step + 1) / 20, 1.0, 2 * (total - step) / total)


def new_model(tokenizer: PreTrainedTokenizerFast) -> tuple[LlamaForCausalLM, copying.Start]:
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer_script.VOCAB, bos_token_id=None, eos_token_id=0, pad_token_id=0, **SHAPE))
    return model, copying.Start(model, [i for token, i in tokenizer.get_vocab().items() if token.startswith("Ċ")])


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
    (model, start), total, first = new_model(batches.tokenizer), sum(phase.steps for phase in PHASES), 0
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
        for optimizer, base in zip(both, bases, strict=True):
            optimizer.param_groups[0]["lr"] = base * rate(step, total)
        tokens, weights, documents = batches.step(step, phase)
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(input_ids=tokens[:, :-1], attention_mask=within_documents(documents[:, :-1]), use_cache=False).logits
        losses = nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        counted = weights[:, 1:].flatten()
        loss = (losses * counted).sum() / counted.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        start.keep()
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
