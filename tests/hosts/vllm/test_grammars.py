"""Grammars behind vLLM's interface: positions that only committed tokens move, forced tokens among drafts, failures that end one request."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

vllm = pytest.importorskip("vllm")

from vllm import SamplingParams  # noqa: E402
from vllm.sampling_params import StructuredOutputsParams  # noqa: E402
from vllm.v1.engine import FinishReason  # noqa: E402
from vllm.v1.structured_output import StructuredOutputManager  # noqa: E402
from vllm.v1.structured_output.request import StructuredOutputRequest  # noqa: E402

from accelplug import AccelplugError, ConstraintError, OptionError  # noqa: E402
from accelplug.hooks import CompileLimits, GrammarSpec, GrammarStatement, Vocabulary  # noqa: E402
from accelplug.hooks.registry import Owner, Technique  # noqa: E402
from accelplug.hooks.spelling import Spec  # noqa: E402
from accelplug.hosts.vllm.forced import FORCED, forced_in, lay  # noqa: E402
from accelplug.hosts.vllm.grammar_core import RunningGrammar, Tally  # noqa: E402
from accelplug.hosts.vllm.grammar_drafts import Forcing, _shaped  # noqa: E402
from accelplug.hosts.vllm.grammar_front import Front, without_grammar  # noqa: E402
from accelplug.hosts.vllm.grammar_request import asked  # noqa: E402
from accelplug.hosts.vllm.scheduler import Grammars  # noqa: E402
from accelplug.hosts.vllm.settings import read_settings  # noqa: E402
from tests.support.grammars import Listing  # noqa: E402

TOKENS = [b"a", b"b", b"c", b"ab", b"bc", b"", b"abc", b"cc"]
EOS, STOP = 8, 5
CHOICES = ("abcab", "abccc", "ab", "abca")


def encode(text: str) -> list[int]:
    """Split text as a tokenizer would that takes the longest token each time."""
    data, found = text.encode(), []
    while data:
        token = max((i for i, token in enumerate(TOKENS) if token and data.startswith(token)), key=lambda i: len(TOKENS[i]))
        found.append(token)
        data = data[len(TOKENS[token]) :]
    return found


VOCABULARY = Vocabulary((*TOKENS, b""), (EOS,), encode)


def running(texts: Sequence[str] = CHOICES, stops: Sequence[int] = (), matcher: Any = None) -> RunningGrammar:
    compiled = Listing().compile(GrammarSpec.of({"choice": list(texts)}), VOCABULARY, CompileLimits())
    if matcher is not None:
        compiled = SimpleNamespace(statement=compiled.statement, check=compiled.check, matcher=lambda: matcher)
    return RunningGrammar(Technique("grammar", "listing", Owner("p", "odd", "1"), Listing(), Listing, "listing"), compiled, VOCABULARY, stops, Tally())


def managing(reasoner: Any = None, num_tokens: int = 4) -> Any:
    """Return vLLM's own manager without a configuration behind it."""
    manager = object.__new__(StructuredOutputManager)
    manager.reasoner_cls, manager.tokenizer, manager.enable_in_reasoning = reasoner, None, False
    manager.vllm_config = SimpleNamespace(
        num_speculative_tokens=num_tokens, scheduler_config=SimpleNamespace(max_num_seqs=2), model_config=SimpleNamespace(is_diffusion=False)
    )
    manager.fill_bitmask_parallel_threshold = 128
    manager._full_mask = torch.tensor(-1, dtype=torch.int32)
    manager._grammar_bitmask = torch.full((2 * (1 + num_tokens), 1), -1, dtype=torch.int32)
    return manager


def requesting(grammar: RunningGrammar, prompt: Sequence[int] = (0,)) -> Any:
    structured = StructuredOutputRequest(StructuredOutputsParams(choice=list(CHOICES)))
    structured.grammar = grammar
    return SimpleNamespace(
        request_id="a", use_structured_output=True, structured_output_request=structured, prompt_token_ids=list(prompt), all_token_ids=list(prompt),
        num_prompt_tokens=len(prompt), num_tokens=len(prompt), max_tokens=20, is_finished=lambda: False, is_prefill_chunk=False, spec_token_ids=[],
        sampling_params=SamplingParams(),
    )  # fmt: skip


