"""A second model with another tokenizer: greedy output is plain's, sampling exact, its cache holds its own split of the text."""

from __future__ import annotations

import collections
import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import accelplug
from accelplug import AccelplugError
from accelplug.hooks import CommitView, DraftView, load_registry
from accelplug.hosts.hf.context import build_context
from accelplug.hosts.hf.loading import load_second
from accelplug.hosts.hf.translated import Tokens, Translated
from tests.hosts.hf.conftest import VOCAB, llama

EVENTS: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
MODES = {
    "intersection": {"tokens": "intersection"},
    "intersection tree": {"tokens": "intersection", "tree": "top_k(width=2, depth=3)", "num_tokens": 8},
    "intersection drawn tree": {"tokens": "intersection", "tree": "gumbel_top_k(branching=[2, 2])", "num_tokens": 6},
    "text": {"tokens": "text"},
}
FIRST = 33  # the character of the target's token 2


def byte_level(vocab: dict[str, int], merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    pad, unknown = list(vocab)[:2]
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=unknown))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=pad, unk_token=unknown)


@pytest.fixture(scope="module")
def other(random_models, tmp_path_factory) -> str:
    """The target with noise on its matrices, in tokens of its own: characters in another order, without two, and pairs of them."""
    target, folder = random_models["llama"], str(tmp_path_factory.mktemp("other"))
    torch.manual_seed(1)
    characters = [chr(FIRST + i) for i in range(VOCAB - 4)][::-1]
    merges = [(a, b) for a, b in itertools.product(characters, characters) if (3 * ord(a) + 7 * ord(b)) % 19 == 0]
    names = ["<pad>", "<unk>", *characters, *(a + b for a, b in merges)]
    tokenizer = byte_level({name: token for token, name in enumerate(names)}, merges)
    model = llama()
    model.resize_token_embeddings(len(names))
    weights = copy.deepcopy(target.state_dict())
    for name, own in model.state_dict().items():
        noisy = weights[name]
        if noisy.ndim > 1:
            noisy = noisy + 0.03 * noisy.std() * torch.randn_like(noisy)
        if own.shape == noisy.shape:
            own.copy_(noisy)
        else:  # rows of tokens; a pair's are like its second character's, and a little unlikelier
            own.copy_(torch.stack([noisy[ord(piece[-1]) - FIRST + 2] * (1 if len(piece) == 1 else 0.97) for piece in ["!", "!", *names[2:]]]))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Watch:
    """Counts what becomes of a drafter's drafts."""

    def __init__(self, inner: Any, events: collections.Counter[str]) -> None:
        self.inner, self.traits, self.events = inner, inner.traits, events

    def start(self, slots):
        self.inner.start(slots)
        self.drafted: dict[int, int] = {}

    def finish(self, slots):
        self.inner.finish(slots)

    def observe(self, view: CommitView):
        self.events["rows accept differently"] += len(set(view.accepted.tolist())) > 1
        for slot, accepted in zip(view.slots.tolist(), view.accepted.tolist(), strict=True):
            drafted = self.drafted.get(slot, 0)
            self.events["zero accepted"] += drafted > 0 == accepted
            self.events["part accepted"] += 0 < accepted < drafted
            self.events["all accepted"] += 0 < accepted == drafted

    def propose(self, view: DraftView):
        second = self.inner._second
        before = {slot: len(text.read) for slot, text in second.texts.items()}
        forget, self.kept = second.second.forget, []
        second.second.forget = lambda slot, keep: (self.kept.append(keep < before[slot]), forget(slot, keep))
        drafts = self.inner.propose(view)
        second.second.forget = forget
        self.events["split anew"] += any(self.kept)
        counts = np.diff(drafts.offsets)
        self.events["budget clipped"] += bool(((counts == view.budgets) & (counts > 0)).any())
        self.drafted = dict(zip(view.slots.tolist(), counts.tolist(), strict=True))
        return drafts


def watched(model: Any, tokenizer: Any, other: str, mode: str) -> Watch:
    spec = {"name": "draft_model", "model": other, "num_tokens": 4, **MODES[mode]}
    return Watch(load_registry(entry_points=False).build("drafter", spec, build_context(model, tokenizer)).instance, EVENTS[mode])


