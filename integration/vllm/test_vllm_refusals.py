"""What is refused before weights load, in one sentence; and what happens where accelplug is installed but not configured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jobs import environment

CONFIGURE = """
import json, os, sys
from prometheus_client import REGISTRY
from vllm import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

def outcome(given):
    for name in ("VLLM_USE_V2_MODEL_RUNNER", "VLLM_USE_RUST_FRONTEND", "ACCELPLUG_CONFIG"):
        os.environ.pop(name, None)
    os.environ.update(given.pop("environment", {}))
    flags = given.pop("flags", [])
    sys.path[:0] = given.pop("installed", [])
    if release := given.pop("release", None):
        from accelplug.hosts.seams import Engine
        Engine.version = lambda self: release
    try:
        parsed = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(["--model", sys.argv[1], "--enforce-eager", *flags])
        args = EngineArgs.from_cli_args(parsed) if flags else EngineArgs(model=sys.argv[1], enforce_eager=True, **given)
        before = repr(args.additional_config)
        config = args.create_engine_config()
        assert repr(args.additional_config) == before, "the arguments are left as they came"
    except Exception as exc:
        return [type(exc).__name__, str(exc)]
    drafter = config.speculative_config
    return [config.parallel_config.worker_cls, drafter and drafter.method, drafter and drafter.num_speculative_tokens, config.use_v2_model_runner]

found = []
path = list(sys.path)
for given in json.loads(sys.argv[2]):
    sys.path[:] = path
    found.append({"outcome": outcome(given), "wrapped": None})
    shown = [metric for metric in REGISTRY.collect() if metric.name == "accelplug_refused_info"]
    found[-1]["refused"] = [sample.labels["reason"] for metric in shown for sample in metric.samples]
    create = EngineArgs.create_engine_config
    if hasattr(create, "__accelplug_original__"):
        from accelplug.hosts.vllm import plugin
        plugin.register()
        assert EngineArgs.create_engine_config is create, "registering again changes nothing"
        found[-1]["wrapped"] = plugin.wrapped()
        plugin.unregister()
        assert plugin.wrapped() == [] and EngineArgs.create_engine_config is create.__accelplug_original__, "all of them go"
        plugin.register()
    found[-1]["modules"] = sorted(name for name in sys.modules if name.startswith("accelplug"))
print("RESULT" + json.dumps(found))
"""
PLAIN_WORKER = "vllm.v1.worker.cpu_worker.CPUWorker"
WORKER = "accelplug.hosts.vllm.worker.vllm:v1:worker:cpu_worker:CPUWorker"


def configure(runner: str, model_dir: Path, given: list[dict[str, Any]], **more: str) -> list[dict[str, Any]]:
    """Make vLLM's configuration for each of `given` in one process, without an engine; return what came of it, what was wrapped, and what imported by then."""
    command = [sys.executable, "-c", CONFIGURE, str(model_dir), json.dumps(given)]
    done = subprocess.run(command, env=environment(runner, **more), capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.rpartition("RESULT")[2])
    return found


NGRAM = {"method": "ngram", "num_speculative_tokens": 2}


def accelplug(**settings: Any) -> dict[str, Any]:
    return {"additional_config": {"accelplug": settings}}


