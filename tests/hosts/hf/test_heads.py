"""MTP and DFlash as drafters: plain ``generate()``'s output, with the candidates of Transformers' own loop."""

from __future__ import annotations

import collections
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.generation.candidate_generator import DFlashTokenCandidateGenerator, MTPCandidateGenerator
from transformers.modeling_layers import MtpModel

import accelplug
from accelplug import AccelplugError
from accelplug.hooks import CommitView, Drafts, DraftView
from accelplug.hosts.hf.context import build_context
from accelplug.spec.transformers_candidates import TransformersCandidates
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.heads import BLOCK, VOCAB, inkling, with_dflash, with_mtp
from tests.hosts.hf.test_batches import padded, unpadded

PROMPTS = [[5, 6, 7, 8, 9], [3], [40, 41, 42] * 5, [7, 7, 7], [60, 2, 33, 12]]
GREEDY: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
KINDS = ("mtp of 1", "mtp of 3", "dflash")
HARD = ("a draft accepted whole", "a draft accepted in part", "a draft rejected", "an end inside a draft", "rows that accept differently")
EVENTS: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in KINDS}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, tuple[Any, dict[str, Any], dict[str, Any]]]:
    """By kind and whether its head is rigged: the target, the drafter's options, and what asks Transformers for the same."""
    found = {}
    for rigged in (True, False):
        for depth in (1, 3):
            model = with_mtp(tmp_path_factory.mktemp("mtp"), depth, rigged=rigged)
            found[f"mtp of {depth}", rigged] = model, {"generator": "mtp"}, {"use_mtp": True}
        model, head = with_dflash(rigged=rigged)
        found["dflash", rigged] = model, {"generator": "dflash", "model": head}, {"assistant_model": head, "speculation_type": "dflash"}
    return found


class Counted(TransformersCandidates):
    """Counts what becomes of its drafts."""

    def propose(self, view: DraftView) -> Drafts:
        drafts = super().propose(view)
        self.last = [(view.history(i).tolist(), drafts.tokens[slice(*drafts.offsets[i : i + 2])].tolist()) for i in range(len(view.slots))]
        return drafts

    def observe(self, view: CommitView) -> None:
        counts = [len(drafted) for _, drafted in getattr(self, "last", ())]
        for count, accepted in zip(counts, view.accepted.tolist(), strict=False):
            if count:
                self.events["a draft accepted whole" if accepted >= count else "a draft accepted in part" if accepted else "a draft rejected"] += 1
        self.events["rows that accept differently"] += len(set(view.accepted.tolist())) > 1
        super().observe(view)


def drafter(model: Any, kind: str, options: dict[str, Any]) -> Counted:
    counted = Counted(context=build_context(model, None), **options)
    counted.events = EVENTS[kind]
    return counted


