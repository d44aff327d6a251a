"""Images and sounds that a model is given under names of its own, and itself leaves out behind the prompt: with drafts too."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import Kosmos2_5Config, Kosmos2_5ForConditionalGeneration, LogitsProcessor

import accelplug
from accelplug.testing import Oracle
from tests.hosts.hf.conftest import COMMON, VOCAB

PLACE = 90  # the token that stands for a piece of an image or a sound
IDS = torch.tensor([[5, *[PLACE] * 4, 5, 6, 7, 8], [9, *[PLACE] * 4, 8, 7, 9, 8]])
LENGTH = 28


def kosmos2_5():
    """It puts an image where a mask says, which is as long as the prompt."""
    text = {"vocab_size": VOCAB, "embed_dim": 48, "ffn_dim": 64, "layers": 2, "attention_heads": 4, "scale_embedding": False}
    vision = {"hidden_size": 32, "patch_embed_hidden_size": 12, "intermediate_size": 32, "head_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Kosmos2_5Config(text_config=text, vision_config={**vision, "max_num_patches": 8}, latent_query_num=4, tie_word_embeddings=False)
    return Kosmos2_5ForConditionalGeneration(config), {"image_embeds_position_mask": (IDS == PLACE).long()}


def patches():
    """Two images of four patches each, with their rows and columns before them."""
    places = torch.cartesian_prod(torch.arange(1.0, 3.0), torch.arange(1.0, 3.0))
    return {"flattened_patches": torch.cat([places.expand(2, -1, -1), torch.randn(2, 4, 12)], 2)}


def vibevoice_asr():
    """It puts a sound wherever its token stands, in an answer too if given the sound there, and says nothing of it."""
    if not hasattr(transformers, "VibeVoiceAsrConfig"):
        pytest.skip("this release of Transformers has no VibeVoice ASR")
    hears = {"hidden_size": 16, "num_filters": 4, "downsampling_ratios": [2, 2], "depths": [1, 1, 1], "vae_std": 0.0}
    text = {**COMMON, "num_hidden_layers": 2, "model_type": "qwen2"}
    parts = {"acoustic_tokenizer_encoder_config": dict(hears), "semantic_tokenizer_encoder_config": dict(hears), "text_config": text}
    config = transformers.VibeVoiceAsrConfig(**parts, audio_token_id=PLACE, audio_bos_token_id=92, audio_eos_token_id=93)
    return transformers.VibeVoiceAsrForConditionalGeneration(config), {}


def sounds():
    return {"input_values": torch.randn(2, 1, 16)}


class Prefers(LogitsProcessor):
    """Has an answer's third token stand for a piece of an image or a sound."""

    def __call__(self, input_ids, scores):
        return scores.index_fill(1, torch.tensor([PLACE]), 1e4) if input_ids.shape[1] == IDS.shape[1] + 2 else scores


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("make", "seen"), [(kosmos2_5, patches), (vibevoice_asr, sounds)])
def test_output_is_plain_generates(make, seen, rows):
    torch.manual_seed(4)
    model, inputs = make()
    for name, weights in model.eval().named_parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, 0, 0.3 if "language_model" in name or "lm_head" in name else 0.5)
    model.generation_config.eos_token_id = None
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), **inputs}
    one, other = ({name: value[:rows] for name, value in {**inputs, **seen()}.items()} for _ in range(2))
    arguments = {"max_new_tokens": LENGTH, "do_sample": False, "pad_token_id": 0, "logits_processor": [Prefers()]}
    plain = model.generate(**one, **arguments)
    assert model.generate(**other, **arguments).tolist() != plain.tolist(), "what it is given makes no difference"
    with accelplug.attach(model, drafter=Oracle(plain.tolist(), [(3, 1), (0, 2), (2, 1)], VOCAB)) as session:
        assert model.generate(**one, **arguments).tolist() == plain.tolist()
    assert 0 < session.stats.accepted < session.stats.drafted
