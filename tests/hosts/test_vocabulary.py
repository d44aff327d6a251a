"""Token bytes are the bytes that the token stands for, whatever stand-in characters the tokenizer stores."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from accelplug import ConstraintError, HostError
from accelplug.hosts.vocabulary import token_bytes, vocabulary_of

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


def with_blank_before() -> PreTrainedTokenizerFast:
    """Puts a blank before whatever it is given, as Llama's first tokenizers do."""
    pieces = ["<unk>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "ab", "\u2581a", "\u2581ab"]
    merges = [("a", "b"), ("\u2581", "a"), ("\u2581", "ab")]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<eos>")


@pytest.mark.parametrize("make", [byte_level, byte_fallback, with_blank_before])
def test_an_engine_is_told_bytes_ends_and_how_text_is_split_behind_other_text(make):
    tokenizer = make()
    end = tokenizer.eos_token_id or 0
    vocabulary = vocabulary_of(tokenizer, len(tokenizer) + 7, [end])
    assert len(vocabulary) == len(tokenizer) + 7
    for text in ("ab", " ab", "b", "naïve\n", "日本", ""):
        ids = vocabulary.encode(text)
        assert b"".join(vocabulary.tokens[token] for token in ids) == text.encode()
    assert vocabulary.tokens[end] == b""
    assert vocabulary.special[tokenizer.convert_ids_to_tokens(end)] == end
    assert all(not vocabulary.tokens[token] for token in vocabulary.special.values())


def test_text_is_split_as_the_tokenizer_splits_it():
    tokenizer = with_blank_before()
    vocabulary = vocabulary_of(tokenizer, len(tokenizer), [1])
    assert [tokenizer.convert_ids_to_tokens(vocabulary.encode(text)) for text in ("ab", " ab", "b")] == [["ab"], ["\u2581ab"], ["b"]]


def test_a_token_of_text_that_ends_the_model_is_no_text():
    tokenizer = byte_level()
    token = tokenizer.encode("x")[0]
    vocabulary = vocabulary_of(tokenizer, len(tokenizer), [tokenizer.eos_token_id, token])
    assert vocabulary.tokens[token] == b""
    assert vocabulary.encode("x") == []


def test_vocabularies_are_kept_and_told_apart():
    tokenizer = byte_level()
    one, again = (vocabulary_of(tokenizer, len(tokenizer), [0]) for _ in range(2))
    assert one is again
    others = [vocabulary_of(tokenizer, len(tokenizer) + 1, [0]), vocabulary_of(tokenizer, len(tokenizer), [0, 5]), vocabulary_of(byte_fallback(), 300, [0])]
    assert len({one.digest, *(other.digest for other in others)}) == 4
    assert vocabulary_of(byte_level(), len(tokenizer), [0]).digest == one.digest


@pytest.mark.parametrize("ends", [[], [400]])
def test_a_vocabulary_without_an_end_is_refused(ends):
    with pytest.raises(ConstraintError, match="a grammar ends with an EOS token"):
        vocabulary_of(byte_level(), 300, ends)
