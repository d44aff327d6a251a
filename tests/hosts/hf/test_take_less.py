"""Models that take less than others: they drop the positions they are given and count by themselves, make their masks alone, or know no loop but theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    Kosmos2_5Config,
    Kosmos2_5ForConditionalGeneration,
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
    LlamaForCausalLM,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
)

import accelplug
from accelplug import HostError
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import MAKERS, VOCAB, wandering
from tests.hosts.hf.test_batches import padded, unpadded

PROMPTS = [[5, 6, 7, 8, 9, 5], [11, 12, 13], [21, 8, 40, 41, 42, 7, 8, 40, 50]]
GREEDY: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
PATTERN = [(3, 1), (0, 2), (5, 0), (2, 2), (1, 1)]

KOSMOS = {
    "vocab_size": VOCAB, "embed_dim": 48, "ffn_dim": 48, "layers": 2, "attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 1,
    "bos_token_id": 2, "eos_token_id": 3, "tie_word_embeddings": False,
}  # fmt: skip


class CountsSlots(LlamaForCausalLM):
    """As EXAONE 4.5 and HyperCLOVA X Vision do."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**super().prepare_inputs_for_generation(*args, **kwargs), "position_ids": None}


def counts_slots() -> Any:
    return CountsSlots(MAKERS["llama"]().config)


def kosmos() -> Any:
    """Its positions begin behind the number of its padding token."""
    image = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16, "patch_embed_hidden_size": 768}
    return Kosmos2_5ForConditionalGeneration(Kosmos2_5Config(text_config=KOSMOS, vision_config=image, latent_query_num=4, tie_word_embeddings=False))


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "padded"])
@pytest.mark.parametrize("make", [counts_slots, kosmos])
def test_output_is_plain_generates(make, prompts):
    model, inputs = wandering(make), padded(prompts)
    plain = model.generate(**inputs, **GREEDY).tolist()
    assert len(set(plain[0][-40:])) > 8
    with accelplug.attach(model, drafter=Oracle(unpadded(plain, inputs), PATTERN, VOCAB)) as session:
        assert model.generate(**inputs, **GREEDY).tolist() == plain
    assert 0 < session.stats.accepted < session.stats.drafted


@pytest.mark.parametrize("make", [counts_slots, kosmos])
def test_trees_are_refused(make):
    with pytest.raises(HostError, match="counts positions itself"):
        accelplug.generate(wandering(make), torch.tensor(PROMPTS[:1]), drafter="suffix(shape='tree')", **GREEDY)


def test_masks_that_a_model_makes_of_padding_alone_are_left_to_it():
    """Kosmos-2 takes no mask of four dimensions, be its prompts padded or not."""
    text = {**KOSMOS, "layerdrop": 0.0}
    image = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    model = wandering(lambda: Kosmos2ForConditionalGeneration(Kosmos2Config(text_config=text, vision_config=image, latent_query_num=4)))
    ids = torch.tensor([[5, 6, 9, 9, 9, 9, 17, 33, 8]])
    inputs = {"input_ids": ids, "image_embeds_position_mask": (ids == 9).long(), "pixel_values": torch.randn(1, 3, 28, 28)}
    plain = model.generate(**inputs, attention_mask=torch.ones_like(ids), **GREEDY).tolist()
    with accelplug.attach(model, drafter=Oracle(plain, PATTERN, VOCAB)) as session:
        assert model.generate(**inputs, attention_mask=torch.ones_like(ids), **GREEDY).tolist() == plain
    assert 0 < session.stats.accepted < session.stats.drafted


def test_a_generate_that_knows_no_loop_of_others_is_refused():
    """Musicgen's names the argument by which the loop would come as one that it does not know."""
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_codebooks": 2, "pad_token_id": 0}
    model = wandering(lambda: MusicgenForCausalLM(MusicgenDecoderConfig(**sizes, bos_token_id=0)))
    with pytest.raises(HostError, match=r"MusicgenForCausalLM.generate\(\) has a decoding loop of its own"):
        accelplug.generate(model, torch.tensor([[5, 6], [7, 8]]), drafter="prompt_lookup", **GREEDY)