def mask_of(grammar: RunningGrammar, written: Sequence[int]) -> int:
    """Return the mask behind some tokens, from a matcher that never saw others."""
    matcher, row = grammar.compiled.matcher(), torch.zeros(1, dtype=torch.int32)
    assert matcher.accept(list(written)) == len(written)
    matcher.fill(row)
    return int(row)


@settings(deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 8), max_size=4), st.integers(0, 4), st.integers(0, 8)), max_size=6))
def test_only_committed_tokens_move_a_grammar(rounds: list[tuple[list[int], int, int]]) -> None:
    manager, grammar = managing(), running()
    request = requesting(grammar)
    written: list[int] = []
    for drafts, keep, choice in rounds:
        legal = manager.validate_tokens(request, drafts)
        own, laid = _shaped(grammar, legal, 4)
        assert grammar.compiled.matcher().validate([*written, *laid]) == len(written) + len(laid), "an illegal draft would be verified"
        assert laid[:own] == drafts[:own]
        rows = manager.grammar_bitmask({"a": request}, ["a"], {"a": laid})[:, 0].tolist()
        ended = [EOS in laid[:i] for i in range(len(laid) + 1)]
        assert rows == [-1 if over else mask_of(grammar, [*written, *laid[:i]]) for i, over in enumerate(ended)]
        accepted = laid[:keep]
        if EOS not in accepted:  # the model adds a token of its own, which the mask allows
            allowed = [token for token in range(9) if rows[len(accepted)] >> token & 1]
            accepted.append(allowed[choice % len(allowed)])
        assert manager.accept_tokens(request, accepted)
        written += accepted
        assert grammar.tokens == written
        if EOS in written:
            assert grammar.is_terminated()
            assert grammar.accept_tokens("a", [0]), "what follows an end is no concern of the grammar's"
            return


def test_every_stop_token_is_legal_where_the_text_may_end() -> None:
    grammar = running(stops=[STOP, EOS])
    rows = torch.zeros(1, 1, dtype=torch.int32)
    grammar.fill_bitmask(rows, 0)
    assert not int(rows[0, 0]) & (1 << STOP | 1 << EOS)
    assert grammar.accept_tokens("a", [3])
    grammar.fill_bitmask(rows, 0)
    assert int(rows[0, 0]) >> STOP & int(rows[0, 0]) >> EOS & 1
    assert grammar.validate_tokens([2, STOP, 0]) == [2], "abc is no choice"
    assert grammar.validate_tokens([STOP, 0]) == [STOP]
    assert grammar.accept_tokens("a", [STOP])
    assert grammar.is_terminated()
    assert grammar.problem() is None


@pytest.mark.parametrize(
    ("drafts", "room", "expected"),
    [
        ([], 4, (0, [6])),  # "abc" is in three of four choices, yet "ab" is one: only "ab" is forced
        ([], 0, (0, [])),
        ([0, 1], 4, (0, [6])),  # another split than the tokenizer's gives way to what is forced
        ([6], 4, (1, [6])),
        ([6, 2], 4, (2, [6, 2, 2, EOS])),
        ([6, 2], 3, (2, [6, 2, 2])),
        ([6, 7, EOS], 4, (3, [6, 7, EOS])),
    ],
)
def test_forced_tokens_among_drafts(drafts: list[int], room: int, expected: tuple[int, list[int]]) -> None:
    grammar = running(("abcab", "abccc", "abca"))
    assert _shaped(grammar, drafts, room) == expected
    assert grammar.tokens == []
    assert mask_of(grammar, []) == _filled(grammar)


def _filled(grammar: RunningGrammar) -> int:
    rows = torch.zeros(1, 1, dtype=torch.int32)
    grammar.fill_bitmask(rows, 0)
    return int(rows[0, 0])


def scheduling(request: Any, manager: Any) -> Any:
    return SimpleNamespace(structured_output_manager=manager, requests={"a": request}, max_model_len=50, num_spec_tokens=4)


