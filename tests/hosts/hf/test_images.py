"""Models that read images, video or audio in their prompt: behind it drafts are verified as in text, at the model's own positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LogitsProcessor,
    MllamaConfig,
    MllamaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

import accelplug
from accelplug import HostError
from accelplug.hooks import Drafts
from accelplug.hosts.hf.compat import cache_name
from accelplug.testing import Oracle
from tests.hosts.hf.conftest import COMMON, VOCAB

IMAGE = 90  # the token that stands for a piece of an image
TEXT = {**COMMON, "num_hidden_layers": 2}
LENGTH = 28


def llava():
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4)
    text = LlamaConfig(**TEXT)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1))
    return model, {"pixel_values": torch.randn(2, 3, 8, 8)}


def qwen2_vl():
    """Its positions have three axes, and the answer's begin where neither the prompt's length nor the cache's says."""
    text = {**TEXT, "head_dim": None, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    special = {"image_token_id": IMAGE, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **special))
    return model, {"pixel_values": torch.randn(32, 96), "image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}


def gemma3():
    """Within an image it attends both ways; three of four layers have a window."""
    types = ["sliding_attention"] * 3 + ["full_attention"]
    text = Gemma3TextConfig(**{**TEXT, "num_hidden_layers": 4}, layer_types=types, sliding_window=16)
    vision = SiglipVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4)
    special = {"image_token_id": IMAGE, "boi_token_id": 92, "eoi_token_id": 93, "tie_word_embeddings": False}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **special)
    return Gemma3ForConditionalGeneration(config), {"pixel_values": torch.randn(2, 3, 16, 16)}


def paligemma():
    """It counts positions from one, and gives an answer's tokens another type than the prompt's."""
    vision = SiglipVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4)
    config = PaliGemmaConfig(vision_config=vision, text_config=GemmaConfig(**TEXT), image_token_index=IMAGE, projection_dim=48)
    ids = torch.tensor([[*[IMAGE] * 4, 5, 6, 7, 8, 9, 5, 6], [0, 0, *[IMAGE] * 4, 9, 8, 7, 9, 8]])
    seen = {"pixel_values": torch.randn(2, 3, 8, 8), "token_type_ids": torch.zeros_like(ids)}
    return PaliGemmaForConditionalGeneration(config), {"input_ids": ids, **seen}