@pytest.mark.parametrize("mode", MODES)
def test_greedy_output_is_plain_generates(random_models, tokenizer, other, mode):
    model = random_models["llama"]
    for seed, prompt in enumerate(([[9, 8, 7, 6, 5]], [[3, 4, 5], [11, 12, 13]], [[40, 41, 2, 90]])):
        arguments: dict[str, Any] = {"max_new_tokens": 34 + seed, "do_sample": False, "pad_token_id": 0}
        arguments["attention_mask"] = torch.ones(len(prompt), len(prompt[0]), dtype=torch.long)
        plain = model.generate(torch.tensor(prompt), **arguments)
        with accelplug.attach(model, drafter=watched(model, tokenizer, other, mode)) as session:
            assert model.generate(torch.tensor(prompt), **arguments).tolist() == plain.tolist()
            for at in range(4, 20, 3) if len(prompt) == 1 else ():
                eos = plain[0, len(prompt[0]) + at].item()
                expected = plain[0, : plain[0].tolist().index(eos, len(prompt[0])) + 1].tolist()
                stats = copy.copy(session.stats)
                assert model.generate(torch.tensor(prompt), **arguments, eos_token_id=eos)[0].tolist() == expected
                made, passes, kept = (getattr(session.stats, f) - getattr(stats, f) for f in ("tokens", "forwards", "accepted"))
                EVENTS[mode]["ended inside a draft"] += passes + kept > made


@pytest.mark.parametrize("mode", MODES)
def test_every_hard_event_happened(mode):
    print(dict(EVENTS[mode]))
    wanted = ("zero accepted", "part accepted", "budget clipped", "rows accept differently", "split anew", "ended inside a draft")
    assert [event for event in wanted if not EVENTS[mode][event]] == []


def test_drafts_as_text_take_plain_generates_random_numbers(random_models, tokenizer, other):
    model = random_models["llama"]
    arguments = {"max_new_tokens": 50, "do_sample": True, "temperature": 0.4, "top_k": 0, "pad_token_id": 0}
    drafter = {"name": "draft_model", "model": other, "tokens": "text"}
    for seed in range(3):
        outputs = []
        for attached in (None, drafter):
            with accelplug.attach(model, drafter=attached, tokenizer=tokenizer) as session:
                torch.manual_seed(seed)
                outputs.append(model.generate(torch.tensor([[9, 8, 7]]), **arguments).tolist())
        assert outputs[0] == outputs[1]
        assert session.stats.accepted > 0


def test_its_logits_are_those_of_its_own_split(random_models, tokenizer, other):
    """Whatever was read and taken back before: the text grows by tokens of the target's that change how it is split."""
    target, rng = random_models["llama"], np.random.default_rng(0)
    second = load_second(other, target, tokenizer, "intersection")
    own, model = AutoTokenizer.from_pretrained(other), second.second.model
    texts = {slot: rng.integers(2, VOCAB - 4, 6).tolist() for slot in range(2)}
    second.start(np.arange(2))
    shorter = 0
    for _ in range(30):
        before = {slot: list(second.texts[slot].read) for slot in texts}
        logits = second.extend(np.arange(2), [np.array(texts[slot]) for slot in texts])
        theirs, ours = second.tokens.pairs
        for slot, row in enumerate(logits):
            ids = own.encode("".join(chr(FIRST - 2 + token) for token in texts[slot]))
            assert second.texts[slot].read == ids
            shorter += ids[: len(before[slot])] != before[slot]
            with torch.no_grad():
                plain = model(torch.tensor([ids])).logits[0, -1]
            torch.testing.assert_close(row[theirs], plain[ours], atol=2e-4, rtol=2e-4)
            assert int(row.isfinite().sum()) == len(theirs) == VOCAB - 2
        second.expand([0, 1, 0], [5, 6, 7], [-1, -1, -1])
        for text in texts.values():
            text[len(text) :] = rng.integers(2, VOCAB - 4, rng.integers(1, 4)).tolist()
    assert shorter > 0