def step(drafts: list[int]) -> Any:
    return SimpleNamespace(num_scheduled_tokens={"a": 1 + len(drafts)}, scheduled_spec_decode_tokens={"a": drafts} if drafts else {})


def test_forced_drafts_are_told_and_counted() -> None:
    request = requesting(running())
    forcing = Forcing(scheduling(request, managing()), 4)
    forcing.extend({"a": []})
    assert request.spec_token_ids == [3]
    output = step([3])
    forcing.tell(output)
    assert forced_in(output) == {"a": 0}
    forcing.count(output, SimpleNamespace(sampled_token_ids=[[3, 2]], req_id_to_index={"a": 0}))
    tally = request.structured_output_request.grammar.tally
    assert (tally.drafts, tally.drafted, tally.accepted) == (1, 1, 1)
    forcing.cut({"a": 3, "gone": 2}, {"a": [3]})
    assert tally.cut == 2
    assert request.structured_output_request.grammar.drafts == {"drafts": 1, "drafted": 1, "accepted": 1, "cut": 2}


def test_what_is_forced_behind_a_drafters_own_draft_is_counted_alone() -> None:
    request = requesting(running(("abcab",)))
    forcing = Forcing(scheduling(request, managing()), 4)
    forcing.extend({"a": [6]})
    assert request.spec_token_ids == [6, 3, EOS], "the first is the drafter's as well"
    output = step([6, 3, EOS])
    forcing.tell(output)
    assert forced_in(output) == {"a": 1}
    forcing.count(output, SimpleNamespace(sampled_token_ids=[[6, 3, 0]], req_id_to_index={"a": 0}))
    tally = request.structured_output_request.grammar.tally
    assert (tally.drafts, tally.drafted, tally.accepted) == (1, 2, 1)


@pytest.mark.parametrize("drafts", [[], [-1, -1, -1, -1], [4]])
def test_drafts_that_were_dropped_are_not_told(drafts: list[int]) -> None:
    """As where a request is preempted and comes back with padding."""
    request = requesting(running())
    forcing = Forcing(scheduling(request, managing()), 4)
    forcing.extend({"a": []})
    output = step(drafts)
    forcing.tell(output)
    assert not hasattr(output, FORCED)
    later = step([3])
    forcing.tell(later)
    assert not hasattr(later, FORCED)


@pytest.mark.parametrize(("extra_args", "max_tokens", "drafted"), [(None, 20, 1), ({"accelplug.num_tokens": 0}, 20, 0), (None, 1, 0)])
def test_forced_drafts_keep_to_the_requests_limits(extra_args: dict[str, Any] | None, max_tokens: int, drafted: int) -> None:
    request = requesting(running())
    request.sampling_params, request.max_tokens = SamplingParams(extra_args=extra_args), max_tokens
    Forcing(scheduling(request, managing()), 4).extend({"a": []})
    assert len(request.spec_token_ids) == drafted


def test_forced_drafts_are_laid_where_v2_reads_them() -> None:
    states = SimpleNamespace(draft_tokens=torch.full((3, 4), 7), req_id_to_index={"a": 2, "b": 0})
    output = SimpleNamespace(scheduled_spec_decode_tokens={"a": [1, 2, 3], "b": [4]})
    lay(states, output)
    assert (states.draft_tokens == 7).all()
    setattr(output, FORCED, {"a": 1})
    lay(states, output)
    assert states.draft_tokens.tolist() == [[7] * 4, [7] * 4, [1, 2, 3, 0]]


class Thinks:
    """Reasons until token 7."""

    def __init__(self, tokenizer: Any) -> None:
        del tokenizer

    def is_reasoning_end(self, tokens: Sequence[int]) -> bool:
        return 7 in tokens

    def is_reasoning_end_streaming(self, tokens: Sequence[int], delta: Sequence[int]) -> bool:
        del tokens
        return 7 in delta