REFUSED = {
    "unknown setting": (accelplug(drafter="prompt_lookup", verifer="greedy"), "OptionError", "no setting 'verifer'; did you mean 'verifier'?"),
    "no drafter": (accelplug(allow_lossy=True), "OptionError", "configured without a drafter"),
    "unknown technique": (accelplug(drafter="promt_lookup"), "UnknownTechniqueError", "did you mean 'prompt_lookup'?"),
    "misspelt option": (accelplug(drafter="prompt_lookup(num_token=6)"), "OptionError", "no option 'num_token'; did you mean 'num_tokens'?"),
    "out of range": (accelplug(drafter="prompt_lookup(num_tokens=0)"), "OptionError", "num_tokens=0 is out of range"),
    "length twice": (accelplug(drafter="prompt_lookup", num_tokens=3), "OptionError", "write drafter 'prompt_lookup(num_tokens=3)'"),
    "unknown verifier": (accelplug(drafter="prompt_lookup", verifier="token_wiser"), "UnknownTechniqueError", "did you mean 'token_wise'?"),
    "two drafters": (
        {**accelplug(drafter="prompt_lookup"), "speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
        "HostError",
        "and accelplug's drafter 'prompt_lookup' are two drafters",
    ),
    "nothing drafts": (accelplug(verifier="block"), "HostError", "judges drafts and nothing drafts; add {'drafter': 'prompt_lookup'} or a speculative_config"),
    "on_refused": (accelplug(drafter="prompt_lookup", on_refused="go"), "OptionError", "accelplug has no on_refused 'go'; it takes stop, serve"),
    "no file": ({"environment": {"ACCELPLUG_CONFIG": "/nowhere.toml"}}, "OptionError", "ACCELPLUG_CONFIG=/nowhere.toml cannot be read (FileNotFoundError)"),
    "twice": (
        {**accelplug(drafter="suffix"), "environment": {"ACCELPLUG_CONFIG": "/nowhere.toml"}},
        "HostError",
        "configured twice, by additional_config and by ACCELPLUG_CONFIG=/nowhere.toml; remove one of them",
    ),
    "two drafters, by flag": ({**accelplug(drafter="prompt_lookup"), "spec_method": "ngram"}, "HostError", "are two drafters"),
    "runner": (accelplug(drafter="prompt_lookup", runner="v3"), "OptionError", "it takes auto, v1, v2"),
    "runner without triton": (accelplug(drafter="prompt_lookup", runner="v2"), "HostError", "it needs Triton"),
    "audit of vLLM's drafts": ({**accelplug(verifier="block", audit=0.1), "speculative_config": NGRAM}, "OptionError", "cannot be turned off; name a drafter"),
    "front end in Rust": (
        {**accelplug(drafter="prompt_lookup"), "environment": {"VLLM_USE_RUST_FRONTEND": "1"}},
        "HostError",
        "VLLM_USE_RUST_FRONTEND=1 in the environment) checks no options of requests",
    ),
    "tree": (accelplug(drafter="suffix(shape='tree')"), "HostError", "needs 'mask.tree' (the forward pass can verify a tree of drafts), which vllm's V1"),
    "merged trees": (accelplug(drafter="fusion"), "HostError", "vllm's V1 runner cannot run this selection: drafter 'fusion'"),
    "runners-up": (accelplug(drafter="token_recycling(shape='chain')"), "HostError", "needs 'logits.topk'"),
    "second model": (accelplug(drafter="draft_model(model='somewhere/small')"), "HostError", "needs 'model.second' (a second model beside the target)"),
    "lossy": (accelplug(drafter="suffix", verifier="fly"), "HostError", "verifier 'fly' (accelplug 0.1.0) may change the output; pass allow_lossy=True"),
    "two rules": (
        {**accelplug(verifier="block"), "speculative_config": {**NGRAM, "rejection_sample_method": "block"}},
        "HostError",
        "verifier 'block' (accelplug 0.1.0) and vLLM's rejection_sample_method 'block' are two verification rules; remove one of them",
    ),
    "object": (accelplug(drafter=5), "OptionError", "drafter 5 is no text or mapping"),
    "grammar and two drafters": (
        {**accelplug(grammar="auto", num_tokens=2), "speculative_config": NGRAM},
        "HostError",
        "and accelplug's grammar 'auto' with num_tokens are two drafters",
    ),
    "grammar and nothing to judge": (accelplug(grammar="auto", verifier="block"), "HostError", "judges drafts and nothing drafts"),
    "grammar and drawn drafts": (
        {**accelplug(grammar="auto"), "speculative_config": {**NGRAM, "draft_sample_method": "probabilistic"}},
        "HostError",
        "vLLM cuts the drafts that grammar 'auto' forbids and verifies the others with probabilities of all, which is not exact; take",
    ),
    "a length and nothing that drafts": (accelplug(length="adaptive"), "HostError", "own drafters draft, and nothing drafts; add a speculative_config"),
    "a length beside accelplug's drafter": (accelplug(drafter="suffix", length="adaptive"), "OptionError", "write drafter 'adaptive(source=...)'"),
    "a length and a grammar alone": (accelplug(grammar="auto", length="adaptive"), "HostError", "own drafters draft, and nothing drafts"),
    "two lengths": (
        {**accelplug(length="adaptive"), "speculative_config": {**NGRAM, "num_speculative_tokens_per_batch_size": [[1, 4, 2]]}},
        "HostError",
        "vLLM's num_speculative_tokens_per_batch_size and length 'adaptive' both decide how many tokens are drafted; remove one of them",
    ),
    "a drafter of one length": (
        {**accelplug(length="adaptive"), "speculative_config": {**NGRAM, "method": "ngram_gpu"}},
        "HostError",
        "vLLM's drafter 'ngram_gpu' drafts one length for ever in its V1 runner",
    ),
    "grammar without a tokenizer": ({**accelplug(grammar="auto"), "skip_tokenizer_init": True}, "HostError", "needs the tokenizer's tokens"),
}


ALLOWED_V1 = {
    "by name": (accelplug(drafter="prompt_lookup(num_tokens=6)"), [WORKER, "custom_class", 6, False]),
    "the user's worker stays": (
        {**accelplug(drafter={"name": "prompt_lookup", "num_tokens": 5}), "worker_cls": "vllm.v1.worker.gpu_worker.Worker"},
        ["accelplug.hosts.vllm.worker.vllm:v1:worker:gpu_worker:Worker", "custom_class", 5, False],
    ),
    "a verifier behind vLLM's drafter": ({**accelplug(verifier="block"), "speculative_config": NGRAM}, [WORKER, "ngram", 2, False]),
    "refused, but serving": (accelplug(drafter="prompt_lookups", on_refused="serve"), [PLAIN_WORKER, None, None, False]),
    "refused, but serving with vLLM's drafter": (
        {**accelplug(drafter="suffix", on_refused="serve"), "speculative_config": NGRAM},
        [PLAIN_WORKER, "ngram", 2, False],
    ),
    "refused for what it drafts, but serving": (accelplug(drafter="fusion", on_refused="serve"), [PLAIN_WORKER, None, None, False]),
    "lossy, as asked": (accelplug(drafter="prompt_lookup", verifier="fly", allow_lossy=True), [WORKER, "custom_class", 8, False]),
    "refused for its front end, but serving": (
        {**accelplug(drafter="suffix", on_refused="serve"), "environment": {"VLLM_USE_RUST_FRONTEND": "1"}},
        [PLAIN_WORKER, None, None, False],
    ),
    "a grammar alone": (accelplug(grammar="auto"), [PLAIN_WORKER, None, None, False]),
    "a grammar alone, with LoRA": ({**accelplug(grammar="auto"), "enable_lora": True}, [PLAIN_WORKER, None, None, False]),
    "a grammar that drafts": (accelplug(grammar="auto", num_tokens=3), [WORKER, "custom_class", 3, False]),
    "a grammar beside vLLM's drafter": ({**accelplug(grammar="auto"), "speculative_config": NGRAM}, [PLAIN_WORKER, "ngram", 2, False]),
    "a length of vLLM's drafter": ({**accelplug(length="adaptive"), "speculative_config": NGRAM}, [WORKER, "ngram", 2, False]),
    "a length of vLLM's drafter, by flags": (
        {**accelplug(length="adaptive"), "spec_method": "ngram", "spec_tokens": 3}, [WORKER, "ngram", 3, False],
    ),
    "dotted flags": (
        {"flags": ["--additional-config.accelplug.drafter", "prompt_lookup(num_tokens=6)", "--additional-config.accelplug.verifier=greedy"]},
        [WORKER, "custom_class", 6, False],
    ),
    "dotted flags with an equals sign": ({"flags": ["--additional-config.accelplug.drafter=prompt_lookup(num_tokens=7)"]}, [WORKER, "custom_class", 7, False]),
    "dotted numbers": (
        {"flags": ["--additional-config.accelplug.drafter.name=suffix", "--additional-config.accelplug.drafter.num_tokens=9"]},
        [WORKER, "custom_class", 9, False],
    ),
}
LOOKUP = accelplug(drafter="prompt_lookup")
ALLOWED_V2 = {
    "vLLM's own choice": (LOOKUP, [WORKER, "ngram_gpu", 8, True]),
    "runner v1": (accelplug(drafter="prompt_lookup", runner="v1"), [WORKER, "custom_class", 8, False]),
    "runner v2": (accelplug(drafter="prompt_lookup", runner="v2"), [WORKER, "ngram_gpu", 8, True]),
    "a grammar alone": (accelplug(grammar="auto"), [PLAIN_WORKER, None, None, True]),
    "a grammar alone, with LoRA": ({**accelplug(grammar="auto"), "enable_lora": True}, [PLAIN_WORKER, None, None, True]),
    "a grammar that drafts": (accelplug(grammar="auto", num_tokens=3), [WORKER, "ngram_gpu", 3, True]),
    "environment": ({**LOOKUP, "environment": {"VLLM_USE_V2_MODEL_RUNNER": "0"}}, [WORKER, "custom_class", 8, False]),
    "not configured": ({}, [PLAIN_WORKER, None, None, True]),
}
REFUSED_V2 = {
    "environment forbids it": (accelplug(drafter="prompt_lookup", runner="v2"), "0", "VLLM_USE_V2_MODEL_RUNNER=0 in the environment"),
    "LoRA on a CPU": ({**LOOKUP, "enable_lora": True}, "1", "vLLM's V2 runner with LoRA on a CPU fails as soon as anything is drafted"),
    "sharded sampling": (
        {**LOOKUP, "tensor_parallel_size": 2, "enable_batch_sharded_sampling": True},
        "1",
        "with vLLM's enable_batch_sharded_sampling each tensor-parallel rank verifies requests of its own",
    ),
    "environment forces it": (accelplug(drafter="prompt_lookup", runner="v1"), "1", "contradicts VLLM_USE_V2_MODEL_RUNNER=1"),
}


UNCONFIGURED: list[dict[str, Any]] = [{}, {"additional_config": {"somebody": "else"}}, {"speculative_config": NGRAM}]
FILES = {
    'drafter = "prompt_lookup(num_tokens=6)"\nrunner = "v1"': [WORKER, "custom_class", 6, False],
    '[drafter]\nname = "suffix"\nnum_tokens = 5': [WORKER, "custom_class", 5, False],
    "drafter = ": ["OptionError", "is no TOML"],
    'draftr = "suffix"': ["OptionError", "did you mean 'drafter'?"],
}
INSTALLED = {
    "ban_words-1.0": ("[vllm.logits_processors]\nban_words = ban_words:Ban\n", [LOOKUP]),
}
"""Distributions, their entry points, and what is configured where they are installed."""


def installed(folder: Path, distribution: str, entry_points: str) -> str:
    """Write the metadata of a distribution into a folder of its own, for sys.path."""
    info = folder / distribution / f"{distribution}.dist-info"
    info.mkdir(parents=True)
    name, version = distribution.split("-")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entry_points)
    return str(info.parent)