@pytest.mark.parametrize("speaks", ["intersection", "text"])
def test_what_is_ahead_of_the_text_is_read_and_not_kept(random_models, tokenizer, other, speaks):
    """Asked about tokens that never come, or half of which come, it answers afterwards like one that was not asked."""
    target, rng = random_models["llama"], np.random.default_rng(5)
    second, plain = (load_second(other, target, tokenizer, speaks) for _ in range(2))
    text, slots = rng.integers(2, VOCAB - 4, 6).tolist(), np.arange(1)
    second.start(slots)
    for _ in range(12):
        ahead = rng.integers(2, VOCAB - 4, rng.integers(1, 5)).tolist()
        for given, count in (([*text, *ahead], len(ahead)), (text, 0)):
            plain.start(slots)
            expected = plain.extend(slots, [np.array(given)])
            torch.testing.assert_close(second.extend(slots, [np.array(given)], [count]), expected, atol=2e-4, rtol=2e-4)
            assert second.texts[0].read == plain.texts[0].read
            text += ahead[: len(ahead) // 2] + rng.integers(2, VOCAB - 4, 1).tolist()


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    """A tokenizer of the other kind, with blanks as letters and bytes to fall back on, trained on real text."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    core.train_from_iterator([itertools.__doc__, copy.__doc__, collections.__doc__ or "", dict.__doc__, str.__doc__ or ""] * 3,
                             trainers.BpeTrainer(vocab_size=500, special_tokens=special))  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", unk_token="<unk>")


def test_tokens_of_two_kinds_of_tokenizers_meet_in_their_bytes(trained):
    accelplug_testbed = pytest.importorskip("accelplug_testbed")
    target = AutoTokenizer.from_pretrained(accelplug_testbed.path())
    tokens = Tokens(target, trained, (len(target), len(trained)))
    theirs, own = tokens.pairs.tolist()
    assert len(theirs) == len(set(theirs)) == len(set(own)) > 100
    for a, b in zip(theirs, own, strict=True):
        assert tokens.bytes[0][a] == tokens.bytes[1][b] != b""
    text = "def copy(it):\n    return iterators over \u00e9l\u00e9ments \U0001f600 of it\n"
    ids = trained.encode(text, add_special_tokens=False)
    assert tokens.split(text.encode()) == ids
    assert target.decode(tokens.spelled(tokens.split(b"x" + text.encode()))[1:]).strip() == text.strip()
    assert tokens.split(text.encode()[:-16]) == tokens.split(text.encode()[:-16].decode("utf-8", "ignore").encode())


def test_a_text_begins_as_the_second_tokenizer_begins_its_own():
    """A BOS token that a tokenizer has, and does not write, its model has not been trained on."""
    core = byte_level({name: token for token, name in enumerate(["<pad>", "<unk>", "a", "<s>"])}, [])
    silent = PreTrainedTokenizerFast(tokenizer_object=core.backend_tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>")
    writing = copy.deepcopy(silent)
    writing.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    assert [Tokens(core, own, (4, 4)).beginning for own in (core, silent, writing)] == [[], [], [3]]


def test_of_a_long_text_only_the_last_lines_are_split_again(monkeypatch):
    accelplug_testbed = pytest.importorskip("accelplug_testbed")
    tokenizer = AutoTokenizer.from_pretrained(accelplug_testbed.path())
    tokens = Tokens(tokenizer, tokenizer, (len(tokenizer), len(tokenizer)))
    read, lengths = [], []

    class Reading:
        def start(self, slots):
            pass

        def forget(self, slot, keep):
            lengths.append(len(read) - keep)
            del read[keep:]

        def extend(self, slots, histories):
            read[:] = histories[0].tolist()
            return torch.zeros(1, len(tokenizer))

    second = Translated(Reading(), tokens, "intersection", len(tokenizer))
    second.start(np.zeros(1, np.int64))
    split, splits = tokens.split, []
    monkeypatch.setattr(tokens, "split", lambda text: splits.append(len(text)) or split(text))
    text = tokenizer.encode("".join(f"    if value{i} > {i}:\n        return [{i}] * value{i}\n" for i in range(60)))
    for end in range(20, len(text), 7):
        second.extend(np.zeros(1, np.int64), [np.array(text[:end])])
        assert b"".join(tokens.bytes[1][token] for token in read) == b"".join(tokens.bytes[0][token] for token in text[:end])
    assert read == text[:end]
    assert max(lengths) < 8
    assert max(splits) < 700 < sum(tokens.bytes[0][token] != b"" for token in text)


def test_refusals(random_models, tokenizer, other, tmp_path, trained):
    model = random_models["llama"]

    def refused(sentence: str, given: Any = tokenizer, **options: Any) -> None:
        with pytest.raises(AccelplugError, match=sentence):
            accelplug.attach(model, drafter={"name": "draft_model", "model": other, **options}, tokenizer=given)

    refused("differ in [0-9]+ tokens; use a second model with the target's tokenizer, or tokens='intersection'")
    refused("translates between two tokenizers and the target's is not given; pass tokenizer=... to attach", given=None, tokens="text")
    refused("that of LlamaForCausalLM is not at hand; give the second model by a path that has one", model=llama(), tokens="intersection")
    refused("tokens='text' writes one text, and tree='top_k' asks for several; use tree='chain'", tokens="text", tree="top_k")
    refused("tokens", tokens="same as the target")
    strange = byte_level({"<p>": 0, "<u>": 1, "\u0100": 2}, [])
    refused("have no token in common; use tokens='text'", given=strange, tokens="intersection")