def test_a_grammar_begins_where_reasoning_ends_inside_drafts() -> None:
    manager, grammar = managing(Thinks), running()
    request = requesting(grammar)
    forcing = Forcing(scheduling(request, manager), 4)
    assert manager.validate_tokens(request, [2, 2, 2]) == [2, 2, 2], "nothing is cut from reasoning"
    forcing.extend({"a": [2, 2]})
    assert request.spec_token_ids == [], "nothing is forced while a model reasons"
    assert manager.validate_tokens(request, [2, 7, 3, 1]) == [2, 7, 3], "behind the end drafts are cut"
    rows = manager.grammar_bitmask({"a": request}, ["a"], {"a": [2, 7, 3]})[:, 0].tolist()
    assert rows == [-1, -1, mask_of(grammar, []), mask_of(grammar, [3])]
    request.all_token_ids += [2, 7, 3]
    assert manager.accept_tokens(request, [2, 7, 3])
    assert grammar.tokens == [3]
    forcing.extend({"a": []})
    assert request.spec_token_ids == list(grammar.forced([])[:4])


class Broken:
    """A matcher that raises in one method."""

    def __init__(self, where: str) -> None:
        self.inner = Listing().compile(GrammarSpec.of({"choice": list(CHOICES)}), VOCABULARY, CompileLimits()).matcher()
        self.where = where

    def __getattr__(self, name: str) -> Any:
        if name == self.where:
            raise RuntimeError("fell silent")
        return getattr(self.inner, name)


@pytest.mark.parametrize("where", ["fill", "validate", "accept", "forced", "rollback"])
def test_a_failing_engine_ends_its_request_alone(where: str, caplog: pytest.LogCaptureFixture) -> None:
    manager, broken, sound = managing(), running(matcher=Broken(where)), running()
    requests = {"a": requesting(broken), "b": requesting(sound)}
    drafts = manager.validate_tokens(requests["a"], [3])
    laid = {"a": _shaped(broken, drafts, 4)[1] or drafts, "b": [3]}
    rows = manager.grammar_bitmask(requests, ["a", "b"], laid)[:, 0].tolist()
    assert rows[-2:] == [mask_of(sound, []), mask_of(sound, [3])]
    assert not manager.accept_tokens(requests["a"], [3]), "vLLM ends the request upon this"
    assert manager.accept_tokens(requests["b"], [3])
    assert broken.tally.failures == 1
    assert "fell silent" in str(broken.failed)


def test_behind_a_failure_every_token_is_legal() -> None:
    """Not one row of zeros, of which nothing could be sampled before the request ends."""
    broken, rows = running(matcher=Broken("fill")), torch.full((2, 1), 7, dtype=torch.int32)
    broken.fill_bitmask(rows, 1)
    assert rows.tolist() == [[7], [-1]]


MODEL = SimpleNamespace(
    skip_tokenizer_init=False, is_diffusion=False, dtype=torch.float32, max_model_len=50, get_vocab_size=lambda: 9, get_hidden_size=lambda: 4,
    try_get_generation_config=dict, hf_text_config=SimpleNamespace(eos_token_id=EOS),
)  # fmt: skip
CONFIG = SimpleNamespace(
    model_config=MODEL, num_speculative_tokens=0, scheduler_config=SimpleNamespace(max_num_seqs=2), additional_config={"accelplug": {"grammar": "auto"}},
    structured_outputs_config=SimpleNamespace(disable_any_whitespace=False), parallel_config=SimpleNamespace(data_parallel_index=0),
)  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "extra", "kind", "options"),
    [
        ({"json": {"type": "string"}}, {"whitespace": "compact", "strict": 1}, "json_schema", {"whitespace": "compact", "strict": True}),
        ({"json": '{"type": "string"}', "disable_any_whitespace": True}, {}, "json_schema", {"whitespace": "compact"}),
        ({"json_object": True}, {"order": "any", "format": "annotate"}, "json_schema", {"order": "any", "format": "annotate"}),
        ({"regex": "a+"}, {"strict": False}, "regex", {"strict": False}),
        ({"choice": ["a", "b"]}, {"grammar": "xgrammar"}, "choice", {}),
        ({"grammar": 'root ::= "a"'}, {}, "ebnf", {}),
        ({"grammar": 'start: "a"'}, {}, "lark", {}),
        ({"structural_tag": '{"type": "structural_tag", "format": {"type": "any_text"}}'}, {}, "structural_tag", {}),
    ],
)
def test_what_a_request_asks_for(wanted: dict[str, Any], extra: dict[str, Any], kind: str, options: dict[str, Any]) -> None:
    found = asked(Spec("auto"), CONFIG, SamplingParams(structured_outputs=StructuredOutputsParams(**wanted)), extra)
    assert found is not None
    assert (found.engine, found.spec.kind) == (extra.get("grammar"), kind)
    assert {name: getattr(found.spec, name) for name in options} == options


