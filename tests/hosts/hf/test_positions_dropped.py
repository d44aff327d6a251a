"""Models that drop the positions they are given on the way to each forward pass, and count cache slots or tokens by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Kosmos2_5Config, Kosmos2_5ForConditionalGeneration, LlamaForCausalLM

import accelplug
from accelplug import HostError
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import MAKERS, VOCAB, wandering
from tests.hosts.hf.test_batches import padded, unpadded

PROMPTS = [[5, 6, 7, 8, 9, 5], [11, 12, 13], [21, 8, 40, 41, 42, 7, 8, 40, 50]]
GREEDY: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
PATTERN = [(3, 1), (0, 2), (5, 0), (2, 2), (1, 1)]


class CountsSlots(LlamaForCausalLM):
    """As EXAONE 4.5 and HyperCLOVA X Vision do."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**super().prepare_inputs_for_generation(*args, **kwargs), "position_ids": None}


def counts_slots() -> Any:
    return CountsSlots(MAKERS["llama"]().config)


def kosmos() -> Any:
    """Its positions begin behind the number of its padding token."""
    text = {
        "vocab_size": VOCAB, "embed_dim": 48, "ffn_dim": 48, "layers": 2, "attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 1,
        "bos_token_id": 2, "eos_token_id": 3, "tie_word_embeddings": False,
    }  # fmt: skip
    image = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16, "patch_embed_hidden_size": 768}
    return Kosmos2_5ForConditionalGeneration(Kosmos2_5Config(text_config=text, vision_config=image, latent_query_num=4, tie_word_embeddings=False))


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
