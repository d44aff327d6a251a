"""Grammars in continuous batching: every packed request is what plain `generate()` writes for it alone, under the mask of its own grammar."""

from __future__ import annotations

import collections
import copy
import random
from typing import Any

import pytest
import torch
from grammars import Listing
from transformers import ContinuousBatchingConfig, GenerationConfig

import accelplug
from accelplug import ConstraintError, HostError
from accelplug.hosts.hf import packed

EOS = 1
NAMES = ["red", "green", "greenish", "grey", "blue!"]
LONG = ["abcdefghijklmnopqrstuvwxyz", "abcdefghijklm0123456789!?", "zyx"]
CHOICES = [NAMES, None, LONG, ["a", "aa", "aaa"], LONG[:2], NAMES[1:3]]
GREEDY = {"do_sample": False, "eos_token_id": EOS, "pad_token_id": 0, "max_new_tokens": 32}


@pytest.fixture
def model(random_models):
    found = copy.deepcopy(random_models["llama"])  # an engine changes a model's attention
    found.generation_config.eos_token_id = EOS
    return found


@pytest.fixture
def grammars(model, tokenizer):
    engine = Listing()
    return [None if one is None else accelplug.grammar(model, {"choice": one}, tokenizer=tokenizer, engine=engine) for one in CHOICES]


