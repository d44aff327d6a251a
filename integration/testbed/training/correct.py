"""Train the testbed's corrector, a T5: `python correct.py WORK_DIR`; stop it at any time, the same command goes on.

aligning.py's circuit copies before any training and is kept. Training teaches the encoder what each token should become (its
code at the last layer's entrance is pulled to that token's) and the whole model the clean text. Muon for the layers' matrices,
AdamW for the embeddings. Step k's batch depends on the seed and k alone.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

import aligning
import noise
from train import rate

SEED = 3
STEPS, TAGGING = 1900, 500  # and how many of them train the encoder's first layers alone
TOKENS, LETTERS, MOST_ROWS = 3000, 3, 128  # of a batch, of a token
QUIET = 0.05
RATES = (0.0, 0.1, 0.2, 0.3, 0.5)
SHAPE = {
    "d_model": 256, "d_kv": 48, "d_ff": 1024, "num_heads": 8, "num_layers": 3, "num_decoder_layers": 1, "dropout_rate": 0.0,
    "relative_attention_num_buckets": 64, "relative_attention_max_distance": 128, "tie_word_embeddings": True,
}  # fmt: skip
TOKENIZER = Path(__file__).parent.parent / "accelplug_testbed" / "model"


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Return the code model's tokenizer, which here puts each text between its two marks."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    marks = [(mark, tokenizer.convert_tokens_to_ids(mark)) for mark in (noise.BEGIN, noise.END)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{noise.BEGIN} $A {noise.END}", special_tokens=marks)
    return tokenizer


def new_model(tokenizer: PreTrainedTokenizerFast) -> tuple[T5ForConditionalGeneration, aligning.Circuit]:
    torch.manual_seed(SEED)
    begin, end = tokenizer.convert_tokens_to_ids([noise.BEGIN, noise.END])
    config = T5Config(vocab_size=len(tokenizer), pad_token_id=end, eos_token_id=end, decoder_start_token_id=begin, **SHAPE)
    model = T5ForConditionalGeneration(config)
    return model, aligning.Circuit(model, begin)


def padded(rows: list[list[int]], filler: int) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=filler)


def batch(writer: noise.Writer, texts: list[str], step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return tokens, which of them are there, what each should become and the clean text (-100 behind its end).

    :param texts: by length, as a batch's are about equally long.
    """
    rng = random.Random(SEED * 1_000_003 + step)
    at = rng.randrange(len(texts))
    count = min(TOKENS * LETTERS // len(texts[at]), MOST_ROWS)
    near = range(max(0, at - count), min(len(texts), at + count))
    pairs = [writer.writes(texts[i], rng, rng.choice(RATES)) for i in rng.sample(near, min(count, len(near)))]
    given = padded([pair.given for pair in pairs], writer.end)
    there = padded([[1] * len(pair.given) for pair in pairs], 0)
    return given, there, padded([pair.wanted for pair in pairs], writer.end), padded([pair.target for pair in pairs], -100)


def tagging(model: T5ForConditionalGeneration, reached: Tensor, there: Tensor, given: Tensor, wanted: Tensor) -> Tensor:
    """Return how far the codes and flags before the encoder's last layer are off, in squares per token that must change."""
    blank = wanted == noise.BLANK
    codes = model.shared.weight[wanted.clamp(min=0)][..., : len(aligning.CODE)].detach()
    code = (reached[..., : len(aligning.CODE)] - codes).square().mean(-1) * ~blank
    flags = torch.where(blank | (wanted == model.config.decoder_start_token_id), 1.0, -1.0)
    flag = (reached[..., aligning.FLAG] - flags).square()
    return ((code + flag) * there).sum() / ((given != wanted) * there).sum().clamp(min=1)


class Loudness:
    """Keeps the codes as loud behind the norms that the circuit reads them from as it was written for.

    A norm divides by all that stands in the stream: what training adds in other places would drown them.
    """

    def __init__(self, model: T5ForConditionalGeneration, given: Tensor, there: Tensor) -> None:
        self.norms = (model.encoder.block[-1].layer[0].layer_norm, model.encoder.final_layer_norm)
        self.sizes = [1.0, 1.0]
        for i, norm in enumerate(self.norms):
            norm.register_forward_pre_hook(lambda _, arguments, i=i: self.measure(i, arguments[0].detach().float()))
        with torch.no_grad():
            model.encoder(input_ids=given, attention_mask=there)
        self.written_for, self.smooth = list(self.sizes), list[float]()

    def measure(self, i: int, stream: Tensor) -> None:
        self.sizes[i] = stream.square().mean().sqrt().item()

    @torch.no_grad()
    def keep(self) -> None:
        """Set the norms by their last inputs, after an optimizer's step."""
        before = self.smooth or self.sizes
        self.smooth = [0.8 * old + 0.2 * new for old, new in zip(before, self.sizes, strict=True)]
        for norm, size, first in zip(self.norms, self.smooth, self.written_for, strict=True):
            norm.weight.fill_(size / first)


def losses(model: T5ForConditionalGeneration, tensors: tuple[Tensor, Tensor, Tensor, Tensor], *, whole: bool) -> tuple[Tensor, Tensor]:
    """Return the loss of the clean text, 0 unless the whole model is trained, and that of the tags.

    The first has a little for what the encoder's first layers leave in other places than the circuit's.
    """
    given, there, wanted, target = tensors
    reached: list[Tensor] = []
    hook = model.encoder.block[-1].register_forward_pre_hook(lambda _, arguments: reached.append(arguments[0]))
    with torch.autocast("cpu", torch.bfloat16):
        if whole:
            text = model(input_ids=given, attention_mask=there, labels=target).loss
        else:
            model.encoder(input_ids=given, attention_mask=there)
            text = torch.zeros(())
    hook.remove()
    if whole:
        text = text + QUIET * (reached[0][..., aligning.FREE :].float().square().mean(-1) * there).sum() / there.sum()
    return text, tagging(model, reached[0].float(), there, given, wanted)


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.ndim == 2 and "shared" not in name]
    others = [p for name, p in trained if p.ndim != 2 or "shared" in name]
    muon = torch.optim.Muon(matrices, lr=0.004, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=0.002, betas=(0.9, 0.95), weight_decay=0.0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, help="stop after this many, to try the script out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    tokenizer, texts = new_tokenizer(), sorted(noise.sentences(held=False), key=len)
    writer = noise.Writer(tokenizer, texts)
    (model, circuit), first = new_model(tokenizer), 0
    loudness = Loudness(model, *batch(writer, texts, 0)[:2])
    both = optimizers(model)
    bases = [group["lr"] for optimizer in both for group in optimizer.param_groups]
    if (checkpoint := work / "checkpoint.pt").exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(both, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["step"]
    last = min(STEPS, arguments.steps or STEPS)
    for step in range(first, last):
        started = time.monotonic()
        for optimizer, base in zip(both, bases, strict=True):
            optimizer.param_groups[0]["lr"] = base * rate(step, STEPS)
        tensors = batch(writer, texts, step)
        text, code = losses(model, tensors, whole=step >= TAGGING)
        (text + code).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        circuit.keep()
        loudness.keep()
        took = time.monotonic() - started
        row = {
            "step": step,
            "loudness": [round(size, 2) for size in loudness.sizes],
            "text": round(text.item(), 4),
            "code": round(code.item(), 4),
            "tokens_per_s": round(tensors[1].sum().item() / took),
        }
        with (work / "losses.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        if (step + 1) % 100 == 0 or step + 1 == last:
            print(row, flush=True)
            torch.save({"step": step + 1, "model": model.state_dict(), "optimizers": [o.state_dict() for o in both]}, work / "partial.pt")
            (work / "partial.pt").replace(checkpoint)
    shutil.rmtree(work / "model", ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")


if __name__ == "__main__":
    main()
