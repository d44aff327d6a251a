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
from vllm import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

def outcome(given):
    for name in ("VLLM_USE_V2_MODEL_RUNNER", "ACCELPLUG_CONFIG"):
        os.environ.pop(name, None)
    os.environ.update(given.pop("environment", {}))
    flags = given.pop("flags", [])
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

found = [outcome(given) for given in json.loads(sys.argv[2])]
create = EngineArgs.create_engine_config
unregistered = None
if hasattr(create, "__accelplug_original__"):
    from accelplug.hosts.vllm import plugin
    plugin.register()
    assert EngineArgs.create_engine_config is create, "registering again changes nothing"
    wrapped = plugin.wrapped()
    plugin.unregister()
    assert plugin.wrapped() == [] and EngineArgs.create_engine_config is create.__accelplug_original__, "all of them go"
    unregistered = wrapped
modules = sorted(name for name in sys.modules if name.startswith("accelplug"))
print("RESULT" + json.dumps([found, unregistered, modules]))
"""
PLAIN_WORKER = "vllm.v1.worker.cpu_worker.CPUWorker"
WORKER = "accelplug.hosts.vllm.worker.vllm:v1:worker:cpu_worker:CPUWorker"


def configure(runner: str, model_dir: Path, given: list[dict[str, Any]], *folders: Path, **more: str) -> tuple[list[Any], list[str] | None, list[str]]:
    """Make vLLM's configuration for each of `given` in one process, without an engine."""
    command = [sys.executable, "-c", CONFIGURE, str(model_dir), json.dumps(given)]
    done = subprocess.run(command, env=environment(runner, *folders, **more), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found, unregistered, modules = json.loads(done.stdout.rpartition("RESULT")[2])
    return found, unregistered, modules


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
    "object": (accelplug(drafter=5), "OptionError", "drafter 5 is no text or mapping"),
    "grammar and two drafters": (
        {**accelplug(grammar="auto", num_tokens=2), "speculative_config": NGRAM},
        "HostError",
        "and accelplug's grammar 'auto' with num_tokens are two drafters",
    ),
    "grammar and nothing to judge": (accelplug(grammar="auto", verifier="block"), "HostError", "judges drafts and nothing drafts"),
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
    "a grammar alone": (accelplug(grammar="auto"), [PLAIN_WORKER, None, None, False]),
    "a grammar that drafts": (accelplug(grammar="auto", num_tokens=3), [WORKER, "custom_class", 3, False]),
    "a grammar beside vLLM's drafter": ({**accelplug(grammar="auto"), "speculative_config": NGRAM}, [PLAIN_WORKER, "ngram", 2, False]),
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
    "a grammar that drafts": (accelplug(grammar="auto", num_tokens=3), [WORKER, "ngram_gpu", 3, True]),
    "environment": ({**LOOKUP, "environment": {"VLLM_USE_V2_MODEL_RUNNER": "0"}}, [WORKER, "custom_class", 8, False]),
    "not configured": ({}, [PLAIN_WORKER, None, None, True]),
}
REFUSED_V2 = {
    "environment forbids it": (accelplug(drafter="prompt_lookup", runner="v2"), "0", "VLLM_USE_V2_MODEL_RUNNER=0 in the environment"),
    "LoRA on a CPU": ({**LOOKUP, "enable_lora": True}, "1", "vLLM's V2 runner with LoRA on a CPU fails as soon as anything is drafted"),
    "environment forces it": (accelplug(drafter="prompt_lookup", runner="v1"), "1", "contradicts VLLM_USE_V2_MODEL_RUNNER=1"),
}


@pytest.fixture(scope="module")
def on_v1(model_dir: Path) -> dict[str, list[Any]]:
    cases = {**{case: given for case, (given, _, _) in REFUSED.items()}, **{case: given for case, (given, _) in ALLOWED_V1.items()}}
    return dict(zip(cases, configure("v1", model_dir, list(cases.values()))[0], strict=True))


@pytest.fixture(scope="module")
def on_v2(model_dir: Path) -> dict[str, list[Any]]:
    cases = {case: given for case, (given, _) in ALLOWED_V2.items()}
    cases |= {case: {**given, "environment": {"VLLM_USE_V2_MODEL_RUNNER": forced}} for case, (given, forced, _) in REFUSED_V2.items()}
    return dict(zip(cases, configure("v2", model_dir, list(cases.values()))[0], strict=True))


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_weights_load(case: str, on_v1: dict[str, list[Any]]) -> None:
    error, message = on_v1[case]
    assert error == REFUSED[case][1]
    assert REFUSED[case][2] in message
    assert "\n" not in message


@pytest.mark.parametrize("case", ALLOWED_V1)
def test_configured_for_v1(case: str, on_v1: dict[str, list[Any]]) -> None:
    assert on_v1[case] == ALLOWED_V1[case][1]


