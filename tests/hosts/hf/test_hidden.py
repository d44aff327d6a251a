"""Hidden states for drafters: each committed token's once, as a plain pass over the text gives them, whatever was drafted beside it."""

from __future__ import annotations

import collections
import copy
import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache, StaticCache

import accelplug
from accelplug import HostError
from accelplug.hooks import CommitView, DrafterTraits
from accelplug.hosts.hf.compat import cache_name
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import VOCAB
from tests.hosts.hf.test_batches import padded, unpadded
from tests.hosts.hf.test_encoder_decoder import MAKERS as ENCODER_DECODERS
from tests.hosts.hf.test_recurrent import falcon_h1, lfm2, mamba2

PATTERN = [(3, 1), (0, 2), (5, 0), (0, 0), (2, 4)]
PROMPTS = {
    "one": [[5, 6, 7, 8, 9]],
    "equal": [[5, 6, 7, 8, 9], [3, 4, 5, 6, 7], [9, 8, 7, 6, 5]],
    "padded": [[5, 6, 7, 8, 9, 10, 11], [3, 4, 5], [9, 8, 7, 6, 5]],
}
GREEDY: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
EVENTS: collections.Counter[str] = collections.Counter()


@pytest.fixture(scope="module")
def random_models(random_models: dict[str, Any]) -> dict[str, Any]:
    """Copies: a model of which hidden states were asked keeps hooks of Transformers', with which it cannot be pickled."""
    return copy.deepcopy(random_models)


@dataclass
class Reader(Oracle):
    """Drafts what is known, and keeps the hidden states it is shown, per slot."""

    layers: frozenset[int] = frozenset({0, -1})
    kept: dict[int, dict[int, torch.Tensor]] = field(init=False, default_factory=lambda: collections.defaultdict(dict))
    texts: dict[int, list[int]] = field(init=False, default_factory=dict)

    @property
    def traits(self) -> DrafterTraits:
        return DrafterTraits(shape="tree" if self.width > 1 else "chain", hidden_layers=self.layers)

    def observe(self, view: CommitView) -> None:
        EVENTS["rows that accept differently"] += len(set(view.accepted.tolist())) > 1
        EVENTS["drafts rejected"] += bool((view.accepted == 0).any())
        for i, (slot, states) in enumerate(zip(view.slots.tolist(), view.hidden, strict=True)):
            assert set(states) == self.layers
            for layer, rows in states.items():
                before = self.kept[slot].get(layer)
                self.kept[slot][layer] = rows if before is None else torch.cat([before, rows])
                assert len(self.kept[slot][layer]) == view.lengths[i] - 1
            self.texts[slot] = view.history(i).tolist()


def check(model: Any, reader: Reader) -> None:
    """Compare with a pass over each text alone."""
    for slot, text in reader.texts.items():
        with torch.no_grad():
            every = model(input_ids=torch.tensor([text[:-1]]), output_hidden_states=True).hidden_states
        for layer, states in reader.kept[slot].items():
            expected = every[layer + 1 if layer >= 0 else layer][0]
            assert (states - expected).norm() <= 2e-4 * expected.norm(), (slot, layer)


def run(model: Any, prompts: list[list[int]], width: int = 1, layers: frozenset[int] = frozenset({0, -1}), batches: str = "auto", **arguments: Any) -> Reader:
    inputs = padded(prompts)
    given = {**GREEDY, **arguments}
    plain = model.generate(**inputs, **copy.deepcopy(given)).tolist()
    reader = Reader(unpadded(plain, inputs), PATTERN, model.config.vocab_size, width, layers=layers)
    with accelplug.attach(model, drafter=reader, batches=batches) as session:
        assert model.generate(**inputs, **given).tolist() == plain
    assert 0 < session.stats.accepted < session.stats.drafted
    assert set(reader.texts) == set(range(len(prompts)))
    check(model, reader)
    return reader


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3", "mistral"])
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize(("which", "batches"), [("one", "auto"), *itertools.product(["equal", "padded"], ["auto", "lockstep", "ragged"])])
def test_they_are_those_of_a_plain_pass(random_models, name, which, width, batches):
    run(random_models[name], PROMPTS[which], width, batches=batches)


def test_an_end_of_one_row_leaves_the_others_theirs(random_models):
    model, inputs = random_models["llama"], padded(PROMPTS["padded"])
    free = model.generate(**inputs, **GREEDY).tolist()
    ends = [row[inputs["input_ids"].shape[1] :] for row in free]
    eos = next(token for token in ends[0][5:20] if token not in ends[0][:5] + ends[1][:20] + ends[2][:20])
    for batches in ("ragged", "lockstep"):
        reader = run(model, PROMPTS["padded"], batches=batches, eos_token_id=eos)
        assert len(reader.texts[0]) < len(reader.texts[2]) + 2


@pytest.mark.parametrize("make", [mamba2, lfm2, falcon_h1])
@pytest.mark.parametrize("which", ["one", "equal"])
def test_layers_that_read_again_show_each_token_once(make, which):
    torch.manual_seed(3)
    model = make().eval()
    for weights in model.parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=0.3)
    run(model, PROMPTS[which])