class Steps:
    """What the masks' processor was shown in every step, as (request, answer, request's state)."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.counts: collections.Counter[str] = collections.Counter()

    def note(self, states: list[Any]) -> None:
        before = set(self.seen[-1]) if self.seen else set()
        now = {state.request_id: tuple(packed.answer_of(state)) for state in states}
        self.seen.append(now)
        self.counts["several grammars in one step"] += (
            len({id(state.logit_processor_kwargs.get("grammar")) for state in states} - {id(None)}) > 1
        )
        self.counts["governed beside free"] += len({"grammar" in state.logit_processor_kwargs for state in states}) == 2
        self.counts["joined others under way"] += bool(set(now) - before and set(now) & before)
        self.counts["left others under way"] += bool(before - set(now) and set(now) & before)
        governed = [state for state in states if "grammar" in state.logit_processor_kwargs]
        self.counts["put back with a part of the answer"] += sum(bool(state._true_initial_tokens) for state in governed)
        self.counts["forked"] += sum("__child#" in state.request_id for state in states)


@pytest.fixture
def steps(monkeypatch):
    found = Steps()
    plain = packed.PackedGrammars.prepare_tensor_args

    def noting(self, requests_with_new_token):
        found.note([request.state for request in requests_with_new_token])
        return plain(self, requests_with_new_token)

    monkeypatch.setattr(packed.PackedGrammars, "prepare_tensor_args", noting)
    return found


def prompts(count: int, seed: int, shared: int = 0) -> list[list[int]]:
    drawn = random.Random(seed)
    beginning = [drawn.randrange(2, 96) for _ in range(shared)]
    return [beginning + [drawn.randrange(2, 96) for _ in range(drawn.randrange(1, 24))] for _ in range(count)]


def alone(model: Any, prompt: list[int], grammar: Any) -> list[int]:
    """What plain `generate()` answers to one prompt under one mask."""
    processors = [] if grammar is None else [grammar.after(len(prompt))]
    output = model.generate(torch.tensor([prompt]), logits_processor=processors, **GREEDY)
    return output[0, len(prompt) :].tolist()


PAGE = "page_size" if hasattr(ContinuousBatchingConfig, "page_size") else "block_size"  # until 5.17
CONFIGS = {
    "one step at a time": {"max_batch_tokens": 64, "max_requests_per_batch": 16, "num_blocks": 64, PAGE: 16},
    "prompts in pieces": {"max_batch_tokens": 8, "max_requests_per_batch": 5, "num_blocks": 64, PAGE: 16},
    "no room": {"max_batch_tokens": 32, "max_requests_per_batch": 16, "num_blocks": 24, PAGE: 4},
    "prefill first": {"max_batch_tokens": 12, "max_requests_per_batch": 6, "num_blocks": 40, PAGE: 8, "scheduler_type": "prefill_first"},
}
ROOM = CONFIGS["one step at a time"]  # by default the cache takes most of the machine's memory
EVENTS: collections.Counter[str] = collections.Counter()


def batched(model: Any, asked: list[list[int]], **arguments: Any) -> list[Any]:
    """Return the outputs of a batch in a small cache."""
    given = {"generation_config": GenerationConfig(**GREEDY), "continuous_batching_config": ContinuousBatchingConfig(**ROOM), **arguments}
    return list(model.generate_batch(asked, **given).values())


@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_packed_request_is_what_plain_generate_writes_alone(model, grammars, steps, name, shared):
    asked = prompts(14, seed=len(name), shared=shared)
    governing = [grammars[at % len(grammars)] for at in range(len(asked))]
    expected = [alone(model, prompt, grammar) for prompt, grammar in zip(asked, governing, strict=True)]
    with accelplug.attach(model, grammar=governing) as session:
        outputs = batched(model, asked, continuous_batching_config=ContinuousBatchingConfig(**CONFIGS[name]))
    assert [output.generated_tokens for output in outputs] == expected
    assert [output.prompt_ids for output in outputs] == asked
    assert {output.problem for output in outputs} == {None}
    assert session.checks == [None] * len(asked)
    assert all((answer[-1] == EOS) for answer, grammar in zip(expected, governing, strict=True) if grammar is not None)
    assert model.generate_batch.__self__ is model  # the session is gone
    EVENTS.update(steps.counts)


def test_hard_events_happened():
    print(dict(EVENTS))
    wanted = (
        "several grammars in one step",
        "governed beside free",
        "joined others under way",
        "left others under way",
        "put back with a part of the answer",
    )
    assert {name: EVENTS[name] for name in wanted if EVENTS[name] < 10} == {}


def test_sampled_requests_never_leave_their_grammar(model, grammars, steps):
    """Forked ones too; a request without a grammar writes what it likes."""
    config = GenerationConfig(**{**GREEDY, "do_sample": True}, temperature=1.7, top_p=0.9, top_k=0, num_return_sequences=3)
    governing = [grammars[at % 2] for at in range(8)]
    with accelplug.attach(model, grammar=governing) as session:
        room = ContinuousBatchingConfig(**ROOM, seed=3, per_request_processors=True)
        outputs = batched(model, prompts(8, seed=1), generation_config=config, continuous_batching_config=room)
    repeats = len(outputs) // 8
    assert repeats in {1, 3}  # 5.16 forks and returns the first alone
    texts = collections.defaultdict(set)
    for at, output in enumerate(outputs):
        texts[at // repeats % 2].add(tuple(output.generated_tokens))
        assert output.problem is None
        assert output.error is None
    written = {written_by(grammars[0], answer) for answer in texts[0]}
    assert written <= set(NAMES)
    assert len(written) > 1
    assert not {written_by(grammars[0], answer) for answer in texts[1]} & set(NAMES)
    assert session.checks == [None] * len(outputs)
    assert steps.counts["forked"] > 10


def written_by(grammar: Any, answer: tuple[int, ...]) -> str:
    """Return an answer's text, without its end."""
    return b"".join(grammar.vocabulary.tokens[token] for token in answer if token != EOS).decode()


@pytest.fixture
def managed(model):
    """A function that hands out a running manager, which is stopped in the end."""
    started = []

    def start(**settings: Any) -> Any:
        config = ContinuousBatchingConfig(**{**ROOM, **settings})
        started.append(model.init_continuous_batching(GenerationConfig(**GREEDY), config))
        started[0].start()
        return started[0]

    yield start
    for manager in started:
        manager.stop(block=True)


def results(manager: Any, *wanted: str) -> dict[str, Any]:
    """Return the last outputs of these requests."""
    found: dict[str, Any] = {}
    while not set(wanted) <= set(found):
        output = manager.get_result(timeout=60)
        assert output is not None, "the engine stopped"
        if output.is_finished():
            found[output.request_id] = output
    return found


