"""Which tests run which lines, so that a mutant is shown to those alone that could notice it."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

EVERYBODY = ""
"""What coverage calls the time outside of all tests, when modules are imported."""


@dataclass
class Covered:
    """What one run of all tests showed.

    :ivar failed: tests that fail without any mistake, from which nothing can be learnt.
    :ivar seconds: of each other test, by its node id, in the order in which they ran.
    :ivar lines: of each source file which contexts ran each line: a test's node id, the setting up of a test file, or EVERYBODY.
    """

    failed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    lines: dict[str, dict[int, list[str]]] = field(default_factory=dict)

    def tests_for(self, source: str, file: str, line: int, own: Collection[str], more: float) -> list[str]:
        """Return the node ids of the tests that run the statement at a line: those in the test files `own`, then others of `more` seconds together.

        Where it is not known which do, it is all of `own`: the line was run on import or is run only now and then, or its function keeps what
        it once returned. Tests that run no line themselves, such as those that look at what the others before them counted, are told nothing alone.
        """
        known = self.lines.get(file, {})
        contexts = {context for at in statement_at(source, line) for context in known.get(at, ())}
        if not contexts or EVERYBODY in contexts or is_kept(source, line):
            return self._ordered([test for test in self.seconds if file_of(test) in own])
        shared = {test for test in self._running if setting_up(file_of(test)) in contexts}
        running = [test for test in self.seconds if test in contexts or test in shared]
        others, left = [], more
        for test in sorted((test for test in running if file_of(test) not in own), key=self.seconds.__getitem__):
            left -= self.seconds[test]
            if left < 0:
                break
            others.append(test)
        return self._ordered([test for test in running if file_of(test) in own]) + self._ordered(others)

    @cached_property
    def _running(self) -> set[str]:
        """The tests that run any line, and so may be run without those before them."""
        return {context for lines in self.lines.values() for contexts in lines.values() for context in contexts}.intersection(self.seconds)

    def _ordered(self, tests: list[str]) -> list[str]:
        """Order tests file by file, the shortest first, and inside as they stand there: what they share is made once."""
        whole: dict[str, float] = defaultdict(float)
        for test in tests:
            whole[file_of(test)] += self.seconds[test]
        place = {test: i for i, test in enumerate(self.seconds)}
        return sorted(tests, key=lambda test: (whole[file_of(test)], file_of(test), place[test]))


def file_of(test: str) -> str:
    """Return the file of a test's node id."""
    return test.partition("::")[0]


def setting_up(file: str) -> str:
    """Return the context of what a file's tests share, as far as can be told: all of their setting up."""
    return f"setting up {file}"


def statement_at(source: str, line: int) -> range:
    """Return the lines of the innermost statement at a line; of one with a body, those before the body."""
    around = [range(line, line + 1)]
    for node in ast.walk(ast.parse(source)):  # outer ones first
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or line):
            body: list[ast.stmt] = getattr(node, "body", [])
            around.append(range(node.lineno, max(body[0].lineno, node.lineno + 1) if body else (node.end_lineno or line) + 1))
    return next((lines for lines in reversed(around) if line in lines), around[0])


def is_kept(source: str, line: int) -> bool:
    """Whether a line is in a function that keeps its answers, so that only the first of many tests runs it."""
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    around = (node for node in functions if node.lineno <= line <= (node.end_lineno or node.lineno))
    return any("cache" in ast.unparse(decorator) for node in around for decorator in node.decorator_list)


class Watching:
    """A pytest plugin that tells coverage which test is running."""

    def __init__(self, coverage: Any, covered: Covered) -> None:
        self.coverage, self.covered = coverage, covered

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(setting_up(file_of(item.nodeid)))
        yield

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        yield

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.covered.seconds[report.nodeid] += report.duration
        if report.failed:
            self.covered.failed.append(report.nodeid)


class Chosen:
    """A pytest plugin that runs these tests, in this order."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.order = {test: i for i, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self.order), key=lambda item: self.order[item.nodeid])


def watched(folder: Path, tests: Iterable[str]) -> Covered:
    """Run test files on the source in `folder` as it is; return what they cover. Run in a process that has not imported it yet."""
    import coverage

    covered = Covered()
    watch = coverage.Coverage(data_file=None, source=[str(folder / "accelplug")], config_file=False)
    watch.start()
    status = pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[Watching(watch, covered)])
    watch.stop()
    if status and not covered.failed:
        covered.failed.append(f"pytest with status {int(status)}")
    data = watch.get_data()
    for file in data.measured_files():
        covered.lines[str(Path(file).relative_to(folder))] = data.contexts_by_lineno(file)
    covered.seconds = {test: seconds for test, seconds in covered.seconds.items() if test not in covered.failed}
    return covered