@pytest.mark.parametrize("more", [[{"regex": "a"}, {"choice": ["a"]}], '[{"regex": "a"}, {"choice": ["a"]}]'])
def test_a_request_names_further_grammars(more: object) -> None:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(json={"type": "string"}))
    found = asked(Spec("auto"), CONFIG, params, {"all_of": more, "whitespace": "compact", "grammar": "xgrammar"})
    assert found is not None
    assert found.engine == "xgrammar"
    first, *rest = found.spec.parts()
    assert (first.kind, first.whitespace) == ("json_schema", "compact")
    assert rest == [GrammarSpec("regex", "a"), GrammarSpec("choice", '["a"]')]


@pytest.mark.parametrize(
    ("wanted", "extra", "message"),
    [
        (None, {"all_of": [{"regex": "a"}]}, "the request sets all_of and has no grammar to go by"),
        ({"regex": "a"}, {"all_of": {"regex": "a"}}, "all_of is a list of grammars"),
        ({"regex": "a"}, {"all_of": []}, "all_of is a list of grammars"),
        ({"regex": "a"}, {"all_of": "{"}, "the all_of is no JSON"),
        ({"regex": "a"}, {"all_of": ["a"]}, "a grammar is written as"),
        ({"regex": "a"}, {"grammar": "vllm", "all_of": [{"regex": "a"}]}, "all_of mean nothing to vLLM's own backend"),
        (None, {"statement": True}, "the request sets statement and has no grammar to go by"),
        ({"regex": "a"}, {"grammar": "vllm", "statement": True}, "statement mean nothing to vLLM's own backend"),
        (None, {"whitespace": "compact"}, "the request sets whitespace and has no grammar to go by"),
        ({"regex": "a"}, {"whitespace": "compact"}, "the request sets whitespace, for the JSON of a schema, and has a regex"),
        ({"json": {}}, {"grammar": "vllm", "strict": True}, "mean nothing to vLLM's own backend"),
        ({"json": {}, "whitespace_pattern": " "}, {}, "structured_outputs.whitespace_pattern is for vLLM's own backends"),
        ({"json": {}, "disable_additional_properties": True}, {}, "is for vLLM's own backends"),
        ({"json": "{"}, {}, "the json_schema is no JSON"),
    ],
)
def test_what_a_request_may_not_ask_for(wanted: dict[str, Any] | None, extra: dict[str, Any], message: str) -> None:
    params = SamplingParams(structured_outputs=wanted and StructuredOutputsParams(**wanted))
    with pytest.raises((OptionError, ConstraintError)) as refused:
        asked(Spec("auto"), CONFIG, params, extra)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_requests_that_are_vllms_own() -> None:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a"))
    assert asked(Spec("vllm"), CONFIG, params, {}) is None
    assert asked(Spec("auto"), CONFIG, params, {"grammar": "vllm"}) is None
    assert asked(Spec("vllm"), CONFIG, params, {"grammar": "auto"}) is not None
    assert asked(Spec("auto"), CONFIG, SamplingParams(), {}) is None


def fronting() -> Any:
    front = Front(CONFIG, None)
    front.bytes_only = Vocabulary((*(bytes([byte]) for byte in range(256)), b""), (256,))
    return SimpleNamespace(vllm_config=CONFIG, accelplug_grammars=front)


def test_vllm_checks_the_rest_of_a_request() -> None:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(json={"type": "integer"}), temperature=0.5)
    with without_grammar(fronting(), params) as rest:
        assert (rest.structured_outputs, rest.temperature) == (None, 0.5)
        rest.prompt_logprob_token_ids = "in vLLM's own form"
    assert params.structured_outputs is not None
    assert params.prompt_logprob_token_ids == "in vLLM's own form"
    params.extra_args = {"accelplug.grammar": "vllm"}
    with without_grammar(fronting(), params) as rest:
        assert rest is params