def test_static_caches_and_hidden_states_for_the_caller(random_models):
    model = random_models["llama"]
    run(model, PROMPTS["one"], cache_implementation="static", disable_compile=True)
    for watched in ({}, {"return_dict_in_generate": True}):
        inputs = padded(PROMPTS["one"])
        plain = model.generate(**inputs, **GREEDY).tolist()
        reader = Reader(plain, PATTERN, VOCAB, layers=frozenset({1}))
        with accelplug.attach(model, drafter=reader):
            output = model.generate(**inputs, **GREEDY, output_hidden_states=True, **watched)
        check(model, reader)
        if watched:
            assert output.sequences.tolist() == plain
            assert [len(step) for step in output.hidden_states] == [3] * 40  # the caller has all layers, and the embeddings
    events = {name: EVENTS[name] for name in ("rows that accept differently", "drafts rejected")}
    assert all(events.values()), events


def test_nothing_is_asked_for_drafters_that_do_not(random_models):
    model, asked = random_models["llama"], []
    inputs = padded(PROMPTS["one"])
    plain = model.generate(**inputs, **GREEDY).tolist()
    hook = model.register_forward_pre_hook(lambda _module, _args, given: asked.append(given.get("output_hidden_states")), with_kwargs=True)
    with accelplug.attach(model, drafter=Oracle(plain, PATTERN, VOCAB)):
        model.generate(**inputs, **GREEDY)
    assert not any(asked)
    with accelplug.attach(model, drafter=Reader(plain, PATTERN, VOCAB, layers=frozenset({1}))):
        model.generate(**inputs, **GREEDY)
    hook.remove()
    named = [given for given in asked if given]
    assert named
    assert {len(given) for given in named} == {1}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"use_cache": False}, "Reader.* reads the target's hidden states, which a model without a cache makes anew with each token; leave use_cache on"),
        ({"prefill_chunk_size": 3}, "reads the hidden states of the whole prompt, which this call reads in parts, behind a cache or as embeddings"),
        ({"cache": True}, "leave out prefill_chunk_size, the cache, inputs_embeds and prompt tuning"),
        ({"inputs_embeds": True}, "leave out prefill_chunk_size, the cache, inputs_embeds and prompt tuning"),
    ],
)
def test_calls_that_do_not_show_the_whole_prompt_are_refused(random_models, arguments, sentence):
    model, ids = random_models["llama"], torch.tensor(PROMPTS["one"])
    if "cache" in arguments:
        cache = DynamicCache(config=model.config)
        model(input_ids=ids[:, :3], **{cache_name(): cache})
        arguments = {cache_name(): cache}
    given = {"inputs_embeds": model.get_input_embeddings()(ids)} if "inputs_embeds" in arguments else {"input_ids": ids, **arguments}
    with accelplug.attach(model, drafter=Reader(PROMPTS["one"], PATTERN, VOCAB)), pytest.raises(HostError, match=sentence):
        model.generate(**given, **GREEDY)


def test_compiled_passes_are_refused(random_models, monkeypatch):
    model = random_models["llama"]
    monkeypatch.setattr(type(model), "_valid_auto_compile_criteria", lambda *_: True)
    cache = StaticCache(config=model.config, max_cache_len=64)
    with accelplug.attach(model, drafter=Reader(PROMPTS["one"], PATTERN, VOCAB)), pytest.raises(HostError, match="pass disable_compile=True"):
        model.generate(torch.tensor(PROMPTS["one"]), **GREEDY, **{cache_name(): cache})


def test_layers_that_there_are_not_are_refused(random_models):
    with pytest.raises(HostError, match=r"Reader.* reads the hidden states of layer 2, and LlamaForCausalLM has the layers 0 to 1; name others"):
        accelplug.attach(random_models["llama"], drafter=Reader([], PATTERN, VOCAB, layers=frozenset({2})))
    with pytest.raises(accelplug.AccelplugError, match=r"DrafterTraits.hidden_layers is 'last'; it takes a set such as \{-1\}"):
        DrafterTraits(hidden_layers="last")


def test_encoder_decoder_models_are_refused():
    model = ENCODER_DECODERS["t5"][0]()
    with pytest.raises(HostError, match=r"reads the target's hidden states, and .* is an encoder-decoder model; use another drafter"):
        accelplug.attach(model, drafter=Reader([], PATTERN, VOCAB))


def test_states_are_views_of_what_the_pass_returned(random_models):
    """A chain's states are slices; only what lies apart is copied."""
    from accelplug.hosts.hf.hidden import _taken

    states = torch.arange(12.0).reshape(6, 2)
    assert _taken(states, 1, range(3)).data_ptr() == states[1].data_ptr()
    assert _taken(states, 1, [0, 2, 3]).tolist() == states[[1, 3, 4]].tolist()
    assert np.array_equal(_taken(states, 0, [5]), states[5:])