def mllama():
    """Some layers attend to images alone, with a mask that has a row for each token; the cache holds the images' keys there."""
    text = {name: value for name, value in TEXT.items() if name != "head_dim"} | {"num_hidden_layers": 4, "bos_token_id": 1}
    text = MllamaTextConfig(**text, cross_attention_layers=[1, 3], rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2}
    tiles = {"max_num_tiles": 2, "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]], "intermediate_layers_indices": [1]}
    vision = MllamaVisionConfig(**sizes, **tiles, image_size=8, patch_size=4, vision_output_dim=64)
    ids = torch.tensor([[5, IMAGE, 6, 7, 8, 9, 5, 6], [0, 0, 4, IMAGE, 9, 8, 7, 9]])
    mask = torch.ones(2, ids.shape[1], 1, 2, dtype=torch.long)
    mask[0, 0], mask[1, :3] = 0, 0  # what is before the image does not see it
    seen = {"pixel_values": torch.randn(2, 1, 2, 3, 8, 8), "aspect_ratio_ids": torch.ones(2, 1, dtype=torch.long)}
    seen |= {"aspect_ratio_mask": torch.tensor([[[1, 0]]] * 2), "cross_attention_mask": mask}
    config = MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    return MllamaForConditionalGeneration(config), {"input_ids": ids, **seen}


def idefics():
    """It is given the encoded images with every token."""
    text = {name: value for name, value in TEXT.items() if name not in ("head_dim", "num_key_value_heads")}
    sizes = {"embed_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {**sizes, "image_size": 8, "patch_size": 4}
    config = IdeficsConfig(**text, cross_layer_interval=1, use_resampler=False, additional_vocab_size=0, vision_config=vision)
    ids = torch.tensor([[5, 6, 7, 8, 9, 5, 6], [0, 0, 9, 8, 7, 9, 8]])
    seen = {"pixel_values": torch.randn(2, 1, 3, 8, 8), "image_attention_mask": torch.ones(2, ids.shape[1], 1, dtype=torch.long)}
    return IdeficsForVisionText2Text(config), {"input_ids": ids, **seen}


def made(make):
    """Return a model with weights large enough for the output to wander and for the image to matter, and what it is given."""
    torch.manual_seed(4)
    model, seen = make()
    model = model.eval()
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim > 1:
                weights.normal_(0, 0.3 if "language_model" in name or "lm_head" in name else 0.5)
            elif "gate" in name or "alpha" in name:  # through which images come in
                weights.fill_(0.7)
    return model, seen


@pytest.fixture(scope="module", params=[paligemma, mllama, idefics], ids=lambda make: make.__name__)
def looking(request):
    """A model whose inputs change with each token, and a batch of two prompts with an image each, the second one padded."""
    model, inputs = made(request.param)
    return model, {**inputs, "attention_mask": (inputs["input_ids"] != 0).long()}


@pytest.fixture(scope="module", params=[llava, qwen2_vl, gemma3], ids=lambda make: make.__name__)
def given(request):
    """Model and a batch of two prompts with an image each, the second one padded."""
    model, seen = made(request.param)
    image = [92, *[IMAGE] * 4, 93]
    ids = torch.tensor([[5, 6, 7, *image, 5, 6, 7, 8, 9, 5, 6], [0, 0, 0, 4, 3, *image, 9, 8, 7, 9, 8]])
    types = (ids == IMAGE).long()
    named = {"gemma3": "token_type_ids", "qwen2_vl": "mm_token_type_ids"}.get(request.param.__name__)
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), **({named: types} if named else {}), **seen}
    return model, inputs


