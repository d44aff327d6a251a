"""Do the tests notice? Put small mistakes into a copy of the source, one at a time, and run the fast tests on it.

``pip install coverage``, then ``python integration/mutation/run.py --count 120 --seed 20 --json found.json``; run by hand. The tests run once on the source
as it is, which tells which of them run which lines; a mutant is then shown to those that run its line, the shortest files first, up to the
first that fails. ``--jobs 2`` takes two mutants at a time, ``--resume`` goes on with what a run that was cut short has left in its file. Nothing in the
working tree is touched.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from covering import Chosen, Covered, file_of, watched
from mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
TESTS = {
    "accelplug/hooks": ("tests/hooks", "tests/conformance/test_builtins.py"),
    "accelplug/spec": ("tests/spec", "tests/conformance/test_builtins.py"),
    "accelplug/spec/branches.py": ("tests/spec/test_adaptive_trees.py", "tests/hosts/hf/test_draft_model_exact.py"),
    "accelplug/spec/draft_model.py": ("tests/hosts/hf/test_draft_model.py", "tests/hosts/hf/test_draft_model_exact.py"),
    "accelplug/spec/lengths.py": ("tests/hosts/hf/test_draft_model_exact.py", "tests/hosts/hf/test_draft_model.py"),
    "accelplug/spec/transformers_candidates.py": ("tests/hosts/hf/test_candidates.py",),
    "accelplug/spec/trees": ("tests/spec/test_trees.py", "tests/hosts/hf/test_draft_model_exact.py"),
    "accelplug/hosts/choices.py": ("tests/hosts/hf/test_paths_exact.py", "tests/hosts/vllm/test_judging.py"),
    "accelplug/hosts/costs.py": ("tests/hosts/hf/test_adaptive.py", "tests/spec/test_adaptive.py"),
    "accelplug/hosts/hf/candidates.py": ("tests/hosts/hf/test_candidates.py",),
    "accelplug/hosts/hf/checking.py": ("tests/hosts/hf/test_edges.py", "tests/hosts/hf/test_settings.py"),
    "accelplug/hosts/hf/columns.py": ("tests/hosts/hf/test_ragged.py",),
    "accelplug/hosts/hf/forward.py": ("tests/hosts/hf/test_greedy_exact.py", "tests/hosts/hf/test_static_cache.py", "tests/hosts/hf/test_padding.py"),
    "accelplug/hosts/hf/front.py": ("tests/hosts/hf/test_session.py", "tests/hosts/hf/test_edges.py"),
    "accelplug/hosts/hf/grammar.py": ("tests/hosts/hf/test_grammar.py",),
    "accelplug/hosts/hf/guided.py": ("tests/hosts/hf/test_guided.py", "tests/hosts/hf/test_grammar_exact.py", "tests/hosts/hf/test_grammar.py"),
    "accelplug/hosts/hf/drafting.py": ("tests/hosts/hf/test_session.py", "tests/hosts/hf/test_padding.py", "tests/hosts/hf/test_guided.py"),
    "accelplug/hosts/hf/loop.py": ("tests/hosts/hf/test_session.py", "tests/hosts/hf/test_greedy_exact.py", "tests/hosts/hf/test_settings.py"),
    "accelplug/hosts/hf/masks.py": ("tests/hosts/hf/test_greedy_exact.py", "tests/hosts/hf/test_ragged.py", "tests/hosts/hf/test_padding.py"),
    "accelplug/hosts/hf/loading.py": ("tests/hosts/hf/test_second.py", "tests/hosts/hf/test_translated.py", "tests/hosts/hf/test_draft_model.py"),
    "accelplug/hosts/hf/positions.py": ("tests/hosts/hf/test_positions.py",),
    "accelplug/hosts/hf/ragged.py": ("tests/hosts/hf/test_ragged.py", "tests/hosts/hf/test_batches.py"),
    "accelplug/hosts/hf/request.py": ("tests/hosts/hf/test_session.py", "tests/hosts/hf/test_edges.py", "tests/hosts/hf/test_settings.py"),
    "accelplug/hosts/hf/second.py": ("tests/hosts/hf/test_second.py", "tests/hosts/hf/test_draft_model.py"),
    "accelplug/hosts/hf/session.py": ("tests/hosts/hf/test_session.py", "tests/hosts/hf/test_edges.py", "tests/hosts/hf/test_settings.py"),
    "accelplug/hosts/hf/translated.py": ("tests/hosts/hf/test_translated.py",),
    "accelplug/hosts/hf/tree.py": ("tests/hosts/hf/test_greedy_exact.py", "tests/hosts/hf/test_sampling_exact.py"),
    "accelplug/hosts/hf/verified.py": ("tests/hosts/hf/test_verified.py",),
    "accelplug/hosts/hf/verify.py": ("tests/hosts/hf/test_sampling_exact.py", "tests/conformance/test_builtins.py", "tests/hosts/hf/test_settings.py"),
    "accelplug/hosts/hf/parameters.py": ("tests/hosts/hf/test_parameters.py",),
    "accelplug/hosts/hf/paths.py": ("tests/hosts/hf/test_paths.py", "tests/hosts/hf/test_paths_exact.py"),
    "accelplug/hosts/hf/compiled.py": ("tests/hosts/hf/test_static_cache.py",),
    "accelplug/hosts/hf/continuous.py": ("tests/hosts/hf/test_continuous.py",),
    "accelplug/hosts/hf/copies.py": ("tests/hosts/hf/test_recurrent.py", "tests/hosts/hf/test_other_layers.py"),
    "accelplug/hosts/hf/experts.py": ("tests/hosts/hf/test_experts.py",),
    "accelplug/hosts/hf/given.py": ("tests/hosts/hf/test_left_out.py", "tests/hosts/hf/test_images.py", "tests/hosts/hf/test_whole.py"),
    "accelplug/hosts/hf/inside.py": ("tests/hosts/hf/test_inside.py", "tests/hosts/hf/test_recurrent.py"),
    "accelplug/hosts/hf/layers.py": ("tests/hosts/hf/test_other_layers.py", "tests/hosts/hf/test_recurrent.py"),
    "accelplug/hosts/hf/packed.py": ("tests/hosts/hf/test_continuous.py",),
    "accelplug/hosts/hf/processors.py": ("tests/hosts/hf/test_settings.py", "tests/hosts/hf/test_edges.py"),
    "accelplug/hosts/hf/reading_on.py": ("tests/hosts/hf/test_recurrent.py", "tests/hosts/hf/test_other_layers.py"),
    "accelplug/hosts/hf/recurrent.py": ("tests/hosts/hf/test_recurrent.py",),
    "accelplug/hosts/hf/rollback.py": ("tests/hosts/hf/test_recurrent.py", "tests/hosts/hf/test_quantised_cache.py", "tests/hosts/hf/test_static_cache.py"),
    "accelplug/hosts/hf/rotary.py": ("tests/hosts/hf/test_rotary.py",),
    "accelplug/hosts/hf/several.py": ("tests/hosts/hf/test_several.py",),
    "accelplug/hosts/hf/states.py": ("tests/hosts/hf/test_recurrent.py",),
    "accelplug/hosts/hf/whole.py": ("tests/hosts/hf/test_whole.py",),
    "accelplug/hosts/stats.py": ("tests/hosts/test_stats.py", "tests/hosts/hf/test_session.py"),
    "accelplug/hosts/vocabulary.py": ("tests/hosts/test_vocabulary.py",),
    "accelplug/hosts/vllm/chains.py": ("tests/hosts/vllm/test_chains.py",),
    "accelplug/hosts/vllm/hashed.py": ("tests/hosts/vllm/test_judging.py",),
    "accelplug/hosts/vllm/host_rules.py": ("tests/hosts/vllm/test_judging.py",),
    "accelplug/hosts/vllm/judged.py": ("tests/hosts/vllm/test_judging.py",),
    "accelplug/hosts/vllm/judging.py": ("tests/hosts/vllm/test_judging.py",),
    "accelplug/hosts/vllm/metrics.py": ("tests/hosts/vllm/test_metrics.py",),
    "accelplug/hosts/vllm/mirror.py": ("tests/hosts/vllm/test_mirror.py",),
    "accelplug/hosts/vllm/requests.py": ("tests/hosts/vllm/test_requests.py",),
    "accelplug/hosts/vllm/slots.py": ("tests/hosts/vllm/test_slots.py",),
    "accelplug/hosts/vllm/board.py": ("tests/hosts/vllm/test_metrics.py",),
    "accelplug/hosts/vllm/clock.py": ("tests/hosts/vllm/test_clock.py",),
    "accelplug/hosts/vllm/configure.py": ("tests/hosts/vllm/test_configure.py", "tests/hosts/vllm/test_settings.py"),
    "accelplug/hosts/vllm/cpu_expand.py": ("tests/hosts/vllm/test_expand.py",),
    "accelplug/hosts/vllm/drawn.py": ("tests/hosts/vllm/test_drawn.py",),
    "accelplug/hosts/vllm/grammar_core.py": ("tests/hosts/vllm/test_grammars.py",),
    "accelplug/hosts/vllm/grammar_drafts.py": ("tests/hosts/vllm/test_grammars.py",),
    "accelplug/hosts/vllm/grammar_engines.py": ("tests/hosts/vllm/test_grammars.py",),
    "accelplug/hosts/vllm/grammar_front.py": ("tests/hosts/vllm/test_grammars.py",),
    "accelplug/hosts/vllm/grammar_request.py": ("tests/hosts/vllm/test_grammars.py",),
    "accelplug/hosts/vllm/plugin.py": ("tests/hosts/vllm/test_plugin.py", "tests/hosts/vllm/test_configure.py", "tests/hosts/vllm/test_settings.py"),
    "accelplug/hosts/vllm/settings.py": ("tests/hosts/vllm/test_settings.py",),
    "accelplug/hosts/vllm/settings_file.py": ("tests/hosts/vllm/test_settings.py",),
    "accelplug/hosts/vllm/undrafted.py": ("tests/hosts/vllm/test_undrafted.py",),
    "accelplug/hosts/vllm/v2_device.py": ("tests/hosts/vllm/test_v2_device.py",),
}
"""What is mutated -> the tests that should notice, the most telling first; a file belongs to the longest path that it is under."""
LOADED_ONCE = ("numpy", "pluggy", "pytest", "hypothesis", "scipy.stats", "torch", "transformers", "transformers.models.llama.modeling_llama", "coverage")
LOADED_WHERE_INSTALLED = ("vllm.v1.worker.gpu_model_runner", "vllm.v1.core.sched.scheduler", "vllm.v1.engine.core")
FORK = multiprocessing.get_context("fork")
MEMORY = 8 << 30  # bytes of address space for the tests of a mutant


@dataclass(frozen=True)
class Site:
    """A mutant, and the tests that could notice it."""

    file: str
    mutant: Mutant
    tests: Sequence[str]
    seconds: float

    def spelled(self, became: str, seconds: float) -> dict[str, object]:
        where = f"{self.file}:{self.mutant.line}"
        print(f"{became:9} {seconds:5.1f} s  {len(self.tests):4} tests  {where}  {self.mutant.before}  ->  {self.mutant.after}", flush=True)
        return {"fate": became, "where": where, "before": self.mutant.before, "after": self.mutant.after, "tests": len(self.tests)}


@dataclass
class Run:
    """A mutant whose tests run, in a copy of the source that is its own as long as they do."""

    site: Site
    copy: Path
    timeout: float
    began: float = field(default_factory=time.perf_counter)

    def start(self) -> Run:
        file = self.copy / self.site.file
        self.original = file.read_text()
        file.write_text(self.site.mutant.source)
        self.child = FORK.Process(target=run_tests, args=(self.copy, self.site.tests))
        self.child.start()
        return self

    @property
    def is_over(self) -> bool:
        return not self.child.is_alive() or time.perf_counter() - self.began > self.timeout

    def end(self) -> dict[str, object]:
        became = "timed out" if self.child.is_alive() else "survived" if self.child.exitcode in (0, 5) else "killed"  # 5: no test was found
        self.child.kill()
        self.child.join()
        (self.copy / self.site.file).write_text(self.original)
        return self.site.spelled(became, time.perf_counter() - self.began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=sorted(TESTS), help="mutate only this; repeatable")
    parser.add_argument("--count", type=int, default=100, help="how many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time (default: %(default)s)")
    parser.add_argument(
        "--timeout",
        type=float,
        default=300,
        help="the most seconds per mutant; 30 and ten times what its tests take are enough, and beyond it is killed",
    )
    parser.add_argument("--more", type=float, default=20, help="seconds of tests of other parts that run the line, too (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="where to write every mutant with its fate")
    parser.add_argument("--resume", action="store_true", help="leave out the mutants that are in that file")
    given = parser.parse_args()
    targets = given.only or sorted(TESTS)
    for module in (*LOADED_ONCE, *(LOADED_WHERE_INSTALLED if find_spec("vllm") else ())):
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as folder:
        copies = [copy_of_the_source(Path(folder) / f"copy{i}") for i in range(given.jobs)]
        found: list[dict[str, object]] = json.loads(given.json.read_text())["mutants"] if given.resume and given.json.exists() else []
        sites = drawn(copies[0], targets, given, found)
        for mutant in examined(copies, sites, given.timeout):
            found.append(mutant)
            killed = sum(m["fate"] != "survived" for m in found)
            if given.json:  # after each, so that a run that is cut short leaves what it learnt
                report = {"argv": sys.argv[1:], "killed": killed, "of": len(found), "mutants": found}
                given.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{killed} of {len(found)} killed")


def copy_of_the_source(into: Path) -> Path:
    for name in ("accelplug", "tests", "docs"):
        shutil.copytree(ROOT / name, into / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conftest.py", "pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, into)
    return into


def drawn(copy: Path, targets: list[str], given: argparse.Namespace, known: Sequence[dict[str, object]]) -> list[Site]:
    """Draw mutants, run their targets' tests once on the source as it is, and return them with the tests that run their lines."""
    over = {(mutant["where"], mutant["before"], mutant["after"]) for mutant in known}
    everything = [(target, file, mutant) for target in targets for file in files_of(copy, target) for mutant in mutants(file.read_text())]
    chosen = random.Random(given.seed).sample(everything, min(given.count, len(everything)))
    chosen = [(target, file, m) for target, file, m in chosen if (f"{file.relative_to(copy)}:{m.line}", m.before, m.after) not in over]
    offered = {target: [test for tests in TESTS[target] for test in files_at(copy, tests)] for target, _, _ in chosen}
    files = sorted({file for tests in offered.values() for file in tests})
    print(f"{len(everything)} mutants there are, {len(chosen)} are run; first {len(files)} test files on the source as it is", flush=True)
    covered = covered_by(copy, files)
    print(f"{len(covered.seconds)} tests, {sum(covered.seconds.values()):.0f} s", flush=True)
    sites = []
    for target, path, mutant in chosen:
        file = str(path.relative_to(copy))
        tests = covered.tests_for(path.read_text(), file, mutant.line, offered[target], given.more)
        sites.append(Site(file, mutant, tests, sum(covered.seconds[test] for test in tests)))
    return sites