def test_a_request_says_its_own_grammar_and_streams(model, tokenizer, grammars, managed):
    expected = [alone(model, [5, 6, 7], grammar) for grammar in (grammars[0], grammars[2], None)]
    with accelplug.attach(model, grammar=grammars[0], tokenizer=tokenizer):
        manager = managed()
        manager.add_request([5, 6, 7], "the session's", streaming=True)
        manager.add_request([5, 6, 7], "its own", grammar=grammars[2])
        manager.add_request([5, 6, 7], "free", grammar=None)
        manager.add_request([5, 6, 7], "short", max_new_tokens=2)
        found = results(manager, "the session's", "its own", "free", "short")
    assert [found[name].generated_tokens for name in ("the session's", "its own", "free")] == expected
    assert "cut off after 2 tokens" in found["short"].problem
    assert {name for name, output in found.items() if output.problem is not None or output.error is not None} == {"short"}


class Breaking(Listing):
    """Compiles choices into matchers that raise where the text has three tokens."""

    def compile(self, spec, vocabulary, limits):
        made = super().compile(spec, vocabulary, limits)
        begin = made.matcher

        def matcher():
            found = begin()
            fill = found.fill

            def raising(row):
                if len(found.tokens) == 3:
                    raise ZeroDivisionError("on purpose")
                fill(row)

            found.fill = raising
            return found

        object.__setattr__(made, "matcher", matcher)
        return made


def test_an_engine_that_raises_ends_its_own_request_and_no_other(model, tokenizer, grammars):
    broken = accelplug.grammar(model, {"choice": NAMES[1:]}, tokenizer=tokenizer, engine=Breaking())
    asked = prompts(3, seed=4)
    with accelplug.attach(model, tokenizer=tokenizer):
        outputs = batched(model, asked, grammar=[grammars[0], broken, None])
    assert [output.generated_tokens for output in outputs[::2]] == [alone(model, asked[0], grammars[0]), alone(model, asked[2], None)]
    assert len(outputs[1].generated_tokens) == 4
    assert "raised ZeroDivisionError: on purpose while it masked this request" in outputs[1].error
    assert [output.error for output in outputs[::2]] == [None, None]


def test_a_request_for_which_nothing_is_left_says_so(model, tokenizer, grammars):
    only = accelplug.grammar(model, {"choice": ["aaa"]}, tokenizer=tokenizer, engine=Listing())
    config = GenerationConfig(**GREEDY, suppress_tokens=tokenizer.encode("a"))
    room = ContinuousBatchingConfig(drop_unsupported_processors=False, **ROOM)
    with accelplug.attach(model, grammar=[only, grammars[0]]) as session:
        outputs = batched(model, [[5, 6], [7]], generation_config=config, continuous_batching_config=room)
    assert outputs[0].error.startswith("no token is left after ''")
    assert written_by(grammars[0], outputs[1].generated_tokens) in NAMES
    assert session.checks == [outputs[0].error, None]


def test_what_a_cancelled_request_had_is_forgotten(model, grammars, managed):
    with accelplug.attach(model, grammar=grammars[2]):
        manager = managed()
        processor = next(one for one in manager.logit_processor.logits_processor if isinstance(one, packed.PackedGrammars))
        manager.add_request([5, 6, 7], "first", max_new_tokens=10_000, streaming=True)
        assert manager.get_result(timeout=60) is not None
        manager.cancel_request("first")
        manager.add_request([5, 6, 7], "second")
        results(manager, "second")
        assert not processor.governed
        assert not processor.cancelled