def first(inputs):
    """The first prompt alone."""
    rows = {name: value[: len(value) // 2] for name, value in inputs.items()}
    return {**rows, "attention_mask": torch.ones_like(rows["input_ids"])}


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("rows", [1, 2])
def test_output_is_plain_generates(given, rows, width, do_sample):
    check(*given, rows, width, do_sample)


@pytest.mark.parametrize(("rows", "width", "do_sample"), [(1, 1, True), (2, 1, False), (2, 2, False)])
def test_inputs_that_change_with_each_token_are_those_of_plain_generate(looking, rows, width, do_sample):
    check(*looking, rows, width, do_sample)


WITHOUT_CACHE = {"use_cache": False, "max_new_tokens": 12, "suppress_tokens": [IMAGE, 91]}  # on which plain generate() fails there


@pytest.mark.parametrize(("rows", "do_sample"), [(1, True), (2, False)])
def test_images_are_read_again_at_every_step_without_a_cache(given, rows, do_sample):
    check(*given, rows, 1, do_sample, **WITHOUT_CACHE)


def test_inputs_that_change_with_each_token_are_made_again_without_a_cache(looking):
    check(*looking, 2, 1, False, **WITHOUT_CACHE)


class Pictures(Oracle):
    """Drafts what the model is about to write, and then an image."""

    def propose(self, view):
        known = [self.sequences[slot][length : length + 2] for slot, length in zip(view.slots.tolist(), view.lengths.tolist(), strict=True)]
        tokens = [[*row, IMAGE, IMAGE][: max(0, budget)] for row, budget in zip(known, view.budgets.tolist(), strict=True)]
        return Drafts(np.cumsum([0, *map(len, tokens)]), np.array([token for row in tokens for token in row], dtype=np.int64))


def test_drafts_of_tokens_that_stand_for_images(given):
    """Without a cache the model fails on a text with more of them than it has images for, which a draft makes of it."""
    model, inputs = given
    inputs = first(inputs)
    arguments = {"do_sample": False, "use_cache": False, "max_new_tokens": 12}
    plain = model.generate(**inputs, **arguments, suppress_tokens=[IMAGE, 91])
    with accelplug.attach(model, drafter=Pictures(plain.tolist(), [], VOCAB)) as session:
        assert model.generate(**inputs, **arguments, suppress_tokens=[IMAGE, 91]).tolist() == plain.tolist()
    assert 0 < session.stats.accepted < session.stats.drafted
    wanted = {"logits_processor": [Prefers(IMAGE, inputs["input_ids"].shape[1] + 3)], "suppress_tokens": [IMAGE, 91], **arguments}
    with pytest.raises(ValueError, match="do not match"):
        model.generate(**inputs, **wanted)
    with pytest.raises(HostError, match="wrote a token that stands for an image, audio or video, on which plain generate"):
        accelplug.generate(model, **inputs, **wanted, drafter=Pictures(plain.tolist(), [], VOCAB))


class Prefers(LogitsProcessor):
    """Has the model write one token at some place."""

    def __init__(self, token, place):
        self.token, self.place = token, place

    def __call__(self, input_ids, scores):
        return scores.index_fill(1, torch.tensor([self.token]), 1e4) if input_ids.shape[1] == self.place else scores


def test_trees_behind_images_are_refused_without_a_cache(given):
    model, inputs = given
    drafter = Oracle([[1] * 60] * 2, [(1, 1)], VOCAB, 2)
    with pytest.raises(HostError, match=r"a tree of drafts cannot be verified without a cache behind .*, by which parts of the prompt see what follows"):
        accelplug.generate(model, **inputs, drafter=drafter, max_new_tokens=9, use_cache=False)


def check(model, inputs, rows, width, do_sample, **others):
    inputs = first(inputs) if rows == 1 else inputs
    arguments = {"max_new_tokens": LENGTH, "do_sample": do_sample, "pad_token_id": 0, "top_k": 0 if do_sample else None, **others}
    torch.manual_seed(5)
    plain = model.generate(**inputs, **arguments)
    torch.manual_seed(5)
    other = model.generate(**{**inputs, "pixel_values": -inputs["pixel_values"]}, **arguments)
    assert other.tolist() != plain.tolist(), "the image makes no difference"
    # The drafter knows the answer without the prompt's padding.
    known = [row[int((mask == 0).sum()) :] for row, mask in zip(plain.tolist(), inputs["attention_mask"], strict=True)]
    torch.manual_seed(5)
    with accelplug.attach(model, drafter=Oracle(known, [(3, 1), (0, 2), (2, 1)], VOCAB, width=width)) as session:
        fast = model.generate(**inputs, **arguments)
    assert fast.tolist() == plain.tolist()
    assert 0 < session.stats.accepted < session.stats.drafted


def test_a_model_that_changes_such_inputs_with_each_token_is_refused(given):
    model, inputs = given

    class Looks(type(model)):
        def _update_model_kwargs_for_generation(self, outputs, model_kwargs, **others):
            return super()._update_model_kwargs_for_generation(outputs, model_kwargs, **others)

    was, model.__class__ = type(model), Looks
    try:
        with pytest.raises(HostError, match="does not run with the images, audio or video of Looks, which it looks at anew with each token; use text"):
            accelplug.generate(model, **inputs, drafter="prompt_lookup", max_new_tokens=4, do_sample=False)
    finally:
        model.__class__ = was


def test_a_cache_that_holds_more_than_tokens_is_refused(given, monkeypatch):
    model, inputs = given
    prefill = model._prefill

    def longer(*arguments, **named):
        outputs = prefill(*arguments, **named)
        layer = arguments[2][cache_name()].layers[1]
        layer.update(layer.keys[:, :, :1], layer.values[:, :, :1])
        return outputs

    monkeypatch.setattr(model, "_prefill", longer, raising=False)
    with pytest.raises(HostError, match="caches more than its tokens, from which rejected drafts cannot be taken"):
        accelplug.generate(model, **first(inputs), drafter="prompt_lookup", max_new_tokens=4, do_sample=False)