@contextmanager
def spied(model: Any) -> Iterator[dict[tuple[int, ...], list[int]]]:
    """Keep what Transformers' generators draft, by the text that it follows."""
    drafted: dict[tuple[int, ...], list[int]] = {}
    kinds = (MTPCandidateGenerator, DFlashTokenCandidateGenerator)
    own = [kind.get_candidates for kind in kinds]

    def watching(get: Any) -> Any:
        def get_candidates(self: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            ids, logits = get(self, input_ids, *args, **kwargs)
            if ids.shape[1] > input_ids.shape[1]:
                drafted[tuple(input_ids[0].tolist())] = ids[0, input_ids.shape[1] :].tolist()
            return ids, logits

        return get_candidates

    try:
        for kind, get in zip(kinds, own, strict=True):
            kind.get_candidates = watching(get)
        yield drafted
    finally:
        for kind, get in zip(kinds, own, strict=True):
            kind.get_candidates = get


def check_fresh(model: Any, own: dict[str, Any], drafted: dict[tuple[int, ...], list[int]], every: int) -> None:
    """Compare with what Transformers drafts behind the same text given as a prompt, for one draft in so many."""
    for text in sorted(drafted, key=len)[::every]:
        with spied(model) as expected:
            ids = torch.tensor([text[:-1]])
            model.generate(ids, attention_mask=torch.ones_like(ids), **{**GREEDY, "max_new_tokens": 12}, **own)
        assert drafted[text] == expected[text]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_output_and_candidates_are_transformers_own(made, kind, prompt):
    """Of the rigged heads the output is compared, with an end of text inside it too; of the random ones the candidates."""
    ids = torch.tensor([prompt])
    for rigged in (True, False):
        model, options, own = made[kind, rigged]
        plain = model.generate(ids, **GREEDY).tolist()
        with spied(model) as ours, accelplug.attach(model, drafter=drafter(model, kind, options)):
            assert model.generate(ids, **GREEDY).tolist() == plain
        if kind == "mtp of 3" and len(prompt) < 3:  # Transformers fails, accelplug drafts nothing until there is more text
            assert min(map(len, ours)) == 4
            check_fresh(model, own, ours, every=3)
        else:
            with spied(model) as theirs:
                assert model.generate(ids, **GREEDY, **own).tolist() == plain
            assert 0 <= len(theirs) - len(ours) <= 1  # accelplug drafts nothing where nothing fits any more
            assert {text: theirs.get(text) for text in ours} == ours
        if rigged:
            _check_ends(model, kind, options, ids, plain[0])


def _check_ends(model: Any, kind: str, options: dict[str, Any], ids: torch.Tensor, plain: list[int]) -> None:
    for eos in dict.fromkeys(plain[ids.shape[1] + 2 :: 1 if kind == "dflash" else 6]):
        counted = drafter(model, kind, options)
        expected = model.generate(ids, **GREEDY, eos_token_id=eos).tolist()
        with accelplug.attach(model, drafter=counted):
            output = model.generate(ids, **GREEDY, eos_token_id=eos).tolist()
        assert output == expected
        for text, drafted in getattr(counted, "last", ()):
            end = output[0][len(text) :]
            EVENTS[kind]["an end inside a draft"] += end == drafted[: len(end)] and end[-1] == eos and len(end) < len(drafted) + (kind == "mtp of 1")


@pytest.mark.parametrize(("name", "depth"), [("deepseek", 2), ("inkling", 1)])
def test_other_architectures_have_mtp_layers(name, depth, tmp_path, monkeypatch):
    """Latent attention; and convolutions beside attention, in rows that advance together."""
    if name == "inkling":
        pytest.importorskip("transformers.models.inkling.modeling_inkling")
        model, layers = inkling(depth)
        monkeypatch.setattr(MtpModel, "from_pretrained", lambda *_, **__: layers)
    else:
        model = with_mtp(tmp_path, depth, rigged=False, name=name)
    for prompt in (PROMPTS[0], PROMPTS[2]):
        ids = torch.tensor([prompt])
        plain = model.generate(ids, **GREEDY).tolist()
        with spied(model) as theirs:
            goes_right = model.generate(ids, **GREEDY, use_mtp=True).tolist() == plain
        assert goes_right or (name == "inkling" and transformers.__version__.startswith("5.16."))
        with spied(model) as ours, accelplug.attach(model, drafter="transformers_candidates(generator='mtp')"):
            assert model.generate(ids, **GREEDY).tolist() == plain
        assert len(ours) > 30
        assert {text: theirs.get(text) for text in ours} == ours or not goes_right
    inputs = padded(PROMPTS)
    plain = model.generate(**inputs, **GREEDY).tolist()
    with spied(model) as ours, accelplug.attach(model, drafter="transformers_candidates(generator='mtp')") as session:
        assert model.generate(**inputs, **GREEDY).tolist() == plain
    assert session.stats.batches == ("lockstep" if name == "inkling" else "ragged")
    check_fresh(model, {"use_mtp": True}, ours, every=20)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batches", ["ragged", "lockstep"])
@pytest.mark.parametrize("rigged", [True, False])
def test_each_row_of_a_batch_has_its_own_candidates(made, kind, batches, rigged):
    model, options, own = made[kind, rigged]
    inputs = padded(PROMPTS)
    for extra in ({}, {"eos_token_id": 61})[rigged:]:
        plain = model.generate(**inputs, **GREEDY, **extra).tolist()
        with spied(model) as ours, accelplug.attach(model, drafter=drafter(model, kind, options), batches=batches) as session:
            assert model.generate(**inputs, **GREEDY, **extra).tolist() == plain
        assert session.stats.drafted > 0
        texts = unpadded(plain, inputs)
        assert all(any(row[: len(text)] == list(text) for row in texts) for text in ours)
        check_fresh(model, own, ours, every=20)


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_of_others_are_told_too(made, kind):
    """Where another drafter's tokens are accepted, a head's caches hold nothing of what it had guessed in their place."""
    model, options, own = made[kind, False]
    inputs = padded(PROMPTS)
    plain = model.generate(**inputs, **GREEDY).tolist()
    known = Oracle(unpadded(plain, inputs), [(4, 0), (0, 1), (2, 1), (7, 0), (1, 1)], VOCAB)
    fused = {"name": "fusion", "sources": (drafter(model, kind, options), known)}
    with spied(model) as ours, accelplug.attach(model, drafter=fused) as session:
        assert model.generate(**inputs, **GREEDY).tolist() == plain
    assert session.stats.accepted > 60
    check_fresh(model, own, ours, every=2 if kind == "mtp of 3" else 8)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_adaptive_and_grammars_take_their_part(made, kind, tokenizer, monkeypatch):
    """Both leave out drafts, and a grammar puts others in their place."""
    model, options, own = made[kind, False]
    ids = torch.tensor(PROMPTS[:1])
    plain = model.generate(ids, **GREEDY).tolist()
    with spied(model) as ours, accelplug.attach(model, drafter={"name": "adaptive", "source": drafter(model, kind, options)}):
        assert model.generate(ids, **GREEDY).tolist() == plain
    check_fresh(model, own, ours, every=3)
    grammar = {"regex": "(ABCDEFGH[a-m]+){3}XYZ"}
    outputs = []
    with monkeypatch.context() as patch:
        patch.setattr(model.generation_config, "eos_token_id", 1)
        for choice in (None, drafter(model, kind, options)):
            with spied(model) as ours, accelplug.attach(model, drafter=choice, tokenizer=tokenizer, grammar=grammar) as session:
                outputs.append(model.generate(ids, **GREEDY).tolist())
    assert outputs[0] == outputs[1]
    assert session.stats.accepted > 6
    make = drafter(model, kind, options)._make
    for text, drafted in list(ours.items())[::3]:  # not the model's own texts, so that Transformers would not go on with them
        fresh, ids = make(ids), torch.tensor([text])
        every = model(ids[:, :-1], output_hidden_states=True).hidden_states
        fresh.read(np.array(text), {layer: every[layer + (layer >= 0)][0] for layer in make.layers})
        assert fresh.get_candidates(ids)[0][0, len(text) :].tolist() == drafted


@pytest.mark.parametrize("kind", KINDS)
def test_steps_without_drafts_are_told_later(made, kind):
    """The budget of a step may be 0: what it read is told with the next draft."""
    model, options, own = made[kind, False]

    class Pausing(Counted):
        def propose(self, view: DraftView) -> Drafts:
            self.steps = getattr(self, "steps", 0) + 1
            if self.steps % 4:
                view.budgets[:] = np.minimum(view.budgets, self.steps % 3)
            return super().propose(view)

    pausing = Pausing(context=build_context(model, None), **options)
    pausing.events = collections.Counter()
    ids = torch.tensor(PROMPTS[:1])
    plain = model.generate(ids, **GREEDY).tolist()
    with spied(model) as ours, accelplug.attach(model, drafter=pausing):
        assert model.generate(ids, **GREEDY).tolist() == plain
    assert len(ours) > 20
    check_fresh(model, own, ours, every=3)


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_draws_plain_generates_tokens(made, kind):
    model, options, _ = made[kind, True]
    arguments = {"max_new_tokens": 60, "do_sample": True, "top_k": 12, "pad_token_id": 0, "temperature": 0.7}
    with accelplug.attach(model, drafter={"name": "transformers_candidates", **options}) as session:
        for seed in range(3):
            outputs = []
            for generate in (model.generate, type(model).generate.__get__(model)):
                torch.manual_seed(seed)
                outputs.append(generate(torch.tensor(PROMPTS[:1]), **arguments).tolist())
            assert outputs[0] == outputs[1]
    assert 0 < session.stats.accepted < session.stats.drafted


def test_requests_share_weights_and_no_cache(made):
    for kind in KINDS:
        model, options, _ = made[kind, True]
        make = drafter(model, kind, options)._make
        ids = torch.tensor([[5]])
        first, second = make(ids).generator, make(ids).generator
        parts = [name for name, part in vars(first).items() if isinstance(part, torch.nn.Module)]
        caches = [name for name in vars(first) if "cache" in name]
        assert parts
        assert caches
        assert all(getattr(first, name) is getattr(second, name) for name in parts)
        assert all(getattr(first, name) is not getattr(second, name) for name in caches)


def test_a_draft_model_is_loaded_from_a_folder_and_cut_to_what_is_asked(made, tmp_path):
    model, options, _ = made["dflash", True]
    options["model"].save_pretrained(tmp_path)
    ids = torch.tensor([[40, 41, 42, 90, 90]])
    plain = model.generate(ids, **GREEDY).tolist()
    for count in (2, BLOCK):
        with accelplug.attach(model, drafter=f"transformers_candidates(generator='dflash', model='{tmp_path}', num_tokens={count})") as session:
            assert model.generate(ids, **GREEDY).tolist() == plain
        assert session.stats.accepted > 0
        assert session.stats.drafted <= min(count, BLOCK - 1) * session.stats.forwards


def test_refusals(made, random_models, tmp_path):
    model, head = made["dflash", True][0], made["dflash", True][1]["model"]
    wide, _ = with_dflash()
    wide.config.hidden_size = 64
    whole = made["mtp of 1", True][0]
    bare, emptied = (type(whole)(copy.deepcopy(whole.config)) for _ in range(2))
    bare.config.name_or_path, emptied.config.name_or_path = "", str(tmp_path)
    cases = [
        (random_models["llama"], {"generator": "mtp"}, "Transformers makes no 'mtp' generator for LlamaForCausalLM: Could not find `num_mtp_layers`"),
        (model, {"generator": "dflash"}, "generator='dflash' is none; choose .*'dflash' with model=..."),
        (model, {"generator": "dflash", "model": model}, "drafts with a model whose config has target_layer_ids, got LlamaForCausalLM"),
        (model, {"generator": "dflash", "model": str(tmp_path / "none")}, "the DFlash drafter '.*none' cannot be loaded: .*; give a folder"),
        (wide, {"generator": "dflash", "model": head}, "Model has hidden size 48 and mask token 95, and LlamaForCausalLM has hidden size 64"),
        (bare, {"generator": "mtp"}, r"this Glm4MoeForCausalLM was not loaded from one; load it by from_pretrained\(\)"),
        (emptied, {"generator": "mtp"}, "Transformers makes no 'mtp' generator for Glm4MoeForCausalLM: .*; use another drafter"),
    ]
    for target, options, sentence in cases:
        with pytest.raises(AccelplugError, match=sentence):
            accelplug.attach(target, drafter={"name": "transformers_candidates", **options})


def test_every_hard_event_happened():
    missing = {kind: [event for event in HARD if not seen[event]] for kind, seen in EVENTS.items()}
    missing["mtp of 1"].remove("a draft accepted in part")  # of one token
    assert not any(missing.values()), missing