def written(folder: Path, number: int, text: str) -> dict[str, Any]:
    """Return what asks for the settings in a file."""
    file = folder / f"{number}.toml"
    file.write_text(text)
    return {"environment": {"ACCELPLUG_CONFIG": str(file)}}


@pytest.fixture(scope="module")
def on_v1(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, dict[str, Any]]:
    """What becomes of every case, in one process; what is not configured comes first, while nothing else has been imported."""
    folder = tmp_path_factory.mktemp("installed")
    cases: dict[Any, dict[str, Any]] = {f"unconfigured {i}": given for i, given in enumerate(UNCONFIGURED)}
    cases |= {case: given for case, (given, *_) in {**REFUSED, **ALLOWED_V1}.items()}
    cases |= {text: written(folder, i, text) for i, text in enumerate(FILES)}
    cases |= {f"audit {audit}": accelplug(drafter="prompt_lookup", audit=audit) for audit in (0.0, 0.5)}
    for distribution, (entry_points, asked) in INSTALLED.items():
        found = installed(folder, distribution, entry_points)
        cases |= {(distribution, i): {**given, "installed": [found]} for i, given in enumerate(asked)}
    cases |= {f"release {i}": {**given, "release": "0.33.1+cpu"} for i, given in enumerate([{}, LOOKUP])}  # which stays
    return dict(zip(cases, configure("v1", model_dir, list(cases.values())), strict=True))


