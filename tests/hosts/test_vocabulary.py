"""Token bytes are the bytes that the token stands for, whatever stand-in characters the tokenizer stores."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from accelplug import HostError
from accelplug.hosts.vocabulary import token_bytes

TEXT = "def naïve(x):\n\treturn '日本' + x  # 🙂\n"


def byte_level() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator([TEXT] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


def byte_fallback() -> PreTrainedTokenizerFast:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *sorted(set("defnaïvx():\treturn'+#") - {" "})]
    core = Tokenizer(
        models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_concatenated_bytes_are_the_text(make):
    tokenizer = make()
    ids = tokenizer(TEXT).input_ids
    found = token_bytes(tokenizer, len(tokenizer) + 7)
    assert b"".join(found[i] for i in ids).decode() == TEXT
    assert len(found) == len(tokenizer) + 7
    assert {found[i] for i in tokenizer.all_special_ids} == {b""} == set(found[-7:])


def test_other_tokenizers_are_refused():
    with pytest.raises(HostError, match="load a fast tokenizer"):
        token_bytes(object(), 10)
    core = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    with pytest.raises(HostError, match="cannot read token bytes behind the decoder null"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>"), 2)
