"""vLLM's own configuration as accelplug leaves it, made from real arguments; nothing is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="the configuration is vLLM's")

from accelplug import AccelplugError
from accelplug.hosts.vllm import answers, configure, plugin

WORKER = "accelplug.hosts.vllm.worker."
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's configuration, without weights."""
    from transformers import LlamaConfig

    path = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaConfig(vocab_size=128, max_position_embeddings=256, architectures=["LlamaForCausalLM"], **sizes).save_pretrained(path)
    return path


@pytest.fixture
def configured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Make a configuration as a user does, with accelplug installed and taken out again behind the test."""
    from vllm.engine.arg_utils import EngineArgs

    monkeypatch.delenv("ACCELPLUG_CONFIG", raising=False)
    plugin.register()

    def make(accelplug: object = None, **given: Any) -> Any:
        additional = {"additional_config": {"accelplug": accelplug, "other": 1}} if accelplug is not None else {}
        args = EngineArgs(**{"model": str(folder), "skip_tokenizer_init": True, "max_model_len": 128, **additional, **given})
        before = args.additional_config
        try:
            return args.create_engine_config()
        finally:  # vLLM may ask again
            assert args.additional_config == before
            assert (args.speculative_config or {}).get("method") == (given.get("speculative_config") or {}).get("method")

    yield make
    plugin.unregister()


def test_a_drafter_takes_vllms_place_for_one(configured: Callable[..., Any]) -> None:
    config = configured({"drafter": "prompt_lookup(num_tokens=5)", "runner": "v1"})
    drafter = config.speculative_config
    assert (drafter.method, drafter.model, drafter.num_speculative_tokens) == ("custom_class", "accelplug.hosts.vllm.v1.Proposer", 5)
    assert config.parallel_config.worker_cls.startswith(WORKER)
    assert config.additional_config["other"] == 1
    assert "prompt_lookup" in str(config.additional_config["accelplug"]["drafter"])


def test_a_server_that_asked_for_nothing_is_vllms_own(configured: Callable[..., Any]) -> None:
    config = configured()
    assert (config.speculative_config, config.parallel_config.worker_cls.startswith("vllm.")) == (None, True)


def test_a_file_speaks_for_servers_that_say_nothing(configured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "accelplug.toml"
    file.write_text('drafter = "prompt_lookup(num_tokens=2)"\nrunner = "v1"\n')
    monkeypatch.setenv("ACCELPLUG_CONFIG", str(file))
    assert configured().speculative_config.num_speculative_tokens == 2


@pytest.mark.parametrize(("length", "schedule"), [("fixed", False), ("adaptive", True)])
def test_vllms_own_drafter_stays(configured: Callable[..., Any], length: str, *, schedule: bool) -> None:
    config = configured({"verifier": "block", "length": length}, speculative_config=dict(NGRAM))
    drafter = config.speculative_config
    assert (drafter.method, drafter.num_speculative_tokens) == ("ngram", 3)
    assert config.parallel_config.worker_cls.startswith(WORKER)
    assert bool(drafter.num_speculative_tokens_per_batch_size) is schedule
    assert ("accelplug" in str(config.scheduler_config.scheduler_cls)) is schedule


def test_a_grammar_alone_changes_the_scheduler_alone(configured: Callable[..., Any]) -> None:
    config = configured({"grammar": "auto"}, skip_tokenizer_init=False)
    assert config.speculative_config is None
    assert config.parallel_config.worker_cls.startswith("vllm.")
    assert "accelplug" in str(config.scheduler_config.scheduler_cls)


def test_what_is_asked_beside_is_there(configured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_told", [])
    assert "AsyncLLM.generate" not in str(plugin.wrapped())
    configured({"drafter": "prompt_lookup", "verifier": "block", "runner": "v1", "audit": 0.5}, per_request_spec_decode_metrics="summary")
    assert "AsyncLLM.generate" in str(plugin.wrapped())
    assert [(one["drafter"].split(" ")[0], one["verifier"].split(" ")[0]) for one in answers._told] == [("prompt_lookup", "block")]


def test_on_the_other_runner_the_reason_is_said(configured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AccelplugError, match="runner 'v2' cannot be used: it needs Triton"):
        configured({"drafter": "prompt_lookup", "runner": "v2"})
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    with pytest.raises(AccelplugError, match="runner 'v2' cannot be used: VLLM_USE_V2_MODEL_RUNNER=0 in the environment"):
        configured({"drafter": "prompt_lookup", "runner": "v2"})
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(AccelplugError, match="runner 'v1' contradicts VLLM_USE_V2_MODEL_RUNNER=1"):
        configured({"drafter": "prompt_lookup", "runner": "v1"})


def test_asynchronous_scheduling_that_v1_drafts_without_is_not_taken_away_in_silence(configured: Callable[..., Any]) -> None:
    with pytest.raises(AccelplugError, match="on vLLM's V1 runner drafter 'prompt_lookup' drafts without asynchronous scheduling, which the config"):
        configured({"drafter": "prompt_lookup"}, async_scheduling=True)
    assert configured({"drafter": "prompt_lookup", "on_refused": "serve"}, async_scheduling=True).speculative_config is None


def test_processors_that_v1_would_drop_are_named(configured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configure, "entry_points", lambda group: [EntryPoint("bias", "somebody:Bias", group)] if group == "vllm.logits_processors" else [])
    with pytest.raises(AccelplugError, match="takes no logits processors while drafting, and would drop bias; use the V2 runner"):
        configured({"drafter": "prompt_lookup", "runner": "v1"})
    monkeypatch.setattr(configure, "entry_points", lambda group: [])
    with pytest.raises(AccelplugError, match="would drop somebody:Bias;"):
        configured({"drafter": "prompt_lookup", "runner": "v1"}, logits_processors=["somebody:Bias"])
    assert configured({"grammar": "auto"}, skip_tokenizer_init=False).speculative_config is None, "nothing drafts, nothing is dropped"


def test_a_server_that_would_rather_serve_has_nothing_of_it(configured: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    wrong = {"drafter": "prompt_lookup", "runner": "v1", "on_refused": "serve"}
    config = configured(wrong, speculative_config=dict(NGRAM))
    assert (config.additional_config, config.speculative_config.method) == ({"other": 1}, "ngram")
    assert "the engine serves without it, as on_refused='serve' asks" in caplog.text
    assert config.parallel_config.worker_cls.startswith("vllm.")


@pytest.mark.parametrize(
    ("accelplug", "given", "said"),
    [
        ({"drafter": "prompt_lookup"}, {"speculative_config": NGRAM}, "are two drafters; remove one of them"),
        ({"verifier": "block"}, {}, "judges drafts and nothing drafts"),
        ({"length": "adaptive"}, {}, "and nothing drafts; add a speculative_config"),
        ({"grammar": "auto"}, {}, "needs the tokenizer's tokens; start vLLM without skip_tokenizer_init"),
        ({"length": "adaptive"}, {"speculative_config": {**NGRAM, "num_speculative_tokens_per_batch_size": [[1, 4, 2]]}}, "both decide how many tokens"),
        ({"drafter": "prompt_lookup", "runner": "v1"}, {"pipeline_parallel_size": 2}, "'prompt_lookup' cannot draft under pipeline parallelism"),
        ({"grammar": "auto", "num_tokens": 4}, {"pipeline_parallel_size": 2}, "grammar 'auto' with num_tokens cannot draft under pipeline parallelism"),
        ({"drafter": "prompt_lookup"}, {"runner": "pooling"}, "works for models that generate, and this one runs as 'pooling'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(configured: Callable[..., Any], accelplug: object, given: Any, said: str) -> None:
    with pytest.raises(AccelplugError, match=said):
        configured(accelplug, **given)