@pytest.fixture(scope="module")
def on_v2(model_dir: Path) -> dict[str, list[Any]]:
    cases = {case: given for case, (given, _) in ALLOWED_V2.items()}
    cases |= {case: {**given, "environment": {"VLLM_USE_V2_MODEL_RUNNER": forced}} for case, (given, forced, _) in REFUSED_V2.items()}
    return {case: found["outcome"] for case, found in zip(cases, configure("v2", model_dir, list(cases.values())), strict=True)}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_weights_load(case: str, on_v1: dict[Any, dict[str, Any]]) -> None:
    error, message = on_v1[case]["outcome"]
    assert error == REFUSED[case][1]
    assert REFUSED[case][2] in message
    assert "\n" not in message


@pytest.mark.parametrize("case", ALLOWED_V1)
def test_configured_for_v1(case: str, on_v1: dict[Any, dict[str, Any]]) -> None:
    assert on_v1[case]["outcome"] == ALLOWED_V1[case][1]


def test_metrics_say_that_the_engine_serves_without_accelplug(on_v1: dict[Any, dict[str, Any]]) -> None:
    assert not any(on_v1[case]["refused"] for case in REFUSED), "where the engine does not start nobody reads them"
    (reason,) = on_v1["refused for what it drafts, but serving"]["refused"]
    assert reason.startswith("vllm's V1 runner cannot run this selection: drafter 'fusion'")
    assert on_v1["by name"]["refused"] == []


