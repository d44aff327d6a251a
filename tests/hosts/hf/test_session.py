"""What a session refuses, what it leaves behind, and what happens when a technique misbehaves."""

from __future__ import annotations

import copy
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import accelplug
from accelplug import HostError, OptionError, PluginError, UnknownTechniqueError
from accelplug.hooks import ROOT, BuildContext, DrafterTraits, Drafts, DraftView, NodeKind, VerifierTraits, VerifyView
from accelplug.hosts.hf import compat
from accelplug.hosts.hf.context import build_context
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import VOCAB

PROMPT = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture
def model(random_models):
    return random_models["llama"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_beams": 2}, "beam search; use greedy search or sampling, with num_beams=1"),
        ({"prompt_lookup_num_tokens": 3}, "generate() got prompt_lookup_num_tokens, which brings its own decoding loop"),
        ({"custom_generate": lambda **_: None}, "generate() got custom_generate, which brings its own decoding loop"),
        ({"synced_gpus": True}, "generate() got synced_gpus"),
        ({"stop_strings": ["a"]}, "stop_strings need the model's tokenizer"),
    ],
)
def test_refused_arguments(model, arguments, sentence):
    with pytest.raises(HostError, match=sentence.replace("(", r"\(").replace(")", r"\)")):
        accelplug.generate(model, PROMPT, drafter="prompt_lookup", max_new_tokens=4, **arguments)
    assert model.generate(PROMPT, max_new_tokens=4, do_sample=False).shape == (1, 9)
    assert "generate" not in vars(model)


def test_greedy_verifier_is_refused_for_sampling_and_exact_without(model):
    with pytest.raises(HostError, match="exact for greedy decoding only and do_sample is on; use verifier 'token_wise'"):
        accelplug.generate(model, PROMPT, drafter="prompt_lookup", verifier="greedy", do_sample=True, max_new_tokens=4)
    plain = model.generate(PROMPT, max_new_tokens=30, do_sample=False)
    fast = accelplug.generate(
        model, PROMPT, drafter=Oracle(plain.tolist(), [(2, 1)], VOCAB), verifier="greedy", max_new_tokens=30, do_sample=False
    )
    assert fast.tolist() == plain.tolist()


@pytest.mark.parametrize(
    ("selection", "error", "sentence"),
    [
        ({"drafter": "prompt_lokup"}, UnknownTechniqueError, "did you mean 'prompt_lookup'"),
        ({"verifier": "nobody"}, UnknownTechniqueError, "installed: .*greedy, .*token_wise"),
        ({"drafter": "prompt_lookup(num_token=3)"}, OptionError, "did you mean 'num_tokens'"),
        ({"drafter": "prompt_lookup(num_tokens=0)"}, OptionError, "it takes between 1 and 128"),
        ({"drafter": "prompt_lookup(min_ngram=4, max_ngram=2)"}, OptionError, "min_ngram=4 exceeds max_ngram=2"),
        ({"drafter": {"name": "prompt_lookup", "num_tokens": 2.5}}, OptionError, "is a float, it takes int"),
        (
            {"drafter": "prompt_lookup", "parameters": {"max_ngram": 3}},
            OptionError,
            "takes no per-request option 'max_ngram'; it takes num_tokens",
        ),
        ({"drafter": "prompt_lookup", "parameters": {"num_tokens": 900}}, OptionError, "it takes between 1 and 128"),
        ({"drafter": Oracle}, PluginError, "is a class; pass an object"),
    ],
)
def test_wrong_selections_are_one_sentence(model, selection, error, sentence):
    with pytest.raises(error, match=sentence.replace("(", r"\(")) as caught:
        accelplug.attach(model, **selection)
    assert "\n" not in str(caught.value)


def test_attaching_twice_is_refused_and_leaving_restores(model):
    with accelplug.attach(model, drafter="prompt_lookup"):
        with pytest.raises(HostError, match="attached to this model already"), accelplug.attach(model):
            pass
        assert "generate" in vars(model)
    assert "generate" not in vars(model)


def test_entering_a_session_again_is_refused_and_leaving_restores(model):
    session = accelplug.attach(model, drafter="prompt_lookup")
    with session:
        with pytest.raises(HostError, match="attached to this model already"), session:
            pass
        assert "generate" in vars(model)
    assert "generate" not in vars(model)


def test_a_session_that_is_never_entered_warns(model):
    with pytest.warns(UserWarning, match="never entered"):
        accelplug.attach(model, drafter="prompt_lookup")


