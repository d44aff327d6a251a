"""What requests set for themselves: read in both spellings, checked before they are queued, handed to techniques."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from accelplug import HostError, OptionError, option
from accelplug.hooks import Drafts, DraftView
from accelplug.hooks.registry import Owner, Technique
from accelplug.hosts.vllm.board import FOLDER, SHARED, write_refusal
from accelplug.hosts.vllm.chains import Batch, Chains
from accelplug.hosts.vllm.requests import RequestOptions, check_params, concerned, offers_under, read_request, refuse_no_numbers
from accelplug.hosts.vllm.session import Session
from accelplug.hosts.vllm.settings import read_settings

LOSSY = {"drafter": "input_copy(num_tokens=6)", "verifier": "typical", "allow_lossy": True}


def ask(settings: dict[str, Any] | None, extra_args: dict[str, Any] | None) -> None:
    config = SimpleNamespace(additional_config=None if settings is None else {"accelplug": settings})
    check_params(config, SimpleNamespace(extra_args=extra_args))


def test_both_spellings() -> None:
    assert read_request({"accelplug": {"num_tokens": 2}, "accelplug.epsilon": 0.5, "other": 1}) == {"num_tokens": 2, "epsilon": 0.5}
    assert read_request(None) == {}


def test_offers() -> None:
    assert set(offers_under(read_settings(LOSSY))) == {"num_tokens", "epsilon", "delta", "span_start", "span_end"}
    assert set(offers_under(read_settings({"verifier": "block"}))) == set(), "vLLM's own drafter cannot be told how much to draft"
    grammar = {"grammar", "strict", "format", "whitespace", "order", "all_of", "statement"}
    assert set(offers_under(read_settings({"grammar": "auto"}))) == grammar
    assert set(offers_under(read_settings({"grammar": "auto", "num_tokens": 4}))) == {*grammar, "num_tokens"}


def test_an_engine_that_serves_without_accelplug_refuses_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SHARED, raising=False)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    for settings in (LOSSY, {**LOSSY, "on_refused": "serve"}):
        with pytest.raises(OptionError, match="no per-request option 'made_up'"):
            ask(settings, {"accelplug.made_up": 1})
    write_refusal("its drafts are padded")  # as the worker does, once the model is loaded
    ask({**LOSSY, "on_refused": "serve"}, {"accelplug.made_up": 1})
    with pytest.raises(OptionError, match="no per-request option 'made_up'"):
        ask(LOSSY, {"accelplug.made_up": 1})


@pytest.mark.parametrize(
    ("extra_args", "labels"),
    [
        ({"accelplug.num_tokens": 99}, ("drafter", "input_copy", "option")),
        ({"accelplug.span_end": "x"}, ("drafter", "input_copy", "option")),
        ({"accelplug.num_tokens": 2, "accelplug.epsilon": 2.0}, ("verifier", "typical", "option")),
        ({"accelplug.strict": 7}, ("grammar", "auto", "option")),
        ({"accelplug.made_up": 1}, ("", "", "option")),
        ({"accelplug": 3}, ("", "", "option")),
        (None, ("grammar", "auto", "grammar")),
        ({"accelplug.grammar": "accelplug:xgrammar"}, ("grammar", "xgrammar", "grammar")),
        ({"accelplug.grammar": "made_up"}, ("grammar", "", "grammar")),
    ],
)
def test_a_refusal_is_counted_under_what_is_configured(extra_args: dict[str, Any] | None, labels: tuple[str, str, str]) -> None:
    config = SimpleNamespace(additional_config={"accelplug": {**LOSSY, "grammar": "auto"}})
    assert concerned(config, SimpleNamespace(extra_args=extra_args)) == labels


@pytest.mark.parametrize(("verifier", "allow_lossy", "refused"), [("greedy", False, True), ("greedy", True, False), ("block", False, False)])
def test_a_rule_for_greedy_decoding_refuses_sampled_requests(verifier: str, allow_lossy: bool, refused: bool) -> None:
    settings = {"drafter": "suffix", "verifier": verifier, "allow_lossy": allow_lossy}
    config = SimpleNamespace(additional_config={"accelplug": settings})
    greedy, sampled = (SimpleNamespace(sampling_type=SimpleNamespace(name=name), temperature=0.7, extra_args=None) for name in ("GREEDY", "RANDOM_SEED"))
    check_params(config, greedy)
    check_params(config, SimpleNamespace())  # PoolingParams
    if not refused:
        check_params(config, sampled)
        return
    with pytest.raises(OptionError, match=r"is exact for greedy decoding only and the request samples at temperature 0\.7; set temperature 0"):
        check_params(config, sampled)
    assert concerned(config, sampled) == ("verifier", "greedy", "sampling")


@pytest.mark.parametrize(
    ("extra_args", "read"),
    [
        (None, {}),
        ({}, {}),
        ({"other": 1}, {}),
        ({"accelplug": {}}, {}),
        ({"accelplug.num_tokens": 0}, {"num_tokens": 0}),
        ({"accelplug": {"num_tokens": 6, "delta": 1, "span_end": None}}, {"num_tokens": 6, "delta": 1, "span_end": None}),
    ],
)
def test_allowed(extra_args: dict[str, Any] | None, read: dict[str, Any]) -> None:
    ask(LOSSY, extra_args)
    assert RequestOptions().begin("a", SimpleNamespace(extra_args=extra_args)) == read


@pytest.mark.parametrize(
    ("extra_args", "message"),
    [
        ({"accelplug.num_tokens": 7}, "a request's draft length: num_tokens=7 is out of range, it takes between 0 and 6"),
        ({"accelplug.num_tokens": True}, "num_tokens=True is a bool, it takes int"),
        ({"accelplug.epsilon": 1.5}, "epsilon=1.5 is out of range"),
        ({"accelplug.epsilon": "high"}, "it takes float"),
        ({"accelplug.epsilom": 0.1}, "did you mean 'epsilon'? it takes delta, epsilon, num_tokens, span_end, span_start"),
        ({"accelplug.max_ngram": 3}, "accelplug takes no per-request option 'max_ngram'"),
        ({"accelplug": 3}, "a request's options are a mapping such as {'num_tokens': 4}, over HTTP names like accelplug.num_tokens, got 3"),
        ({"accelplug": {3: 1}}, "no per-request option 3; it takes delta"),
    ],
)
def test_refused(extra_args: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as refused:
        ask(LOSSY, extra_args)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_engine_without_settings_refuses_nothing() -> None:
    nonsense = {"accelplug.nonsense": 1}
    with pytest.raises(OptionError, match="no per-request option 'nonsense'"):
        ask(LOSSY, nonsense)
    ask(None, nonsense)


def test_values_only_where_somebody_sets_one() -> None:
    options, defaults = RequestOptions(), {"epsilon": 0.09, "delta": 0.3}
    options.begin("a", SimpleNamespace(extra_args={"accelplug.epsilon": 0.5}))
    options.begin("b", SimpleNamespace(extra_args=None))
    options.begin("pooled", None)
    assert options.values(defaults, ["b"]) == {}
    assert options.values(defaults, ["b", "a"]) == {"epsilon": [0.09, 0.5]}
    options.end({"a", "unknown"})
    assert len(options) == 0
    assert options.values(defaults, ["b", "a"]) == {}


def test_an_id_that_comes_again_begins_anew() -> None:
    options = RequestOptions()
    options.begin("a", SimpleNamespace(extra_args={"accelplug.epsilon": 0.5}))
    options.begin("a", SimpleNamespace(extra_args=None))
    assert options.values({"epsilon": 0.09}, ["a"]) == {}


@dataclass
class Mixed:
    """A rule with options that a tensor can hold, and one that it cannot, if told to."""

    bar: float = option(0.5, per_request=True)
    hard: bool = option(False, per_request=True)


@dataclass
class Worded(Mixed):
    most: int | None = option(None, per_request=True)


def test_tensors_hold_numbers_alone() -> None:
    pytest.importorskip("vllm", reason="brings the copy to the device")
    options = RequestOptions()
    options.begin("a", SimpleNamespace(extra_args={"accelplug.hard": True}))
    found = options.tensors({"bar": 0.5, "hard": False}, ["b", "a"], torch.device("cpu"))
    assert {name: values.tolist() for name, values in found.items()} == {"hard": [False, True]}
    owner = Owner("odd", "strange", "2.0")
    refuse_no_numbers(Technique("verifier", "mixed", owner, Mixed(), Mixed, "mixed"))
    with pytest.raises(HostError, match=r"verifier 'worded' \(strange 2.0\) lets requests set 'most', which may be no number"):
        refuse_no_numbers(Technique("verifier", "worded", owner, Worded(), Worded, "worded"))


def test_none_is_the_largest_number_for_device_drafters() -> None:
    options = RequestOptions()
    options.begin("a", SimpleNamespace(extra_args={"accelplug.most": 3}))
    found = options.tensors({"most": None}, ["b", "a"], torch.device("cpu"))
    assert found["most"].tolist() == [torch.iinfo(torch.int64).max, 3]
    refuse_no_numbers(Technique("drafter", "worded", Owner("odd", "strange", "2.0"), Worded(), Worded, "worded"))


class Recorder:
    """Drafts all it may, and keeps its views."""

    def __init__(self) -> None:
        self.views: list[DraftView] = []

    def propose(self, view: DraftView) -> Drafts:
        self.views.append(view)
        return Drafts.chains([[7] * int(budget) for budget in view.budgets])


def test_drafter_is_given_budgets_and_values(session: Callable[[object], Session]) -> None:
    recorder = Recorder()
    chains = Chains(session(recorder), 3, 40, num_slots=4)
    chains.session.defaults = {"width": 5, "end": None}
    for req_id, extra_args in {"a": {"accelplug.num_tokens": 0}, "b": {"accelplug.width": 9, "accelplug.num_tokens": 2}, "c": None}.items():
        chains.begin(req_id, 40, SimpleNamespace(extra_args=extra_args))
    tokens = np.ones((3, 40), dtype=np.int32)
    batch = Batch(["a", "b", "c"], np.arange(3), tokens, np.array([5, 6, 7]), [1, 1, 1])
    assert chains.step(batch, {}) == [[], [7, 7], [7, 7, 7]]
    (view,) = recorder.views
    assert {name: values.tolist() for name, values in view.parameters.items()} == {"width": [5, 9, 5]}
    chains.end({"a", "b"})
    assert len(chains.session.requests) == 0