@pytest.mark.parametrize("case", ALLOWED_V2)
def test_configured_for_v2(case: str, on_v2: dict[str, list[Any]]) -> None:
    assert on_v2[case] == ALLOWED_V2[case][1]


@pytest.mark.parametrize("case", REFUSED_V2)
def test_runner_that_the_environment_rules_out(case: str, on_v2: dict[str, list[Any]]) -> None:
    error, message = on_v2[case]
    assert error == "HostError"
    assert REFUSED_V2[case][2] in message


def test_a_grammar_alone_cannot_draft_under_asynchronous_scheduling(model_dir: Path) -> None:
    found = configure("v2-async", model_dir, [accelplug(grammar="auto", num_tokens=4), accelplug(grammar="auto")])
    refused, allowed = (one["outcome"] for one in found)
    assert refused[0] == "HostError"
    assert "under asynchronous scheduling nobody knows that before the next step runs" in refused[1]
    assert allowed == [PLAIN_WORKER, None, None, True]


def test_unconfigured_changes_nothing(on_v1: dict[Any, dict[str, Any]], model_dir: Path) -> None:
    with_us = [on_v1[f"unconfigured {i}"] for i in range(len(UNCONFIGURED))]
    without_us = configure("v1", model_dir, UNCONFIGURED, VLLM_PLUGINS="")
    assert [one["outcome"] for one in with_us] == [one["outcome"] for one in without_us]
    assert with_us[0]["outcome"][:2] == [PLAIN_WORKER, None]
    for mine, theirs in zip(with_us, without_us, strict=True):
        assert (mine["wrapped"], theirs["wrapped"]) == (["EngineArgs.create_engine_config"], None), "one wrap, and it goes"
        assert {name for name in mine["modules"] if "hosts.vllm" in name} == {"accelplug.hosts.vllm", "accelplug.hosts.vllm.plugin"}
        assert not any(name.startswith("accelplug.spec") for name in mine["modules"])


@pytest.mark.parametrize("audit", [0.0, 0.5])
def test_what_is_wrapped_once_configured(audit: float, on_v1: dict[Any, dict[str, Any]]) -> None:
    """Audits take more, and only they."""
    for_audits = ["AsyncLLM.generate", "LLMEngine.add_request", "LLMEngine.abort_request", "LLMEngine.step"] if audit else []
    assert on_v1[f"audit {audit}"]["wrapped"] == ["EngineArgs.create_engine_config", "InputProcessor._validate_params", *for_audits]


@pytest.mark.parametrize("text", FILES)
def test_settings_in_a_file(text: str, on_v1: dict[Any, dict[str, Any]]) -> None:
    found, expected = on_v1[text]["outcome"], FILES[text]
    if len(expected) == 4:
        assert found == expected
    else:
        assert found[0] == expected[0]
        assert expected[1] in found[1]
        assert "\n" not in found[1]


def test_untested_release_is_refused_only_when_configured(on_v1: dict[Any, dict[str, Any]]) -> None:
    plain, refused = (on_v1[f"release {i}"]["outcome"] for i in range(2))
    assert plain[0] == PLAIN_WORKER
    assert refused == ["HostError", "vllm 0.33.1+cpu is outside the tested range >=0.28,<0.33; pip install 'vllm>=0.28,<0.33'"]


def test_v1_refuses_logits_processors_that_it_would_drop(on_v1: dict[Any, dict[str, Any]]) -> None:
    """sgl-project/sglang#26330 in another engine: a request's thinking went on past the budget that a processor sets."""
    error, message = on_v1["ban_words-1.0", 0]["outcome"]
    assert error == "HostError"
    assert "would drop ban_words" in message


def test_every_seam_is_alive() -> None:
    code = "from accelplug.hosts.vllm.compat import ENGINE; import sys; assert 'vllm' not in sys.modules; ENGINE.require(); print(len(ENGINE.seams))"
    done = subprocess.run([sys.executable, "-c", code], env=environment("v1"), capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
