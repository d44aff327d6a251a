"""The trained model beside one that knows the same language in other tokens: same text, and drafts that pay."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import accelplug

testbed = pytest.importorskip("accelplug_testbed", reason="pip install ./integration/testbed")

FORGOTTEN = 1200  # the last merges, of the rarest tokens


@pytest.fixture(scope="module")
def target() -> tuple[Any, Any]:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(testbed.path(), dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(testbed.path())


@pytest.fixture(scope="module")
def other(target: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same weights in another tokenizer: its last merges forgotten, its ids shuffled."""
    model, tokenizer = target
    written = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = written["model"]["merges"]
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in merges]
    gone = {"".join(pair) for pair in pairs[-FORGOTTEN:]}
    kept = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]) if token not in gone]
    special = {entry["content"] for entry in written["added_tokens"]}
    ordinary = [token for token in kept if token not in special]
    random.Random(0).shuffle(ordinary)
    names = [*(token for token in kept if token in special), *ordinary]
    ids = {name: i for i, name in enumerate(names)}
    written["model"] |= {"vocab": ids, "merges": merges[:-FORGOTTEN]}
    for entry in written["added_tokens"]:
        entry["id"] = ids[entry["content"]]
    file = tmp_path_factory.mktemp("written") / "tokenizer.json"
    file.write_text(json.dumps(written))
    config = copy.deepcopy(model.config)
    config.vocab_size = len(names)
    smaller = type(model)(config)
    smaller.model.load_state_dict({n: w for n, w in model.model.state_dict().items() if "embed" not in n}, strict=False)
    rows = torch.tensor([tokenizer.get_vocab()[name] for name in names])
    with torch.no_grad():
        smaller.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight[rows])
    folder = str(tmp_path_factory.mktemp("other"))
    smaller.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token=tokenizer.eos_token).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tokens", ["intersection", "text"])
def test_edits_come_out_the_same_sooner(target: tuple[Any, Any], other: str, tokens: str) -> None:
    model, tokenizer = target
    drafter = {"name": "draft_model", "model": other, "tokens": tokens, "num_tokens": 5}
    with accelplug.attach(model, drafter=drafter, tokenizer=tokenizer) as session:
        for edit in testbed.prompts()[:6:2]:
            inputs = tokenizer(edit["prompt"], return_tensors="pt")
            arguments = {"max_new_tokens": 96, "do_sample": False}
            plain = type(model).generate(model, **inputs, **arguments)
            assert model.generate(**inputs, **arguments).tolist() == plain.tolist()
        print(session.stats.as_dict())
        assert session.stats.acceptance > 0.4
        assert session.stats.tokens_per_forward > 2
        torch.manual_seed(3)
        drawn = model.generate(**inputs, max_new_tokens=64, do_sample=True, temperature=0.8, top_k=0)
    assert drawn.shape[1] > inputs["input_ids"].shape[1]


@pytest.fixture(scope="module")
def tekken(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small random model with a real tokenizer of 131,072 tokens, which is read once and written in the fast form."""
    mistral_common = pytest.importorskip("mistral_common")
    torch.manual_seed(0)
    raw, folder = (str(tmp_path_factory.mktemp(name)) for name in ("tekken", "fast"))
    shutil.copy(Path(mistral_common.__file__).parent / "data" / "tekken_240911.json", Path(raw) / "tekken.json")
    config = LlamaConfig(
        vocab_size=131072, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    config.save_pretrained(raw)
    tokenizer = AutoTokenizer.from_pretrained(raw)
    assert len(tokenizer) == 131072
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tokens", ["intersection", "text"])
def test_a_vocabulary_of_131072_tokens_drafts_for_one_of_4096(target: tuple[Any, Any], tekken: str, tokens: str) -> None:
    model, tokenizer = target
    drafter = {"name": "draft_model", "model": tekken, "tokens": tokens, "num_tokens": 5}
    inputs = tokenizer(testbed.prompts()[0]["prompt"], return_tensors="pt")
    with accelplug.attach(model, drafter=drafter, tokenizer=tokenizer) as session:
        fast = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert fast.tolist() == model.generate(**inputs, max_new_tokens=16, do_sample=False).tolist()
    assert session.stats.drafted >= 3 * 15, "its text is the target's in other tokens, at every step"


def test_such_a_model_is_refused_as_one_of_the_targets_tokens(target: tuple[Any, Any], tekken: str) -> None:
    model, tokenizer = target
    with pytest.raises(accelplug.HostError, match=r"differ in \d+ tokens; use a second model with the target's tokenizer, or tokens='intersection'"):
        accelplug.attach(model, drafter={"name": "draft_model", "model": tekken}, tokenizer=tokenizer)