def files_of(copy: Path, target: str) -> list[Path]:
    path = copy / target
    narrower = [copy / other for other in TESTS if other != target and other.startswith(f"{target}/")]
    files = [path] if path.suffix else sorted(path.rglob("*.py"))
    return [file for file in files if not any(file.is_relative_to(other) for other in narrower)]


def files_at(copy: Path, tests: str) -> list[str]:
    path = copy / tests
    return [tests] if path.suffix else [str(file.relative_to(copy)) for file in sorted(path.rglob("test_*.py"))]


def covered_by(copy: Path, files: list[str]) -> Covered:
    answer = copy.with_suffix(".covered")
    child = FORK.Process(target=watch_tests, args=(copy, files, answer))
    child.start()
    child.join()
    covered: Covered = pickle.loads(answer.read_bytes())
    if covered.failed:
        print(f"left out, since they fail on the source as it is: {', '.join(covered.failed)}", flush=True)
    return covered


def examined(copies: Sequence[Path], sites: Sequence[Site], timeout: float) -> Iterator[dict[str, object]]:
    """Run the tests on each mutant, one at a time in each copy, and yield what became of it."""
    waiting, idle, running = list(reversed(sites)), list(copies), list[Run]()
    while waiting or running:
        while waiting and idle:
            site = waiting.pop()
            running.append(Run(site, idle.pop(), min(timeout, 30 + 10 * site.seconds)).start())
        wait([run.child.sentinel for run in running], timeout=1)
        for run in [run for run in running if run.is_over]:
            running.remove(run)
            idle.append(run.copy)
            yield run.end()


def run_tests(copy: Path, tests: Sequence[str]) -> None:
    """Run tests in a fork, which has the engines loaded already and accelplug not yet, and leave with pytest's status."""
    import pytest

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))  # a loop that never ends may allocate without end
    files = list(dict.fromkeys(map(file_of, tests)))
    os._exit(in_copy(copy, lambda: int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files], plugins=[Chosen(tests)]))))


def watch_tests(copy: Path, files: list[str], answer: Path) -> None:
    """Run test files in a fork, and write what they cover."""
    answer.write_bytes(pickle.dumps(in_copy(copy, lambda: watched(copy, files))))
    os._exit(0)


def in_copy(copy: Path, run: Callable[[], Any]) -> Any:
    """Run something there, in silence; a failing example is as good as the smallest one, and being watched takes time."""
    from hypothesis import HealthCheck, Phase, settings

    assert "accelplug" not in sys.modules
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    found = find_spec("accelplug")
    assert found is not None
    assert Path(str(found.origin)).is_relative_to(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.dont_write_bytecode = True
    settings.register_profile("mutation", phases=[Phase.explicit, Phase.generate], deadline=None, suppress_health_check=list(HealthCheck))
    settings.load_profile("mutation")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        return run()


if __name__ == "__main__":
    main()