@pytest.mark.parametrize(
    ("wanted", "extra_args", "message"),
    [
        ({"json": {"allOf": [{"type": "string"}, {"type": "integer"}]}}, None, "no value"),
        ({"json": {"type": "array", "uniqueItems": True}}, {"accelplug.strict": True}, "uniqueItems"),
        ({"regex": "a("}, None, "regex"),
        ({"json": {"$ref": "https://example.org/schema"}}, None, "https://example.org/schema"),
        ({"regex": "a+"}, {"accelplug.all_of": '[{"choice": ["b"]}]'}, r"no text satisfies both the regex 'a\+' and the choice"),
        ({"json": {}}, {"accelplug.grammar": "nobodys"}, "no grammar named 'nobodys'"),
        ({"json": {}}, {"accelplug.grammar": "auto(x=1)"}, "sets none of its options"),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_the_front_end(wanted: dict[str, Any], extra_args: dict[str, Any] | None, message: str) -> None:
    pytest.importorskip("llguidance")
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**wanted), extra_args=extra_args)
    for _ in range(2):  # the second time from memory
        with pytest.raises(AccelplugError, match=message) as refused, without_grammar(fronting(), params):
            pass
        assert "\n" not in str(refused.value)


class Gate:
    """An engine that compiles once a gate is open."""

    def __init__(self) -> None:
        self.open, self.began, self.compiled = threading.Event(), threading.Event(), 0
        self.limits: list[CompileLimits] = []

    def compile(self, spec: GrammarSpec, vocabulary: Vocabulary, limits: CompileLimits) -> Any:
        self.limits.append(limits)
        self.began.set()
        assert self.open.wait(30)
        self.compiled += 1
        found = Listing().compile(spec, vocabulary, limits)
        if spec.value()[0] == "checked":
            return SimpleNamespace(statement=GrammarStatement("x", (), ("choice",)), check=lambda text: f"{text!r} is no good", matcher=found.matcher)
        return found


@pytest.fixture
def compiling() -> Any:
    """Grammars of an engine core with one compiling thread, and the gate before it."""
    manager = SimpleNamespace(
        executor=ThreadPoolExecutor(1), tokenizer=None, _grammar_bitmask=None, _use_async_grammar_compilation=True, grammar_init=lambda request: None
    )
    grammars, gate = Grammars(CONFIG, manager, read_settings({"grammar": "auto"})), Gate()
    engine = grammars.engines.engine(None)
    grammars.engines._built = dict.fromkeys(grammars.engines._built, Technique("grammar", "auto", engine.owner, gate, Gate, "auto"))
    grammars.vocabulary = VOCABULARY
    yield grammars, gate
    gate.open.set()
    manager.executor.shutdown()


def arriving(name: str, *choices: str) -> Any:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(choice=list(choices)))
    found = SimpleNamespace(request_id=name, sampling_params=params, stop_reason=None, finish_reason=FinishReason.STOP)
    found.structured_output_request = StructuredOutputRequest.from_sampling_params(params)
    found.get_finished_reason = lambda: found.finish_reason
    return found


def test_compiling_is_cancelled_with_its_request(compiling: tuple[Grammars, Gate]) -> None:
    grammars, gate = compiling
    first, second, third = arriving("first", "ab"), arriving("second", "bc"), arriving("third", "cc")
    for request in (first, second, third):
        grammars.begin(request)
    assert gate.began.wait(30)
    grammars.finish(first)  # compiles already: what comes of it nobody waits for
    grammars.finish(second)
    gate.open.set()
    until(lambda: third.structured_output_request.is_grammar_ready)
    assert isinstance(third.structured_output_request.grammar, RunningGrammar)
    assert gate.compiled == 2, "the second was never begun"
    assert [limits.cancelled.is_set() for limits in gate.limits] == [True, False], "the first was told that nobody waits for it"
    grammars.finish(third)
    assert not grammars._compiling