@pytest.mark.parametrize("case", ALLOWED_V2)
def test_configured_for_v2(case: str, on_v2: dict[str, list[Any]]) -> None:
    assert on_v2[case] == ALLOWED_V2[case][1]


@pytest.mark.parametrize("case", REFUSED_V2)
def test_runner_that_the_environment_rules_out(case: str, on_v2: dict[str, list[Any]]) -> None:
    error, message = on_v2[case]
    assert error == "HostError"
    assert REFUSED_V2[case][2] in message


def test_a_grammar_alone_cannot_draft_under_asynchronous_scheduling(model_dir: Path) -> None:
    (refused, allowed), _, _ = configure("v2-async", model_dir, [accelplug(grammar="auto", num_tokens=4), accelplug(grammar="auto")])
    assert refused[0] == "HostError"
    assert "under asynchronous scheduling nobody knows that before the next step runs" in refused[1]
    assert allowed == [PLAIN_WORKER, None, None, True]


def test_unconfigured_changes_nothing(model_dir: Path) -> None:
    given: list[dict[str, Any]] = [{}, {"additional_config": {"somebody": "else"}}, {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}]
    with_us, unregistered, modules = configure("v1", model_dir, given)
    without_us, absent, _ = configure("v1", model_dir, given, VLLM_PLUGINS="")
    assert (unregistered, absent) == (["EngineArgs.create_engine_config"], None), "one wrap, and it goes"
    assert with_us == without_us
    assert with_us[0][:2] == [PLAIN_WORKER, None]
    assert {name for name in modules if "hosts.vllm" in name} == {"accelplug.hosts.vllm", "accelplug.hosts.vllm.plugin"}
    assert not any(name.startswith("accelplug.spec") for name in modules)


@pytest.mark.parametrize("audit", [0.0, 0.5])
def test_what_is_wrapped_once_configured(audit: float, model_dir: Path) -> None:
    """Configured twice in one process, as vLLM does; audits take more, and only they."""
    given = accelplug(drafter="prompt_lookup", audit=audit)
    _, wrapped, _ = configure("v1", model_dir, [given, given])
    for_audits = ["AsyncLLM.generate", "LLMEngine.add_request", "LLMEngine.step"] if audit else []
    assert wrapped == ["EngineArgs.create_engine_config", "InputProcessor._validate_params", *for_audits]


FILES = {
    'drafter = "prompt_lookup(num_tokens=6)"\nrunner = "v1"': [WORKER, "custom_class", 6, False],
    '[drafter]\nname = "suffix"\nnum_tokens = 5': [WORKER, "custom_class", 5, False],
    "drafter = ": ["OptionError", "is no TOML"],
    'draftr = "suffix"': ["OptionError", "did you mean 'drafter'?"],
}


def test_settings_in_a_file(model_dir: Path, tmp_path: Path) -> None:
    given = []
    for i, text in enumerate(FILES):
        file = tmp_path / f"{i}.toml"
        file.write_text(text)
        given.append({"environment": {"ACCELPLUG_CONFIG": str(file)}})
    for found, expected in zip(configure("v1", model_dir, given)[0], FILES.values(), strict=True):
        if len(expected) == 4:
            assert found == expected
        else:
            assert found[0] == expected[0]
            assert expected[1] in found[1]
            assert "\n" not in found[1]


def test_untested_release_is_refused_only_when_configured(model_dir: Path, tmp_path: Path) -> None:
    info = tmp_path / "vllm-0.33.1+cpu.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.33.1+cpu\n")
    (plain, refused), _, _ = configure("v1", model_dir, [{}, accelplug(drafter="prompt_lookup")], tmp_path)
    assert plain[0] == PLAIN_WORKER
    assert refused == ["HostError", "vllm 0.33.1+cpu is outside the tested range >=0.31,<0.33; pip install 'vllm>=0.31,<0.33'"]


def test_v1_refuses_logits_processors_that_it_would_drop(model_dir: Path, tmp_path: Path) -> None:
    info = tmp_path / "ban_words-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ban-words\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vllm.logits_processors]\nban_words = ban_words:Ban\n")
    (refused,), _, _ = configure("v1", model_dir, [accelplug(drafter="prompt_lookup")], tmp_path)
    assert refused[0] == "HostError"
    assert "would drop the installed logits processors ban_words" in refused[1]


def test_every_seam_is_alive() -> None:
    code = "from accelplug.hosts.vllm.compat import ENGINE; import sys; assert 'vllm' not in sys.modules; ENGINE.require(); print(len(ENGINE.seams))"
    done = subprocess.run([sys.executable, "-c", code], env=environment("v1"), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
