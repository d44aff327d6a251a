"""Train the byte-level BPE tokenizer (4,096 entries) on the training files, edits and records."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import data

VOCAB = 4096
# A line's end and the next one's indentation are one piece, words keep their leading space, digits stand alone: copied
# lines then cut the same way twice, and what follows an indentation is known from the line before it.
PIECES = r"\n *| ?[A-Za-z_]+| ?[^\sA-Za-z_0-9]+|\d| +|\s"


def corpus() -> Iterator[str]:
    rng = random.Random(0)
    for path in data.files(held=False):
        if text := data.read(path):
            yield text
    for _ in range(3000):
        yield data.json_records(rng).replace(data.EOS, "").replace(data.JSON, "")


def main(out: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=list(data.SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=data.EOS, pad_token=data.EOS, clean_up_tokenization_spaces=False, model_max_length=2048
    )
    fast.save_pretrained(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
