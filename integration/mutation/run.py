"""Do the tests notice? Put small mistakes into a copy of the source, one at a time, and run the fast tests on it.

``python integration/mutation/run.py --count 200 --seed 1 --json found.json``; run by hand, it takes seconds per mutant.
Nothing in the working tree is touched.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
TESTS = {
    "accelplug/hooks": ("tests/hooks", "tests/conformance/test_builtins.py"),
    "accelplug/spec": ("tests/spec", "tests/conformance/test_builtins.py"),
    "accelplug/spec/branches.py": ("tests/spec/test_adaptive.py", "tests/hosts/hf/test_draft_model_exact.py"),
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
    "accelplug/hosts/hf/verify.py": ("tests/hosts/hf/test_sampling_exact.py", "tests/conformance/test_builtins.py"),
    "accelplug/hosts/hf/parameters.py": ("tests/hosts/hf/test_parameters.py",),
    "accelplug/hosts/hf/paths.py": ("tests/hosts/hf/test_paths.py", "tests/hosts/hf/test_paths_exact.py"),
    "accelplug/hosts/stats.py": ("tests/hosts/hf/test_session.py",),
    "accelplug/hosts/vocabulary.py": ("tests/hosts/test_vocabulary.py",),
    "accelplug/hosts/vllm/chains.py": ("tests/hosts/vllm/test_chains.py",),
    "accelplug/hosts/vllm/judging.py": ("tests/hosts/vllm/test_judging.py",),
    "accelplug/hosts/vllm/metrics.py": ("tests/hosts/vllm/test_metrics.py",),
    "accelplug/hosts/vllm/mirror.py": ("tests/hosts/vllm/test_mirror.py",),
    "accelplug/hosts/vllm/requests.py": ("tests/hosts/vllm/test_requests.py",),
    "accelplug/hosts/vllm/slots.py": ("tests/hosts/vllm/test_slots.py",),
}
"""What is mutated -> the tests that should notice, the most telling first; a file belongs to the longest path that it is under."""
LOADED_ONCE = ("numpy", "pluggy", "pytest", "hypothesis", "scipy.stats", "torch", "transformers", "transformers.models.llama.modeling_llama")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=sorted(TESTS), help="mutate only this; repeatable")
    parser.add_argument("--count", type=int, default=100, help="how many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=300, help="seconds per mutant; one that takes longer is killed")
    parser.add_argument("--json", type=Path, help="where to write every mutant with its fate")
    given = parser.parse_args()
    targets = given.only or sorted(TESTS)
    for module in LOADED_ONCE:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as folder:
        found: list[dict[str, object]] = []
        for mutant in examine(copy_of_the_source(Path(folder) / "copy"), targets, given.count, given.seed, given.timeout):
            found.append(mutant)
            killed = sum(m["fate"] != "survived" for m in found)
            if given.json:  # after each, so that a run that is cut short leaves what it learnt
                report = {"argv": sys.argv[1:], "killed": killed, "of": len(found), "mutants": found}
                given.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{killed} of {len(found)} killed")


def copy_of_the_source(into: Path) -> Path:
    for name in ("accelplug", "tests", "docs"):
        shutil.copytree(ROOT / name, into / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, into)
    return into


def examine(copy: Path, targets: list[str], count: int, seed: int, timeout: float) -> Iterator[dict[str, object]]:
    """Run the tests on each mutant, before a target's first one on the source as it is, and yield what became of it."""
    everything = [(target, file, mutant) for target in targets for file in files_of(copy, target) for mutant in mutants(file.read_text())]
    chosen = random.Random(seed).sample(everything, min(count, len(everything)))
    print(f"{len(everything)} mutants there are, {len(chosen)} are run", flush=True)
    known: set[str] = set()
    for target, file, mutant in chosen:
        if target not in known and fate(copy, TESTS[target], timeout) != "survived":
            raise SystemExit(f"the tests of {target} fail or take over {timeout:g} s on the source as it is; nothing can be learnt from them")
        known.add(target)
        yield examined(copy, target, file, mutant, timeout)


def files_of(copy: Path, target: str) -> list[Path]:
    path = copy / target
    narrower = [copy / other for other in TESTS if other != target and other.startswith(f"{target}/")]
    files = [path] if path.suffix else sorted(path.rglob("*.py"))
    return [file for file in files if not any(file.is_relative_to(other) for other in narrower)]


def examined(copy: Path, target: str, file: Path, mutant: Mutant, timeout: float) -> dict[str, object]:
    original, began = file.read_text(), time.perf_counter()
    file.write_text(mutant.source)
    try:
        became = fate(copy, TESTS[target], timeout)
    finally:
        file.write_text(original)
    where = f"{file.relative_to(copy)}:{mutant.line}"
    print(f"{became:9} {time.perf_counter() - began:5.1f} s  {where}  {mutant.before}  ->  {mutant.after}", flush=True)
    return {"fate": became, "where": where, "before": mutant.before, "after": mutant.after}


def fate(copy: Path, tests: tuple[str, ...], timeout: float) -> str:
    """Run the tests in a fork, which has the engines loaded already and accelplug not yet."""
    child = multiprocessing.get_context("fork").Process(target=run_tests, args=(copy, tests))
    child.start()
    child.join(timeout)
    if child.is_alive():
        child.kill()
        child.join()
        return "timed out"
    return "survived" if child.exitcode == 0 else "killed"


def run_tests(copy: Path, tests: tuple[str, ...]) -> None:
    import pytest

    assert "accelplug" not in sys.modules
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)
    sys.dont_write_bytecode = True
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        import accelplug

        assert Path(accelplug.__file__).is_relative_to(copy)
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
    os._exit(int(status))


if __name__ == "__main__":
    main()
