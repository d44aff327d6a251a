"""A second model's logits are those of the same tokens in one plain forward pass, whatever was read and drafted before."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch

from accelplug import AccelplugError
from accelplug.hosts.hf.loading import check_tokens, load_second
from tests.hosts.hf.conftest import MAKERS, VOCAB, WINDOW, llama

EVENTS: collections.Counter[str] = collections.Counter()


def plain_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([list(tokens)])).logits[0, -1]


def grow(texts, rng, most):
    """Add tokens to every text, to each another number of them."""
    for text in texts.values():
        text.extend(rng.integers(1, VOCAB, rng.integers(1, most)).tolist())


def check_step(second, model, texts, rng):
    """Read what is new, draft two levels of random trees, and compare every row."""
    slots = np.array(list(texts))
    most = second.committed + max(len(texts[slot]) - second.read[second.rows[slot]] for slot in slots)
    logits = second.extend(slots, [np.array(texts[slot]) for slot in slots])
    assert len(second.columns) <= most, "drafts leave the cache"
    for row, slot in zip(logits, slots, strict=True):
        torch.testing.assert_close(row, plain_logits(model, texts[slot]), atol=2e-4, rtol=2e-4)
    paths = []
    for level in range(2):
        requests = rng.integers(0, len(slots), 4).tolist()
        parents = []
        for request in requests:
            own = [node for node, (owner, path) in enumerate(paths) if owner == request and len(path) == level]
            parents.append(int(rng.choice(own)) if own else -1)
        tokens = rng.integers(1, VOCAB, 4).tolist()
        paths += [(r, [*(paths[p][1] if p >= 0 else ()), t]) for r, p, t in zip(requests, parents, tokens, strict=True)]
        EVENTS["a node with an ancestor"] += any(parent >= 0 for parent in parents)
        EVENTS["siblings"] += len(set(zip(requests, parents, strict=True))) < len(parents)
        for row, (request, path) in zip(second.expand(requests, tokens, parents), paths[-4:], strict=True):
            torch.testing.assert_close(row, plain_logits(model, [*texts[slots[request]], *path]), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_rows_of_different_lengths_chains_and_trees(random_models, name, implementation):
    model, rng = random_models[name], np.random.default_rng(3)
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        second = load_second(model, model, None)
        texts = {slot: rng.integers(1, VOCAB, 5 + 9 * slot).tolist() for slot in range(3)}
        second.start(np.arange(3))
        for step in range(4):
            check_step(second, model, texts, rng)
            grow(texts, rng, 4)
            EVENTS["holes"] += not second.columns.valid.all()
            if step == 1:  # a slot ends while it has drafts, and is given to another request
                second.finish(np.array([1]))
                texts[1] = rng.integers(1, VOCAB, 7).tolist()
                second.start(np.array([1]))
            if step == 2:
                second.finish(np.array([0]))
                del texts[0]
        EVENTS["window passed"] += name in ("gemma3", "mistral") and max(map(len, texts.values())) > WINDOW + 4
        second.finish(np.array(list(texts)))
        assert len(second.columns) == 0
    finally:
        model.set_attn_implementation(before)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_what_was_read_ahead_of_the_text_is_kept_as_far_as_it_comes(random_models, name):
    model, rng = random_models[name], np.random.default_rng(8)
    second = load_second(model, model, None)
    texts = {slot: rng.integers(1, VOCAB, 4 + 7 * slot).tolist() for slot in range(3)}
    second.start(np.arange(3))
    for _ in range(14):
        asked = [slot for slot in texts if rng.random() < 0.8] or [0]
        ahead = {slot: rng.integers(1, VOCAB, rng.integers(0, 5)).tolist() for slot in asked}
        guessed = [np.array(texts[slot] + ahead[slot]) for slot in asked]
        read = {slot: second.read[second.rows[slot]] for slot in asked}
        logits = second.extend(np.array(asked), guessed, [len(ahead[slot]) for slot in asked])
        for row, history in zip(logits, guessed, strict=True):
            torch.testing.assert_close(row, plain_logits(model, history), atol=2e-4, rtol=2e-4)
        node = second.expand([0], [7], [-1])[0]
        torch.testing.assert_close(node, plain_logits(model, [*guessed[0], 7]), atol=2e-4, rtol=2e-4)
        for slot, tokens in ahead.items():
            come = int(rng.integers(0, len(tokens) + 1))
            texts[slot] += [*tokens[:come], (tokens[come] % 90 + 2) if come < len(tokens) else 5]
            EVENTS["none of it came"] += 0 == come < len(tokens)
            EVENTS["a part of it came"] += 0 < come < len(tokens)
            EVENTS["all of it came"] += 0 < come == len(tokens)
            EVENTS["it was read once"] += read[slot] > 0 and bool(tokens)
    second.finish(np.array([0]))
    assert 0 not in second.ahead


def test_holes_are_closed_and_long_prompts_are_read_in_chunks(random_models, monkeypatch):
    monkeypatch.setattr("accelplug.hosts.hf.second._CHUNK", 16)
    model, rng = random_models["llama"], np.random.default_rng(4)
    second = load_second(model, model, None)
    second.start(np.arange(2))
    texts = {0: rng.integers(1, VOCAB, 50).tolist(), 1: rng.integers(1, VOCAB, 3).tolist()}
    closed = []
    for step in range(10):
        check_step(second, model, texts, rng)
        texts[step % 2] += rng.integers(1, VOCAB, 30).tolist()  # in turns, so that each leaves holes in the other
        texts[1 - step % 2] += [5]
        columns = len(second.columns)
        second.columns.crop(second.committed)
        closed.append(second.columns.close_holes(max(second.read)))
        second.committed = len(second.columns)
        assert not closed[-1] or len(second.columns) == max(second.read) < columns
    assert {True, False} == set(closed)


def test_every_hard_event_happened():
    print(dict(EVENTS))
    wanted = (
        "a node with an ancestor", "siblings", "holes", "window passed", "none of it came", "a part of it came", "all of it came", "it was read once",
    )  # fmt: skip
    assert not [event for event in wanted if not EVENTS[event]]


def test_it_loads_a_folder_and_cuts_or_fills_logits(tmp_path, random_models, tokenizer):
    target = random_models["llama"]
    target.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    second = load_second(str(tmp_path), target, tokenizer)
    second.start(np.arange(1))
    text = np.array([3, 4, 5])
    torch.testing.assert_close(second.extend(np.arange(1), [text])[0], plain_logits(target, text), atol=1e-5, rtol=1e-5)
    second.vocab_size = VOCAB + 2  # a target of the same tokenizer, padded further
    wider = second.extend(np.arange(1), [np.array([3, 4, 5, 6])])
    assert wider.shape == (1, VOCAB + 2)
    assert wider[0, VOCAB:].eq(-torch.inf).all()
    second.vocab_size = VOCAB - 1
    assert second.extend(np.arange(1), [np.array([3, 4, 5, 6, 7])]).shape == (1, VOCAB - 1)


def test_refusals(tmp_path, random_models, tokenizer):
    target = random_models["llama"]
    small = llama()
    small.config.vocab_size = 50
    other = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", unk_token="<unk>")
    other.add_tokens(["zz"])
    flash = llama()
    flash.config._attn_implementation = "flash_attention_2"
    with pytest.raises(AccelplugError, match="have 50 and 96 tokens; use a second model with the target's tokenizer"):
        load_second(small, target, None)
    with pytest.raises(AccelplugError, match="differ in 1 tokens"):
        check_tokens(small, target, other, tokenizer)
    padded = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<another>", unk_token="<unk>")
    assert padded.get_vocab() != tokenizer.get_vocab()
    check_tokens(small, target, padded, tokenizer)  # special tokens may differ
    for missing in (str(tmp_path / "nothing"), "./nothing", "~/nothing/at/all"):
        with pytest.raises(AccelplugError, match="cannot be loaded: there is no such folder; give a folder"):
            load_second(missing, target, None)
    with pytest.raises(AccelplugError, match="is a loaded model, a folder or a name on the hub, got 5"):
        load_second(5, target, None)
    with pytest.raises(AccelplugError, match="cannot draft: attn_implementation 'flash_attention_2'"):
        load_second(flash, target, None)
    second = load_second(target, target, None)
    second.start(np.arange(1))
    second.extend(np.arange(1), [np.array([1, 2])])
    with pytest.raises(AccelplugError, match="has not grown"):
        second.extend(np.arange(1), [np.array([1, 2])])