def test_a_grammar_that_fails_late_ends_its_request(compiling: tuple[Grammars, Gate]) -> None:
    grammars, gate = compiling
    gate.open.set()
    failing, sound = arriving("failing", "ab"), arriving("sound", "bc")
    failing.sampling_params.structured_outputs.choice, failing.sampling_params.structured_outputs.regex = None, "a"
    for request in (failing, sound):
        grammars.begin(request)
        until(lambda: request.structured_output_request.is_grammar_ready)  # noqa: B023
    assert isinstance(failing.structured_output_request.grammar, ConstraintError)
    assert isinstance(sound.structured_output_request.grammar, RunningGrammar)


def test_an_answer_states_what_became_of_its_grammar_where_its_request_asks(compiling: tuple[Grammars, Gate]) -> None:
    grammars, gate = compiling
    gate.open.set()
    checked, whole, cut, silent = arriving("checked", "checked", "ab"), arriving("whole", "ab"), arriving("cut", "checked", "ab"), arriving("silent", "ab")
    cut.finish_reason = FinishReason.LENGTH
    whole.stop_reason = EOS
    for request, asks, tokens in ((checked, True, [3, EOS]), (whole, 1, [3, EOS]), (cut, True, [3]), (silent, False, [3, EOS])):
        request.sampling_params.extra_args = {"accelplug": {"statement": asks}}
        grammars.begin(request)
        until(lambda: request.structured_output_request.is_grammar_ready)  # noqa: B023
        grammar = request.structured_output_request.grammar
        assert grammar.accept_tokens("", tokens)
        grammar.count("drafted", 2)
        grammar.count("cut", 3)
        grammars.finish(request)
    drafts = {"cut_drafts": 3, "forced_tokens": 2, "accepted_tokens": 0}
    left = {"technique": "auto (accelplug 0.1.0)", "engine": "x", "enforced": [], "checked": ["choice"], **drafts}
    masked = {**left, "engine": "listing 1", "enforced": ["choice"], "checked": []}
    assert json.loads(checked.stop_reason) == {"accelplug": {**left, "problem": "'ab' is no good"}, "stop_reason": None}
    assert json.loads(whole.stop_reason) == {"accelplug": {**masked, "problem": None}, "stop_reason": EOS}
    assert json.loads(cut.stop_reason) == {"accelplug": {**left, "problem": None}, "stop_reason": None}
    assert silent.stop_reason is None
    assert grammars.status()["auto"]["cut"] == 12, "of all together"


def test_a_violation_is_told_to_the_client(compiling: tuple[Grammars, Gate]) -> None:
    grammars, gate = compiling
    gate.open.set()
    checked, whole, cut, unbegun = arriving("checked", "checked", "ab"), arriving("whole", "ab"), arriving("cut", "checked", "ab"), arriving("unbegun", "ab")
    cut.finish_reason = FinishReason.LENGTH
    for request, tokens in ((checked, [3, EOS]), (whole, [3, EOS]), (cut, [3]), (unbegun, [])):
        grammars.begin(request)
        until(lambda: request.structured_output_request.is_grammar_ready)  # noqa: B023
        assert request.structured_output_request.grammar.accept_tokens("", tokens)
        grammars.finish(request)
    assert (checked.stop_reason, whole.stop_reason, cut.stop_reason) == ("accelplug: 'ab' is no good", None, None)
    assert unbegun.stop_reason == "accelplug: the answer ended before its grammar began, since the model never ended its reasoning"
    assert grammars.status()["auto"] | {"seconds": 0} == {
        "compiled": 4, "drafts": 0, "drafted": 0, "accepted": 0, "cut": 0, "answers": 3, "violations": 2, "failures": 0, "seconds": 0,
    }  # fmt: skip


def until(true: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(3000):
        if true():
            return
        waiting.wait(0.01)
    raise AssertionError("it never came")


def test_masks_have_a_row_for_every_draft(compiling: tuple[Grammars, Gate]) -> None:
    rows = compiling[0].manager._grammar_bitmask
    assert rows.shape == (2, 1)
    assert np.all(rows.numpy() == -1)