def test_generate_takes_its_arguments_by_position_too(model):
    config = model.generation_config.from_dict({**model.generation_config.to_dict(), "max_new_tokens": 9, "do_sample": False})
    plain = model.generate(PROMPT, config)
    with accelplug.attach(model, drafter="prompt_lookup"):
        assert model.generate(PROMPT, config).tolist() == plain.tolist()
        assert model.generate(PROMPT, config, None, None, None, False, None, streamer := Streamed()).tolist() == plain.tolist()
        assert streamer.tokens == plain[0].tolist()
        with pytest.raises(TypeError, match="takes 11 positional arguments and got 13; name those"):
            model.generate(PROMPT, config, *[None] * 11)
        with pytest.raises(HostError, match="assistant_model"):
            model.generate(PROMPT, config, None, None, None, False, model)


class Streamed:
    """Keeps what it is given, prompt included."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, tokens: torch.Tensor) -> None:
        self.tokens += tokens.flatten().tolist()

    def end(self) -> None: ...


def test_a_second_thread_is_refused(model):
    seen: list[Any] = []

    @dataclass
    class Waits:
        def propose_one(self, tokens, budget):
            if not seen:
                seen.append(None)
                other = threading.Thread(target=attempt)
                other.start()
                other.join()
            return ()

    def attempt():
        try:
            model.generate(PROMPT, max_new_tokens=2)
        except HostError as exc:
            seen.append(str(exc))

    with accelplug.attach(model, drafter=Waits()):
        model.generate(PROMPT, max_new_tokens=4, do_sample=False)
    assert "another thread" in seen[1]


def rows_of_numpys() -> dict[str, Any]:
    return {"kinds": np.array([int(NodeKind.SAMPLED)]), "row_ids": np.array([0]), "rows": np.full((1, VOCAB), 1 / VOCAB)}


@dataclass
class Misbehaves:
    """Drafts well until step 3, then does what it is told."""

    how: str
    steps: int = 0
    traits: ClassVar[DrafterTraits] = DrafterTraits(kinds=frozenset({NodeKind.DELTA, NodeKind.SAMPLED}))

    def propose(self, view: DraftView) -> Any:
        self.steps += 1
        if self.steps < 3:
            return Drafts.chains([[1, 2]])
        return {
            "raises": lambda: 1 / 0,
            "leaves": lambda: sys.exit(0),
            "token too large": lambda: Drafts.chains([[VOCAB]]),
            "negative token": lambda: Drafts.chains([[-1]]),
            "over budget": lambda: Drafts.chains([[1] * 500]),
            "wrong offsets": lambda: Drafts(np.array([0, 3]), np.array([1])),
            "parent after child": lambda: Drafts(np.array([0, 2]), np.array([1, 2]), np.array([1, ROOT])),
            "row missing": lambda: Drafts(np.array([0, 1]), np.array([1]), kinds=np.array([int(NodeKind.SAMPLED)])),
            "rows of numpy's": lambda: Drafts(np.array([0, 1]), np.array([1]), **rows_of_numpys()),
            "not drafts": lambda: [1, 2],
            "undeclared tree": lambda: Drafts(np.array([0, 2]), np.array([1, 2]), np.array([ROOT, ROOT])),
        }[self.how]()


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("token too large", "outside 0 .. 95"),
        ("negative token", "outside 0 .. 95"),
        ("over budget", "look at view.budgets"),
        ("wrong offsets", "returned offsets"),
        ("parent after child", "a parent comes before its children"),
        ("row missing", "without their probability rows"),
        ("rows of numpy's", "probability rows as a ndarray; make them a torch.Tensor"),
        ("not drafts", "return accelplug.hooks.Drafts"),
        ("undeclared tree", "its traits say chain"),
    ],
)
def test_impossible_drafts_name_their_drafter(model, how, sentence):
    with pytest.raises(PluginError, match=f"Misbehaves.*{sentence}"):
        accelplug.generate(model, PROMPT, drafter=Misbehaves(how), max_new_tokens=20, do_sample=False)


def test_an_exception_names_its_plugin_and_the_model_stays_usable(model):
    plain = model.generate(PROMPT, max_new_tokens=20, do_sample=False)
    with accelplug.attach(model, drafter=Misbehaves("raises")):
        with pytest.raises(ZeroDivisionError) as caught:
            model.generate(PROMPT, max_new_tokens=20, do_sample=False)
        assert any("Misbehaves" in note for note in caught.value.__notes__)
    assert model.generate(PROMPT, max_new_tokens=20, do_sample=False).tolist() == plain.tolist()
    fast = accelplug.generate(model, PROMPT, drafter="prompt_lookup", max_new_tokens=20, do_sample=False)
    assert fast.tolist() == plain.tolist()


@dataclass
class Counted:
    """Counts starts and finishes, drafts nothing."""

    calls: list[str] = field(default_factory=list)

    def start(self, slots: Any) -> None:
        self.calls.append(f"start {slots.tolist()}")

    def finish(self, slots: Any) -> None:
        self.calls.append(f"finish {slots.tolist()}")

    def observe(self, view: Any) -> None:
        self.calls.append(f"observe {view.fresh.tolist()} of {view.lengths.tolist()}")

    def propose_one(self, tokens: Any, budget: int) -> list[int]:
        return []


def test_a_plugin_cannot_end_the_process(model):
    with pytest.raises(PluginError, match=r"Misbehaves.* calls sys.exit\(0\) while it is asked"):
        accelplug.generate(model, PROMPT, drafter=Misbehaves("leaves"), max_new_tokens=20, do_sample=False)


@pytest.mark.parametrize("method", ["start", "observe"])
def test_a_drafter_cannot_write_into_the_hosts_rows(model, method):
    @dataclass
    class Writes(Counted):
        def start(self, slots: Any) -> None:
            slots[:] = 0

        def observe(self, view: Any) -> None:
            view.rows[:] = 0

    if method == "observe":
        del Writes.start
    with pytest.raises(ValueError, match="read-only") as caught:
        accelplug.generate(model, PROMPT, drafter=Writes(), max_new_tokens=3, do_sample=False)
    assert any("Writes" in note for note in caught.value.__notes__)


def test_what_drafting_takes_is_a_part_of_what_the_call_takes(model):
    began = time.perf_counter()
    with accelplug.attach(model, drafter="prompt_lookup") as session:
        model.generate(torch.tensor([[5, 6, 7, 5, 6]]), max_new_tokens=10, do_sample=False)
    assert 0 < session.stats.propose_seconds < time.perf_counter() - began


def test_a_request_is_started_observed_and_finished(model):
    drafter = Counted()
    accelplug.generate(model, PROMPT, drafter=drafter, max_new_tokens=3, do_sample=False)
    assert drafter.calls == ["start [0]", "observe [6] of [6]", "observe [1] of [7]", "finish [0]"]


@dataclass(frozen=True)
class TakesAll:
    """A lossy rule: whatever was drafted stays."""

    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless=None)

    def accept(self, view: VerifyView) -> torch.Tensor:
        return torch.ones(len(view.tokens))


class Constant:
    """Always drafts tokens 3 and 4."""

    def propose_one(self, tokens: Any, budget: int) -> list[int]:
        return [3, 4][:budget]


def test_a_lossy_rule_must_be_asked_for_and_is_counted(model):
    with pytest.raises(HostError, match="may change the output; pass allow_lossy=True"):
        accelplug.attach(model, drafter=Constant(), verifier=TakesAll())
    with accelplug.attach(model, drafter=Constant(), verifier=TakesAll(), allow_lossy=True) as session:
        out = model.generate(PROMPT, max_new_tokens=12, do_sample=False)[0, 5:].tolist()
    assert out[1:3] == [3, 4]
    assert session.stats.lossy_accepts > 0


def test_a_masked_token_is_never_accepted(model):
    """Token 4 is forbidden; the rule that takes everything still cannot have it."""
    with accelplug.attach(model, drafter=Constant(), verifier=TakesAll(), allow_lossy=True) as session:
        for do_sample in (False, True):
            out = model.generate(PROMPT, max_new_tokens=30, do_sample=do_sample, bad_words_ids=[[4]])[0, 5:].tolist()
            assert 4 not in out
            assert 3 in out
    assert session.stats.accepted < session.stats.drafted


def test_traits_are_admitted_before_anything_runs(model):
    class AcrossRequests(Constant):
        traits = DrafterTraits(scope="process")

    class Deaf:
        def accept(self, view: Any) -> Any: ...

    class NeedsMore(Constant):
        traits = DrafterTraits(needs=frozenset({"hidden.last", "telepathy"}))

    with pytest.raises(HostError, match="remembers across requests"):
        accelplug.attach(model, drafter=AcrossRequests())
    with pytest.raises(HostError, match="it has no traits"):
        accelplug.attach(model, verifier=Deaf())
    with pytest.raises(HostError, match=r"needs 'hidden.last'.*needs 'telepathy', which is no capability"):
        accelplug.attach(model, drafter=NeedsMore())
    with pytest.raises(PluginError, match="has no propose"):
        accelplug.attach(model, drafter=object())


def test_per_request_parameters_reach_the_drafter(model):
    prompt = torch.tensor([[5, 6, 7, 8, 9, 10] * 4])
    with accelplug.attach(model, drafter="prompt_lookup(num_tokens=6)", parameters={"num_tokens": 1}) as session:
        model.generate(prompt, max_new_tokens=20, do_sample=False)
    assert 0 < session.stats.drafted < session.stats.forwards


def test_a_factory_gets_a_real_build_context(model, tokenizer):
    context = build_context(model, tokenizer)
    assert (context.host, context.vocab_size, context.num_slots, context.api) == ("transformers", VOCAB, None, 1)
    assert context.embeddings().shape == context.output_head().shape == (VOCAB, model.config.hidden_size)
    assert len(context.vocabulary()) == VOCAB
    with pytest.raises(HostError, match="no tokenizer was given"):
        build_context(model, None).vocabulary()

    class Offers:
        @accelplug.hookimpl
        def register_drafters(self, register: Any) -> None:
            register("wants_context", WantsContext)

    @dataclass
    class WantsContext:
        context: BuildContext
        depth: int = 2

        def propose_one(self, tokens: Any, budget: int) -> list[int]:
            return [self.context.vocab_size - 1] * min(self.depth, budget)

    plugins = accelplug.load_registry([Offers()], entry_points=False)
    with accelplug.attach(model, drafter="wants_context(depth=3)", plugins=plugins) as session:
        model.generate(PROMPT, max_new_tokens=10, do_sample=False)
    assert session.stats.drafted > 0
    assert session.stats.techniques[0].distribution.endswith("Offers")


def test_stop_strings_from_every_place(model, tokenizer):
    free = model.generate(PROMPT, max_new_tokens=30, do_sample=False)[0].tolist()
    string = tokenizer.decode(list(dict.fromkeys(free[5:]))[5])
    plain = model.generate(PROMPT, max_new_tokens=30, do_sample=False, stop_strings=[string], tokenizer=tokenizer).tolist()
    assert len(plain[0]) < 35
    drafter = Oracle([free], [(3, 1)], VOCAB)
    config = model.generation_config.from_dict(
        {**model.generation_config.to_dict(), "stop_strings": [string], "max_new_tokens": 30, "do_sample": False}
    )
    with accelplug.attach(model, drafter=drafter, tokenizer=tokenizer):
        assert model.generate(PROMPT, max_new_tokens=30, do_sample=False, stop_strings=string).tolist() == plain
        assert model.generate(PROMPT, generation_config=config).tolist() == plain
        model.generation_config.stop_strings = [string]
        try:
            assert model.generate(PROMPT, max_new_tokens=30, do_sample=False).tolist() == plain
            config.stop_strings = None
            assert model.generate(PROMPT, generation_config=config).tolist() == plain
            config.stop_strings = [string]
            assert model.generate(PROMPT, max_new_tokens=30, do_sample=False, stop_strings=None)[0].tolist() == free
        finally:
            model.generation_config.stop_strings = None
    assert config.stop_strings == [string]


def test_an_untested_release_and_a_moved_seam_are_refused(model, monkeypatch):
    monkeypatch.setattr(compat.ENGINE.__class__, "version", lambda self: "6.1.0")
    with pytest.raises(HostError, match=r"transformers 6.1.0 is outside the tested range >=5.16,<5.25; pip install"):
        accelplug.attach(model)
    monkeypatch.undo()
    monkeypatch.delattr("transformers.generation.utils.GenerationMixin._prefill")
    with pytest.raises(HostError, match=r"seam transformers.generation.utils:GenerationMixin._prefill is gone.*tested range"):
        accelplug.attach(model)


def test_bfloat16_runs_and_reports(random_models):
    model = copy.deepcopy(random_models["qwen3"]).to(torch.bfloat16)  # the rounding stays, and other tests need those weights
    plain = model.generate(PROMPT, max_new_tokens=20, do_sample=False)
    with accelplug.attach(model, drafter=Oracle(plain.tolist(), [(3, 1)], VOCAB)) as session:
        assert model.generate(PROMPT, max_new_tokens=20, do_sample=False).shape == plain.shape
    assert session.stats.accepted > 0