REFUSED = {
    "more grammars than prompts": (
        lambda model, grammars: batched(model, [[5]]),
        "2 entries, one for each prompt, and continuous batching got 1",
    ),
    "no grammar named for a request": (lambda model, grammars: model.init_continuous_batching().add_request([5]), "say add_request"),
    "asynchronous batching": (
        lambda model, grammars: batched(
            model, [[5], [6]], continuous_batching_config=ContinuousBatchingConfig(**ROOM, use_async_batching=True)
        ),
        "use_async_batching prepares a step before",
    ),
    "another end": (
        lambda model, grammars: batched(model, [[5], [6]], generation_config=GenerationConfig(eos_token_id=7)),
        r"EOS tokens \[1\] .* stops at \[7\]",
    ),
    "another end of one request": (
        lambda model, grammars: model.init_continuous_batching().add_request([5], grammar=grammars[0], eos_token_id=[1, 7]),
        r"add_request\(\) stops at \[1, 7\]",
    ),
    "no end": (lambda model, grammars: batched(model, [[5], [6]], generation_config=GenerationConfig(eos_token_id=None)), r"stops at none"),
    "paged": (lambda model, grammars: model.generate(torch.tensor([[5]]), cache_implementation="paged"), "call model.generate_batch"),
    "a grammar that says nothing": (lambda model, grammars: batched(model, [[5]], grammar={"choices": ["a"]}), "a grammar is written as"),
}


@pytest.mark.parametrize("asked", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused(model, grammars, tokenizer, asked):
    ask, message = asked
    with accelplug.attach(model, grammar=grammars[:2], tokenizer=tokenizer), pytest.raises(accelplug.AccelplugError, match=message):
        ask(model, grammars)
    assert not {"init_continuous_batching", "generate_batch", "_get_logits_processor"} & set(vars(model))


def test_a_manager_that_outlives_a_session_is_not_taken_over(model, grammars):
    free, masked = (alone(model, [5, 6], grammar) for grammar in (None, grammars[0]))
    batched(model, [[5, 6]], persistent_manager=True)
    with accelplug.attach(model, grammar=grammars[0]):
        with pytest.raises(HostError, match="kept a continuous batching manager from before"):
            batched(model, [[5, 6]])
        model.destroy_cached_continuous_batching_manager()
        for _ in range(2):  # the second time it is the one that was kept
            (output,) = batched(model, [[5, 6]], persistent_manager=True)
            assert output.generated_tokens == masked
    (output,) = batched(model, [[5, 6]])
    assert output.generated_tokens == free


def test_a_model_that_makes_its_processors_itself_is_refused(model, grammars, monkeypatch):
    monkeypatch.setattr(
        type(model), "_get_logits_processor", lambda self, generation_config, logits_processor=None: type(logits_processor)()
    )
    with accelplug.attach(model, grammar=grammars[0]), pytest.raises(HostError, match="leaves out the grammar's"):
        batched(model, [[5]])


def test_an_engine_that_was_rebuilt_is_refused_by_name(model, grammars, monkeypatch):
    from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager

    plain = ContinuousBatchingManager.__init__

    def rebuilt(self, *args, **arguments):
        plain(self, *args, **arguments)
        del self.output_router

    monkeypatch.setattr(ContinuousBatchingManager, "__init__", rebuilt)
    with accelplug.attach(model, grammar=grammars[0]), pytest.raises(HostError, match=r"was rebuilt .*output_router.* need transformers"):
        batched(model, [[5]])


def test_a_real_engine(model, tokenizer):
    pytest.importorskip("llguidance")
    wanted = {"regex": "[a-f]{3,5}!"}
    with accelplug.attach(model, grammar=wanted, tokenizer=tokenizer) as session:
        outputs = batched(model, prompts(5, seed=2), grammar=[wanted, {"choice": ["x", "yy"]}] * 2 + [None])
        with pytest.raises(ConstraintError, match="regex"):
            batched(model, [[5]], grammar={"regex": "a("})
    answers = [written_by(session.grammar, output.generated_tokens) for output in outputs]
    assert all(answer[-1] == "!" and set(answer[:-1]) <= set("abcdef") for answer in answers[:4:2])
    assert set(answers[1:4:2]) <= {"x", "yy"}
