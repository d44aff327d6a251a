"""Drafters see no padding: a prompt drafts as a padded row of a batch what it drafts alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from transformers import GitConfig, GitForCausalLM, T5Config, T5ForConditionalGeneration

import accelplug
from accelplug import HostError
from accelplug.hooks import CommitView, Drafts, DraftView
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import MAKERS, VOCAB, wandering
from tests.hosts.hf.test_batches import padded

PROMPTS = [[5, 6, 7, 5, 6, 7, 5, 6], [9, 9, 8], [3]]
GREEDY: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}


@dataclass
class Recorder(Oracle):
    """The oracle, keeping what every row was shown: (text, fresh, accepted) of each commit, (text, drafts) of each proposal."""

    seen: dict[int, list[Any]] = field(init=False, default_factory=dict)

    def observe(self, view: CommitView) -> None:
        for i, slot in enumerate(view.slots.tolist()):
            assert len(view.history(i)) == view.lengths[i]
            self.seen.setdefault(slot, []).append((view.history(i).tolist(), int(view.fresh[i]), int(view.accepted[i])))

    def propose(self, view: DraftView) -> Drafts:
        drafts = super().propose(view)
        for i, slot in enumerate(view.slots.tolist()):
            self.seen[slot].append((view.history(i).tolist(), drafts.tokens[drafts.offsets[i] : drafts.offsets[i + 1]].tolist()))
        return drafts


@pytest.mark.parametrize(
    ("name", "batches", "pattern", "ends"),
    [
        ("llama", "ragged", [(3, 1)], False),
        ("llama", "ragged", [(4, 0), (0, 2)], True),
        ("gemma3", "ragged", [(2, 2)], True),
        ("llama", "lockstep", [(3, 1)], False),  # with one pattern for all rows, and no end, they advance alike
        ("mistral", "lockstep", [(4, 0)], False),
    ],
)
def test_a_padded_row_is_shown_what_the_prompt_alone_shows(random_models, name, batches, pattern, ends):
    model, arguments = random_models[name], dict(GREEDY)
    alone = [model.generate(torch.tensor([prompt]), **arguments)[0].tolist() for prompt in PROMPTS]
    if ends:
        answers = [row[len(prompt) :] for prompt, row in zip(PROMPTS, alone, strict=True)]
        places = {token: [row.index(token) if token in row else 24 for row in answers] for token in range(VOCAB)}
        arguments["eos_token_id"] = max(places, key=lambda token: (min(places[token]) > 2) * (max(places[token]) - min(places[token])))
    single: list[Any] = []
    for sequence, prompt in zip(alone, PROMPTS, strict=True):
        drafter = Recorder([sequence], pattern[len(single) % len(pattern) :] + pattern[: len(single) % len(pattern)], VOCAB)
        accelplug.generate(model, torch.tensor([prompt]), drafter=drafter, **arguments)
        single.append(drafter.seen[0])
    drafter = Recorder(alone, pattern, VOCAB)
    accelplug.generate(model, **padded(PROMPTS), drafter=drafter, batches=batches, **arguments)
    assert [drafter.seen[row] for row in range(3)] == single
    assert [single[row][0][1] for row in range(3)] == [len(prompt) + 1 for prompt in PROMPTS]
    assert not ends or len({len(row) for row in single}) > 1


@pytest.mark.parametrize("name", sorted(MAKERS))
@pytest.mark.parametrize("batches", ["ragged", "lockstep"])
def test_a_draft_model_is_accepted_as_often_behind_padding(random_models, name, batches):
    """The target drafts for itself: every draft is right unless the padding is read."""
    model, inputs = random_models[name], padded(PROMPTS)
    plain = model.generate(**inputs, **GREEDY)
    with accelplug.attach(model, drafter={"name": "draft_model", "model": model, "num_tokens": 3}, batches=batches) as session:
        assert model.generate(**inputs, **GREEDY).tolist() == plain.tolist()
    assert session.stats.acceptance == 1


@pytest.mark.parametrize("mask", [[1, 1, 1, 0, 0, 1], [0, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]])
def test_padding_may_stand_anywhere(random_models, mask):
    model, ids = random_models["llama"], [[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]]
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor([mask, [1] * 6])}
    plain = model.generate(**inputs, **GREEDY).tolist()
    own = [[*(token for token, real in zip(ids[0], mask, strict=True) if real), *plain[0][6:]], plain[1]]
    drafter = Recorder(own, [(3, 1), (0, 2)], VOCAB)
    with accelplug.attach(model, drafter=drafter) as session:
        assert model.generate(**inputs, **GREEDY).tolist() == plain
    assert session.stats.accepted > 0
    for row, sequence in enumerate(own):
        assert all(text == sequence[: len(text)] for text, *_ in drafter.seen[row])
        assert len(drafter.seen[row][-1][0]) > len(sequence) - 6


def test_embeddings_as_prompt_have_a_mask_of_no_tokens(random_models):
    model, ids = random_models["llama"], torch.tensor([[5, 6, 7], [8, 9, 10]])
    inputs = {"inputs_embeds": model.get_input_embeddings()(ids), "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}
    plain = model.generate(**inputs, **GREEDY).tolist()
    drafter = Recorder(plain, [(3, 1)], VOCAB)
    assert accelplug.generate(model, **inputs, drafter=drafter, **GREEDY).tolist() == plain
    assert [drafter.seen[row][0][0] for row in range(2)] == [row[:1] for row in plain]


def test_a_mask_may_begin_with_the_tokens_of_a_cache(random_models):
    """A conversation may go on with its new tokens alone, whose mask covers the old ones."""
    model, first = random_models["llama"], padded([[5, 6, 7, 8], [9, 10]])
    new, real = torch.tensor([[11, 12, 13], [0, 14, 15]]), torch.tensor([[1, 1, 1], [0, 1, 1]])

    def answered() -> torch.Tensor:
        cache = model(**first, use_cache=True).past_key_values
        mask = torch.cat([first["attention_mask"], real], 1)
        return model.generate(new, attention_mask=mask, past_key_values=cache, **GREEDY)

    plain = answered().tolist()
    drafter = Recorder([plain[0], plain[1][1:]], [(3, 1)], VOCAB)
    with accelplug.attach(model, drafter=drafter) as session:
        assert answered().tolist() == plain
    assert session.stats.accepted > 0
    assert [drafter.seen[row][0][0] for row in range(2)] == [plain[0][:4], plain[1][1:4]]


def test_a_decoders_padding_is_left_out_too():
    torch.manual_seed(3)
    sizes = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=None)).eval()
    model.generation_config.eos_token_id = None
    encoder = torch.tensor([[5, 6, 7], [8, 9, 10]])
    decoder = {"decoder_input_ids": torch.tensor([[0, 0, 21, 22], [0, 20, 21, 22]])}
    decoder["decoder_attention_mask"] = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    plain = model.generate(encoder, **decoder, **GREEDY).tolist()
    drafter = Recorder([plain[0][1:], plain[1]], [(3, 1)], VOCAB)
    assert accelplug.generate(model, encoder, **decoder, drafter=drafter, **GREEDY).tolist() == plain
    assert drafter.seen[0][0][:2] == (plain[0][1:5], 4)
    assert drafter.seen[1][0][:2] == (plain[1][:5], 5)


def git() -> GitForCausalLM:
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16, "patch_size": 8}
    text = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    return GitForCausalLM(GitConfig(**text, vision_config=vision, bos_token_id=None, eos_token_id=None, pad_token_id=0))


def unlimited_ocr() -> Any:
    """From 5.24 on. Its window of 8 holds what is written, the prompt stays in front of it."""
    side = {"image_size": 32, "patch_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    sam = {**side, "global_attn_indexes": [0], "mlp_dim": 16, "downsample_channels": [16, 16], "output_channels": 16}
    text = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "sliding_window": 8, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
    encoder = {**side, "intermediate_size": 16}
    config = transformers.UnlimitedOcrConfig(text_config={**text, **heads, **experts}, vision_config={"sam_config": sam, "encoder_config": encoder})
    return transformers.UnlimitedOcrForConditionalGeneration(config)


@pytest.mark.skipif(not hasattr(transformers, "UnlimitedOcrConfig"), reason="Transformers has the model from 5.24 on")
def test_padding_that_plain_generate_loses_sight_of_is_refused():
    model = wandering(unlimited_ocr)
    alone = [model.generate(torch.tensor([prompt]), **GREEDY)[0].tolist() for prompt in PROMPTS]
    assert model.generate(**padded(PROMPTS), **GREEDY)[2, -24:].tolist() != alone[2][-24:], "plain generate() masks its padding now"
    drafter = Oracle(alone, [(3, 1), (0, 2)], VOCAB)
    with pytest.raises(HostError, match=r"UnlimitedOcr.* takes padding for text once its window is full.*give it prompts of one length"):
        accelplug.generate(model, **padded(PROMPTS), drafter=drafter, **GREEDY)
    assert accelplug.generate(model, torch.tensor(PROMPTS[:1]), drafter=drafter, **GREEDY).tolist() == alone[:1]


def test_padding_that_plain_generate_mistakes_for_an_image_is_refused():
    model = wandering(git)
    alone = [model.generate(torch.tensor([prompt]), **GREEDY)[0].tolist() for prompt in PROMPTS]
    drafter = Oracle(alone, [(3, 1), (0, 2)], VOCAB)
    with pytest.raises(HostError, match=r"GitForCausalLM puts padding where an image's tokens would be.*give it prompts of one length"):
        accelplug.generate(model, **padded(PROMPTS), drafter=drafter, **GREEDY)
    for arguments in ({"input_ids": torch.tensor(PROMPTS[:1])}, {**padded(PROMPTS), "use_cache": False}):
        rows = accelplug.generate(model, **arguments, drafter=drafter, **GREEDY)
        assert [[token for token in row if token] for row in rows.tolist()] == [[token for token in row if token] for row in alone[: len(rows)]]
